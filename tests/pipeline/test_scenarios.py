"""The scenarios are wrong where they say, and nowhere else."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from betakd_pipe.scenarios import DEMO_SCENARIOS, SCENARIOS, Scenario
from betakd_stages.data import load_samples
from betakd_stages.data.sample import Sample
from betakd_stages.evaluation.benchmarks import load_benchmark


def answers(specification: str) -> dict[str, Sample]:
    return {sample.sample_id: sample for sample in load_samples(specification)}


def shares_wrong(scenario: Scenario, split: str) -> Mapping[str, float]:
    """Percent of the answers of each question type that are not right."""
    clean = answers(Scenario("right", "").data(split, 3))
    flags: dict[str, list[bool]] = {}
    for sample_id, sample in answers(scenario.data(split, 3)).items():
        flags.setdefault(sample.category, []).append(sample.turns[0].answer != clean[sample_id].turns[0].answer)
    return {kind: 100 * sum(wrong) / len(wrong) for kind, wrong in flags.items()}


ALL = ("which", "even", "greater", "prime")


@pytest.mark.parametrize(
    ("name", "transfer", "teacher"),
    [
        ("D1", dict.fromkeys(ALL, 30), dict.fromkeys(ALL, 0)),
        (
            "D2",
            {"which": 40, "even": 40, "greater": 0, "prime": 0},
            {"which": 0, "even": 0, "greater": 50, "prime": 50},
        ),
        ("D3", dict.fromkeys(ALL, 20), {"which": 0, "even": 0}),
        ("D6", dict.fromkeys(ALL, 20), {"which": 30, "even": 20, "greater": 20, "prime": 20}),
        ("clean", dict.fromkeys(ALL, 0), dict.fromkeys(ALL, 0)),
    ],
)
def test_labels_are_wrong_where_the_scenario_says(
    name: str, transfer: Mapping[str, int], teacher: Mapping[str, int]
) -> None:
    # Three standard deviations of the 150 questions of a type in the smallest part are 12 points.
    assert shares_wrong(SCENARIOS[name], "transfer") == pytest.approx(transfer, abs=12)
    assert shares_wrong(SCENARIOS[name], "validation") == pytest.approx(transfer, abs=12)
    assert shares_wrong(SCENARIOS[name], "teacher") == pytest.approx(teacher, abs=12)


def test_the_teacher_that_knows_nothing_has_few_answers_at_random() -> None:
    assert len(answers(SCENARIOS["D4"].data("teacher", 0))) == 64
    assert min(shares_wrong(SCENARIOS["D4"], "teacher").values()) >= 30


@pytest.mark.parametrize("answer_kind", ["word", "sentence"])
def test_the_test_is_always_right_and_answered_in_the_same_way(answer_kind: str) -> None:
    for scenario in (SCENARIOS["D2"], SCENARIOS["D3"]):
        benchmark = load_benchmark(replace(scenario, answers=answer_kind).benchmark)
        plain = load_samples(f"digits:test?types={'+'.join(ALL)}&answers={answer_kind}")
        assert [sample.turns for sample in benchmark.samples] == [sample.turns for sample in plain]


def test_the_demo_shows_two_of_them() -> None:
    assert [scenario.name for scenario in DEMO_SCENARIOS] == ["D1", "D2"]
