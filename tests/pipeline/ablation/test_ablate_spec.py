"""Ablation specs: which runs they ask for, and what a wrong one is told."""

from pathlib import Path
from typing import Any

import pytest

from betakd_pipe.ablation.spec import AblationSpec, all_methods, plan_run, short_name, variants_of_methods
from betakd_pipe.config import Layer, resolve
from betakd_stages.errors import ConfigError

OUT = Path("out")


def make_spec(**values: Any) -> AblationSpec:
    base = {
        "student": "students/seed-{seed}",
        "cache": "cache",
        "data": "digits:transfer?seed={seed}",
        "evaluate": {"benchmark": "digits", "reference": "seed-{seed}/teacher"},
        "methods": {"ce": {"objective": {"energies": []}}},
    }
    return resolve(AblationSpec, [Layer({**base, **values}, "spec.yaml")])


def message(**values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        make_spec(**values)
    return str(caught.value)


def test_the_seed_is_filled_in_everywhere_and_names_the_folder() -> None:
    run = plan_run(make_spec(), OUT, "ce", 3)
    assert run.folder == Path("out/seed-3/runs/ce")
    assert (run.settings.student, run.settings.data, run.settings.seed) == (
        "students/seed-3",
        "digits:transfer?seed=3",
        3,
    )
    assert (run.evaluation.model, run.evaluation.reference) == ("out/seed-3/runs/ce", "seed-3/teacher")


def test_a_method_wins_over_the_base_and_a_tuned_value_over_both() -> None:
    spec = make_spec(
        base={"weighting": {"name": "fixed", "options": {"beta": 1}}, "training": {"steps": 5}},
        methods={"fkl": {"set": {"weighting": {"options": {"beta": 2}}}}},
    )
    assert plan_run(spec, OUT, "fkl", 0).settings.weighting.options == {"beta": 2}
    run = plan_run(spec, OUT, "fkl", 0, name="fkl@3", tuned={"weighting.options.beta": 3})
    assert run.settings.weighting.options == {"beta": 3}
    assert run.settings.training.steps == 5
    assert run.folder == Path("out/seed-0/runs/fkl@3")


def test_a_grid_adds_every_combination_as_a_method() -> None:
    spec = make_spec(grid={"objective.energies": [["fkl"], ["fkl", "rkl"]], "weighting.name": ["task", "instance"]})
    assert list(all_methods(spec)) == [
        "ce",
        "objective.energies=fkl,weighting.name=task",
        "objective.energies=fkl,weighting.name=instance",
        "objective.energies=fkl+rkl,weighting.name=task",
        "objective.energies=fkl+rkl,weighting.name=instance",
    ]
    settings = plan_run(spec, OUT, "objective.energies=fkl+rkl,weighting.name=instance", 0).settings
    assert [energy.name for energy in settings.objective.energies] == ["fkl", "rkl"]
    assert settings.weighting.name == "instance"


AXES: dict[str, Any] = {
    "energy": {"fkl": {"objective": {"energies": ["fkl"]}}, "rkl": {"objective": {"energies": ["rkl"]}}},
    "weighting": {"fixed": {"weighting": {"name": "fixed"}, "objective": {"reduction": "token"}}, "task": {}},
}


def test_axes_add_every_combination_of_their_variants_as_a_method() -> None:
    spec = make_spec(axes=AXES)
    assert list(all_methods(spec)) == ["ce", "fkl-fixed", "fkl-task", "rkl-fixed", "rkl-task"]
    settings = plan_run(spec, OUT, "rkl-fixed", 0).settings
    assert [energy.name for energy in settings.objective.energies] == ["rkl"]
    assert (settings.objective.reduction, settings.weighting.name) == ("token", "fixed")
    assert plan_run(spec, OUT, "rkl-task", 0).settings.objective.reduction == "sample"
    assert variants_of_methods(spec)["rkl-task"] == ("rkl", "task")


def test_a_recipe_lies_below_base_and_methods() -> None:
    spec = make_spec(recipe="digits", base={"training": {"batch_size": 8}}, methods={"ce": {"training": {"warmup": 0}}})
    training = plan_run(spec, OUT, "ce", 0).settings.training
    assert (training.steps, training.batch_size, training.warmup) == (280, 8, 0.0)
    with pytest.raises(ConfigError, match=r"--recipe digit: no such recipe; did you mean digits\?"):
        plan_run(make_spec(recipe="digit"), OUT, "ce", 0)


def test_an_axis_without_variants_and_a_variant_that_names_no_folder_are_refused() -> None:
    evaluation = {"benchmark": "digits", "ray": {"num_cpus": 2}}
    assert message(evaluate=evaluation).endswith("a task of an ablation is a whole run: write ray beside evaluate")
    assert message(axes={"energy": {}}).endswith("axis energy has no variant: name at least one")
    assert "method 'a/b' cannot name a folder" in message(axes={"energy": {"a/b": {}}})


def test_a_combination_that_is_called_as_a_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="two combinations or methods are called fkl-task: rename one of them"):
        all_methods(make_spec(axes=AXES, methods={"fkl-task": {}}))


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (0.3, "0.3"),
        ([], "none"),
        ([{"name": "fkl", "options": {"temperature": 2}}], "name_fkl_options_temperature_2"),
        ("digits:transfer?a=1/2", "digits_transfer_a_1_2"),
    ],
)
def test_any_value_gives_a_name_that_can_be_a_folder(value: Any, name: str) -> None:
    assert short_name(value) == name


