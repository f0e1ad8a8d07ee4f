"""Who is compared with whom, and whether the difference is established: against enumerations and by hand."""

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.pipeline.report.fixture_folders import METHODS, make_scenario

from betakd_pipe.ablation.rows import ResultRow
from betakd_pipe.report.comparisons import compare, comparisons, holm, paired_bootstrap_over_seeds, references
from betakd_pipe.report.groups import MAX_METHODS, method_groups
from betakd_pipe.report.headline import headline
from betakd_pipe.report.records import ReportError, ReportScenario, Run, read_runs
from betakd_pipe.report.weights import weight_stories


def run(
    method: str,
    flags: list[int],
    *,
    seed: int = 0,
    energies: tuple[str, ...] = ("fkl",),
    weighting: str = "fixed",
    ids: str = "q",
) -> Run:
    """A run whose answers are right where a flag is 1."""
    row = ResultRow(method, seed, 100 * float(np.mean(flags)), {}, None, 0.1, {}, 1.0, Path(method))
    objective = {"energies": [{"name": name} for name in energies], "features": []}
    settings: dict[str, Any] = {"objective": objective, "weighting": {"name": weighting}, "cache": None}
    predictions = [{"sample_id": f"{ids}{place}", "correct": bool(flag)} for place, flag in enumerate(flags)]
    return Run(row, settings, [], [], [], predictions)


def many(method: str, **traits: Any) -> dict[str, list[Run]]:
    return {method: [run(method, [1, 0], **traits)]}


def test_the_reference_is_the_manual_method_of_the_same_energies_or_else_the_first_method() -> None:
    runs = {
        **many("ce", energies=()),
        **many("fkl-task", weighting="task"),
        **many("fkl-manual", weighting="manual"),
        **many("rkl-task", energies=("rkl",), weighting="task"),
        **many("rkl-manual", energies=("rkl",), weighting="manual"),
        **many("cosine", energies=("cosine_probs",)),
    }
    found = {"fkl-task": "fkl-manual", "rkl-task": "rkl-manual", "cosine": "ce"}
    assert references(runs) == found
    assert references(runs, "rkl-task") == {method: "rkl-task" for method in runs if method != "rkl-task"}
    with pytest.raises(ReportError, match="--baseline rkl: no such method, expected one of ce, fkl-task, fkl-manual, "):
        references(runs, "rkl")


def test_interval_and_p_value_are_those_of_all_resamples_of_seeds_and_questions() -> None:
    """Two seeds and four questions: 2^2 draws of seeds by 4^4 of questions are enumerated."""
    differences = np.array([[1, 0, 1, -1], [1, 1, 0, 0]], dtype=np.float64)
    means = np.sort(
        [
            differences[list(seeds)][:, list(questions)].mean()
            for seeds in itertools.product(range(2), repeat=2)
            for questions in itertools.product(range(4), repeat=4)
        ]
    )
    low, high, p_value = paired_bootstrap_over_seeds(differences)
    assert (low, high) == (means[round(0.025 * len(means))], means[round(0.975 * len(means)) - 1])
    assert p_value == pytest.approx(2 * np.mean(means <= 0), abs=0.03)


def test_one_seed_gives_the_binomial_interval_of_its_questions() -> None:
    differences = np.array([[1.0] * 60 + [-1.0] * 40])
    low, high, p_value = paired_bootstrap_over_seeds(differences)
    deviation = np.sqrt((1 - 0.2**2) / 100)
    assert (low, high) == pytest.approx((0.2 - 1.96 * deviation, 0.2 + 1.96 * deviation), abs=0.02)
    assert p_value == pytest.approx(0.045, abs=0.02)


def test_seeds_that_disagree_widen_the_interval() -> None:
    agree = np.zeros((3, 200))
    agree[:, :20] = 1
    disagree = np.zeros((3, 200))
    disagree[0, :60] = 1
    widths = [high - low for low, high, _ in map(paired_bootstrap_over_seeds, (agree, disagree))]
    assert agree.mean() == disagree.mean()
    assert widths[1] > 2 * widths[0]


def test_no_difference_at_all_has_p_1() -> None:
    assert paired_bootstrap_over_seeds(np.zeros((2, 50))) == (0.0, 0.0, 1.0)


def test_only_seeds_that_both_have_and_the_same_questions_are_compared() -> None:
    own = [run("a", [1, 1, 1, 0], seed=seed) for seed in (0, 1, 2)]
    other = [run("b", [1, 0, 0, 0], seed=seed) for seed in (1, 2, 3)]
    found = compare(own, other)
    assert found is not None
    assert (found.num_seeds, found.difference, found.reference) == (2, 50.0, "b")
    assert compare(own, [run("b", [1, 0, 0, 0], seed=0, ids="other")]) is None
    assert compare(own, [run("b", [1, 0, 0, 0], seed=7)]) is None


