"""Settings from layers, and what a wrong setting is told."""

from pathlib import Path
from typing import Any

import pytest

from betakd_pipe.config import flatten, load_settings
from betakd_stages.errors import ConfigError
from betakd_stages.settings import CacheTeacherSettings, DistillSettings

REQUIRED: dict[str, Any] = {"student": "s", "cache": "c", "data": "digits:transfer"}


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def message(config: Path | None = None, flags: dict[str, Any] | None = None, assignments: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(DistillSettings, config, flags or REQUIRED, assignments)
    return str(caught.value)


def test_later_layers_win_key_by_key(tmp_path: Path) -> None:
    config = written(tmp_path, "seed: 1\ntraining: {steps: 10, batch_size: 2}\nstudent: from-file\n")
    settings = load_settings(DistillSettings, config, {**REQUIRED, "seed": 2}, ["seed=3", "training.steps=20"])
    assert (settings.seed, settings.training.steps, settings.training.batch_size) == (3, 20, 2)
    assert settings.student == "s"
    assert settings.training.learning_rate == 4e-5


def test_flags_that_are_not_given_leave_the_file_alone(tmp_path: Path) -> None:
    config = written(tmp_path, "seed: 7\nstudent: a\ncache: b\ndata: c\n")
    assert load_settings(DistillSettings, config, {"seed": None, "student": None}).seed == 7


def test_a_list_is_replaced_whole() -> None:
    settings = load_settings(
        DistillSettings, None, {**REQUIRED, "objective.energies": ["fkl", "rkl"]}, ["objective.energies=[ce]"]
    )
    assert [energy.name for energy in settings.objective.energies] == ["ce"]


@pytest.mark.parametrize("text", ["4e-5", "4.0e-05", "0.00004"])
def test_set_understands_every_spelling_of_a_number(text: str) -> None:
    settings = load_settings(DistillSettings, None, REQUIRED, [f"training.learning_rate={text}"])
    assert settings.training.learning_rate == 4e-5


def test_set_takes_lists_and_mappings() -> None:
    settings = load_settings(
        CacheTeacherSettings, None, {"teacher": "t", "data": "d"}, ["temperatures=[0.5, 1, 2]", "exact=true"]
    )
    assert settings.temperatures == (0.5, 1.0, 2.0)
    assert settings.exact


def test_an_unknown_key_of_the_file_names_the_nearest_key_and_its_line(tmp_path: Path) -> None:
    config = written(tmp_path, "seed: 1\ntraining:\n  stps: 10\n")
    assert message(config) == f"{config}, line 3: unknown key training.stps; did you mean steps?"


def test_an_unknown_key_of_set_names_the_assignment() -> None:
    assert message(assignments=("objectve.reduction=token",)) == (
        "--set objectve.reduction=token: unknown key objectve; did you mean objective?"
    )


def test_an_unknown_key_near_nothing_lists_what_is_known() -> None:
    found = message(assignments=("control.qqq=1",))
    assert found == "--set control.qqq=1: unknown key control.qqq; expected one of shuffle_records"


def test_an_unknown_key_inside_a_list_names_its_place(tmp_path: Path) -> None:
    config = written(tmp_path, "objective:\n  energies:\n    - name: fkl\n      optons: {}\n")
    found = message(config)
    assert found == f"{config}, line 4: unknown key objective.energies.0.optons; did you mean options?"


def test_a_value_out_of_range_is_shown_with_what_was_expected(tmp_path: Path) -> None:
    config = written(tmp_path, "training:\n  steps: -1\n")
    assert message(config) == f"{config}, line 2: training.steps: found -1, expected greater than 0"


def test_every_fault_has_a_line_of_its_own() -> None:
    lines = message(assignments=("training.steps=0", "seed=abc", "nonsense=1")).splitlines()
    assert [line.split(":")[0] for line in sorted(lines)] == [
        "--set nonsense=1",
        "--set seed=abc",
        "--set training.steps=0",
    ]


def test_the_place_is_that_of_the_layer_that_won(tmp_path: Path) -> None:
    config = written(tmp_path, "training:\n  steps: 5\n")
    assert message(config, assignments=("training.steps=-5",)).startswith("--set training.steps=-5: training.steps")


def test_a_missing_setting_says_what_it_is() -> None:
    assert message(flags={"cache": "c", "data": "d"}) == (
        "student is missing; expected folder of the student, as saved by save_pretrained: "
        "give it on the command line or in the configuration file"
    )


def test_settings_that_exclude_each_other_are_explained() -> None:
    found = message(assignments=("training.steps=3", "training.epochs=2"))
    assert found.endswith("training: steps and epochs are both given: keep one of them")


def test_a_text_where_a_group_belongs_is_refused(tmp_path: Path) -> None:
    config = written(tmp_path, "training: fast\n")
    assert message(config) == f"{config}, line 1: training: found 'fast', expected a mapping"


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    config = written(tmp_path, "seed: 1\ntraining: {steps: 3}\nseed: 2\n")
    assert message(config) == f"{config}, line 3: seed is given twice (first in line 1): keep one of them"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "absent.yaml"
    assert message(path) == f"{path}: no such file; expected a YAML file of settings: check the path"


def test_broken_yaml_names_its_line(tmp_path: Path) -> None:
    config = written(tmp_path, "seed: 1\ntraining: [1,\nseed")
    found = message(config)
    assert found.startswith(f"{config}, line ")
    assert "not YAML" in found
    assert "\n" not in found


def test_a_file_that_holds_a_list_is_refused(tmp_path: Path) -> None:
    config = written(tmp_path, "- 1\n- 2\n")
    assert message(config) == f"{config}: found [1, 2]; expected a mapping of settings, such as `seed: 0`"


def test_yaml_cannot_make_python_objects(tmp_path: Path) -> None:
    config = written(tmp_path, "student: !!python/object/apply:os.getcwd []\n")
    assert "not YAML" in message(config)


@pytest.mark.parametrize("assignment", ["training.steps", "=3", "training.=3", ".a=1"])
def test_an_assignment_without_key_or_value_is_refused(assignment: str) -> None:
    found = message(assignments=(assignment,))
    assert found == f"--set {assignment}: expected KEY=VALUE with a dotted key, such as training.steps=100"


def test_an_assignment_that_is_no_yaml_is_refused() -> None:
    assert message(assignments=("seed=[1",)) == "--set seed=[1: '[1' is not a YAML value; quote it if it is text"


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load_settings(DistillSettings, written(tmp_path, "# nothing\n"), REQUIRED).seed == 0


def test_flatten_opens_mappings_and_lists_and_keeps_empty_ones() -> None:
    assert flatten({"a": {"b": [1, {"c": 2}], "d": {}}, "e": []}) == {"a.b.0": 1, "a.b.1.c": 2, "a.d": {}, "e": []}