def test_runs_that_would_do_the_same_are_identical_wherever_they_live() -> None:
    spec = make_spec(
        methods={
            "one": {"weighting": {"name": "fixed", "options": {"beta": 1}}},
            "tuned": {"weighting": {"name": "fixed"}},
            "two": {"weighting": {"name": "fixed", "options": {"beta": 2}}},
        }
    )
    one = plan_run(spec, OUT, "one", 0)
    assert plan_run(spec, OUT, "tuned", 0, tuned={"weighting.options.beta": 1}).identity == one.identity
    assert plan_run(spec, Path("elsewhere"), "one", 0).identity == one.identity
    assert plan_run(spec, OUT, "two", 0).identity != one.identity
    assert plan_run(spec, OUT, "one", 1).identity != one.identity


def test_an_unknown_setting_of_a_method_names_the_method() -> None:
    spec = make_spec(methods={"fkl": {"weigthing": {"name": "task"}}})
    with pytest.raises(ConfigError) as caught:
        plan_run(spec, OUT, "fkl", 0)
    assert str(caught.value) == "method fkl: unknown key weigthing; did you mean weighting?"


def test_an_unknown_setting_of_the_evaluation_is_named() -> None:
    spec = make_spec(evaluate={"benchmrk": "digits"})
    with pytest.raises(ConfigError, match=r"evaluate: unknown key benchmrk; did you mean benchmark\?"):
        plan_run(spec, OUT, "ce", 0)


def test_a_spec_without_methods_is_refused() -> None:
    assert message(methods={}).endswith("methods, axes and grid are all empty: name at least one method")


def test_a_method_that_cannot_name_a_folder_is_refused() -> None:
    assert "method 'a/b' cannot name a folder" in message(methods={"a/b": {}})
    assert "method '..' cannot name a folder" in message(methods={"..": {}})


def test_repeated_seeds_are_refused() -> None:
    assert message(seeds=[0, 0]) == "spec.yaml: seeds: found [0, 0], expected one or more different values"


def test_a_misspelt_key_of_tune_names_the_nearest() -> None:
    tune = {"key": "weighting.options.beta", "vals": [1], "seed": 0}
    found = message(methods={"fkl": {"set": {}, "tune": tune}})
    assert "unknown key methods.fkl.tune.vals; did you mean values?" in found


def test_two_combinations_with_one_name_are_refused() -> None:
    spec = make_spec(grid={"data": ["digits:a", "digits?a"]})
    with pytest.raises(ConfigError, match="two combinations or methods are called data=digits_a"):
        all_methods(spec)