def test_p_values_are_adjusted_by_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_clear_gain_is_significant_and_a_small_one_is_not() -> None:
    base = [0] * 100
    runs = {
        "manual": [run("manual", base, weighting="manual")],
        "better": [run("better", [1] * 40 + [0] * 60)],
        "like it": [run("like it", [1] * 3 + [0] * 97)],
    }
    found = comparisons(runs)
    assert found["better"].is_significant
    assert not found["like it"].is_significant
    assert found["like it"].adjusted_p_value >= found["like it"].p_value


def test_groups_hold_one_kind_of_energies_and_a_handful_of_methods_the_best_first() -> None:
    runs: dict[str, list[Run]] = {**many("ce", energies=())}
    for energy in ("fkl", "rkl"):
        for number in range(9 if energy == "rkl" else 3):
            name = f"{energy}-{number}"
            runs[name] = [run(name, [1] * (5 if name == "rkl-8" else 1) + [0] * 9, energies=(energy,))]
    groups = method_groups(runs)
    assert [group.title for group in groups] == ["rkl (1 of 2)", "rkl (2 of 2)", "fkl"]
    assert [group.name for group in groups] == ["rkl-1", "rkl-2", "fkl"]
    assert groups[0].methods == ("ce", *(f"rkl-{number}" for number in range(5)))
    assert groups[2].methods == ("ce", "fkl-0", "fkl-1", "fkl-2")
    assert all(len(group.methods) <= MAX_METHODS for group in groups)
    alone = method_groups(dict.fromkeys(("ce", "ce-longer"), runs["ce"]))
    assert [(group.title, group.methods) for group in alone] == [("labels alone", ("ce", "ce-longer"))]


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> ReportScenario:
    return make_scenario(tmp_path_factory.mktemp("ablation"))


def sentences(scenario: ReportScenario) -> list[str]:
    runs = read_runs(scenario)
    return headline(scenario, runs, comparisons(runs, scenario.baseline), weight_stories(runs))


def test_the_sentences_say_what_won_by_how_much_and_what_beta_did(scenario: ReportScenario) -> None:
    means = {method: np.array([row.accuracy for row in scenario.rows if row.method == method]) for method in METHODS}
    first, second, tally, weights, collapse = sentences(scenario)
    best, next_best = sorted(METHODS, key=lambda method: -means[method].mean())[:2]
    mean, gap = means[best].mean(), means[best].mean() - means[next_best].mean()
    assert first.startswith(f"{best} has the highest accuracy: {mean:.1f} ± {means[best].std(ddof=1):.1f} %")
    assert f"{mean - means['ce'].mean():.1f} points more (95 % interval " in first
    assert re.search(r"than ce, which is significant \(p [<=] 0.00\d, adjusted for all comparisons\)", first)
    assert second.startswith(f"The next best is {next_best}, {gap:.1f} points behind (95 % interval")
    assert tally.startswith("Of 3 methods compared with their reference, 3 are significantly better")
    assert weights.startswith((f"In {best}, the winner, β of fkl rose from 1", "In fkl-instance, the best of those th"))
    assert collapse == "β grew most where the teacher knows least, the sign of a collapse, in fkl-instance (fkl)."


def test_weights_that_did_not_collapse_are_said_not_to(scenario: ReportScenario) -> None:
    runs = read_runs(scenario)
    stories = [
        replace(story, with_teacher_entropy=-0.5 if story.is_per_sample else None) for story in weight_stories(runs)
    ]
    assert headline(scenario, runs, comparisons(runs, None), stories)[-1] == (
        "No β collapsed: of 1 that differ between samples none grew most where the teacher knows least."
    )


def test_an_ablation_that_is_not_finished_says_so_first(scenario: ReportScenario) -> None:
    unfinished = replace(scenario, num_planned=15)
    assert sentences(unfinished)[0] == "Unfinished: 12 of 15 runs are done, and this is what they say so far."
    assert sentences(replace(scenario, num_planned=12)) == sentences(scenario)


def test_the_winner_may_itself_be_the_reference(scenario: ReportScenario) -> None:
    best = sentences(scenario)[0].split(" has ")[0]
    assert sentences(replace(scenario, baseline=best))[0].endswith("seeds); 3 other methods are compared with it.")
