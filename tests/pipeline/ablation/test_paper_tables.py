"""The ablations that come with the package: their rows, their settings, and the paper's figures beside them."""

from pathlib import Path

import pytest

from betakd_pipe.ablation.paper_tables import reported, spec_path, table_description, table_names
from betakd_pipe.ablation.shaped import shaped_table
from betakd_pipe.ablation.spec import AblationSpec, all_methods, plan_run
from betakd_pipe.cli import main
from betakd_pipe.config import load_settings
from betakd_stages.errors import ConfigError
from betakd_stages.evaluation.scoring import AVERAGED
from betakd_stages.settings import DistillSettings

ENERGIES = (
    *("fkl", "rkl", "skew_fkl", "skew_rkl", "js", "tvd", "adaptive_kl", "ctkd", "taid"),
    *("mse_logits", "mse_probs", "cosine_logits", "cosine_probs"),
)
WEIGHTINGS = {"unweighted": "fixed", "manual": "manual", "task": "task", "instance": "instance"}
INPUTS = {"student": "student", "cache": "cache", "data": "digits:transfer", "evaluate.benchmark": "digits"}


def spec_of(table: str, **flags: str) -> AblationSpec:
    return load_settings(AblationSpec, spec_path(table), {**INPUTS, **flags})


def settings_of(table: str, recipe: str = "digits") -> dict[str, DistillSettings]:
    spec = spec_of(table, recipe=recipe)
    return {method: plan_run(spec, Path("out"), method, 0).settings for method in all_methods(spec)}


def energies_of(settings: DistillSettings) -> list[str]:
    return [energy.name for energy in settings.objective.energies]


def test_table_1_is_the_labels_alone_and_each_of_13_energies_alone() -> None:
    methods = settings_of("paper-table-1")
    assert len(methods) == 14
    labels = methods.pop("ce")
    assert (energies_of(labels), labels.objective.cross_entropy_weight) == ([], 1.0)
    assert sorted(methods) == sorted(ENERGIES)
    for name, settings in methods.items():
        assert energies_of(settings) == [name]
        assert settings.objective.cross_entropy_weight == 0.0
        assert (settings.weighting.name, settings.weighting.options) == ("fixed", {"beta": 1.0})


@pytest.mark.parametrize(
    ("table", "without", "features"), [("paper-table-2", "mse_logits", []), ("paper-table-3", "ctkd", ["vision"])]
)
def test_tables_2_and_3_are_12_energies_weighted_in_four_ways(table: str, without: str, features: list[str]) -> None:
    methods = settings_of(table)
    assert len(methods) == 48
    wanted = {f"{energy}-{variant}" for energy in ENERGIES if energy != without for variant in WEIGHTINGS}
    assert set(methods) == wanted
    for name, settings in methods.items():
        energy, variant = name.split("-")
        assert energies_of(settings) == [energy]
        assert [feature.name for feature in settings.objective.features] == features
        assert settings.weighting.name == WEIGHTINGS[variant]
        assert settings.objective.cross_entropy_weight == 1.0
        if variant == "unweighted":
            assert settings.weighting.options == {"beta": 1.0}


def test_table_4_is_align_kd_with_two_energies_in_three_ways_over_six_benchmarks() -> None:
    methods = settings_of("paper-table-4")
    wanted = {f"{name}-{variant}" for name in ("align_kd", "cosine_kd") for variant in ("manual", "task", "instance")}
    assert set(methods) == {"ce", *wanted}
    for name, settings in methods.items():
        if name != "ce":
            assert energies_of(settings) == [{"align_kd": "fkl", "cosine_kd": "cosine_probs"}[name.split("-")[0]]]
            assert [(feature.name, feature.options) for feature in settings.objective.features] == [
                ("vision", {"focus": True})
            ]
    table = spec_of("paper-table-4").table
    assert table is not None
    asked = {f"{name}.{number}" for name, (number, _) in AVERAGED.items()}
    assert set(table.columns.values()) == {*asked, "six_benchmark_average"}


def test_table_5_is_of_llava_qwen_and_table_6_of_three_weightings_each_in_its_own_process() -> None:
    spec = spec_of("paper-table-5")
    assert spec.recipe == "llava-qwen-scienceqa"
    assert list(all_methods(spec)) == ["ce", *WEIGHTINGS]
    spec = spec_of("paper-table-6")
    assert list(all_methods(spec)) == ["unweighted", "task", "instance"]
    assert spec.own_processes
    for table in ("paper-table-5", "paper-table-6"):
        (note,) = [note for note in shaped_table(spec_of(table), []).notes if "so none stand" in note]
        assert note.startswith("The package does not hold the paper's figures of table")


def test_the_same_table_runs_with_the_settings_of_any_recipe() -> None:
    digits, mobile = (settings_of("paper-table-2", recipe) for recipe in ("digits", "mobilevlm-v2-scienceqa"))
    assert digits["fkl-task"].weighting.learning_rate == 0.5
    assert digits["fkl-instance"].weighting.learning_rate == 0.01
    assert digits["fkl-task"].training.steps == 280
    assert {mobile[name].weighting.learning_rate for name in ("fkl-task", "fkl-instance")} == {4e-4}
    assert mobile["fkl-task"].training.precision == "bf16"
    assert energies_of(mobile["fkl-task"]) == ["fkl"]


@pytest.mark.parametrize(("table", "key"), [(f"paper-table-{number}", f"table_{number}") for number in (1, 2, 3)])
def test_the_papers_figures_are_there_for_every_row_of_tables_1_to_3(table: str, key: str) -> None:
    figures = reported(key).figures
    assert set(figures) == set(all_methods(spec_of(table)))
    for of_method in figures.values():
        for numbers in of_method.values():
            assert all(0 < number < 100 for number in numbers)


def test_some_of_the_papers_figures_are_as_printed() -> None:
    """Read off the paper's pages by eye."""
    assert reported("table_1").figures["mse_logits"] == {"accuracy": [4.9, 10.5]}
    assert reported("table_2").figures["cosine_probs-instance"] == {"accuracy": [54.9], "img_accuracy": [67.5]}
    assert reported("table_2").figures["skew_fkl-instance"] == {"accuracy": [51.0], "img_accuracy": [60.0]}
    assert reported("table_3").figures["tvd-task"] == {"accuracy": [54.1], "img_accuracy": [64.7]}
    assert reported("table_3").figures["mse_logits-unweighted"] == {"accuracy": [46.4], "img_accuracy": [51.1]}


def test_every_variant_has_a_label_in_its_table() -> None:
    for table in table_names():
        spec = spec_of(table)
        assert spec.table is not None
        variants = [name for variants in spec.axes.values() for name in variants]
        # A table of combinations alone has a column for each axis, any other one for the methods.
        assert set(all_methods(spec) if spec.methods else variants) == set(spec.table.labels)


def test_the_tables_are_listed_and_printed_beside_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[-6:] == [f"{name} (ablate): {table_description(name)}" for name in table_names()]
    assert main(["recipes", "paper-table-6"]) == 0
    assert capsys.readouterr().out == spec_path("paper-table-6").read_text(encoding="utf-8")


def test_a_table_that_does_not_exist_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="paper-table-22: no such file, and no .*; did you mean paper-table-2?"):
        spec_path("paper-table-22")
