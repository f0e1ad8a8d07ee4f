"""Settings a user wrote: names, types and values that do not fit."""

from typing import Any

import pytest

from betakd_stages.energies import make_energy
from betakd_stages.errors import ConfigError
from betakd_stages.weightings import make_weighting


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": "2"}, r"energy 'fkl': temperature is '2', expected a number: correct its value"),
        ({"temperature": True}, r"temperature is True, expected a number"),
        ({"teacher_temperature": [1]}, r"teacher_temperature is \[1\], expected a number or nothing"),
        ({"include_teacher_entropy": 1}, r"include_teacher_entropy is 1, expected true or false"),
        ({"teacher_temperature": 0.0}, r"teacher_temperature is 0.0: give a number above 0"),
    ],
)
def test_values_of_another_type_are_errors_that_say_what_is_expected(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_energy("fkl", **settings)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("fixed", {"beta": "3"}, r"weighting 'fixed': beta is '3', expected a number or a mapping"),
        ("fixed", {"beta": {"fkl": "3"}}, r"beta of fkl is '3', expected a number: correct its value"),
        ("instance", {"hidden_size": 2.5}, r"hidden_size is 2.5, expected a whole number"),
        ("task", {"positivity": 1}, r"positivity is 1, expected a name"),
    ],
)
def test_values_of_a_weighting_are_checked_alike(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_weighting(name, ("fkl",), 2, **settings)


def test_whole_numbers_and_nothing_fit_where_a_number_may_be_left_out() -> None:
    energy = make_energy("fkl", temperature=2, teacher_temperature=None)
    assert energy.teacher_temperature == energy.student_temperature == 2.0
