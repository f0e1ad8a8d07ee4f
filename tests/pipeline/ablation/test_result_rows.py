"""What of an evaluation's scores becomes a row of an ablation."""

from pathlib import Path
from typing import Any

from betakd_pipe.ablation.rows import ResultRow, result_row
from betakd_pipe.ablation.spec import PlannedRun
from betakd_stages.settings import DistillSettings, EvaluateSettings


def scored(own: float, **official: Any) -> dict[str, Any]:
    return {
        "benchmark": "one:two",
        "max_new_tokens": 16,
        "accuracy": own,
        "accuracy_by_category": {"all": own},
        "official": official,
        "agreement": 70.0,
        "expected_calibration_error": 0.25,
        "brier_score": 0.125,
    }


def row_of(folder: Path, scores: dict[str, Any]) -> ResultRow:
    (folder / "timings.jsonl").write_text('{"step": 2, "seconds_per_step": 0.5}\n', encoding="utf-8")
    settings = DistillSettings(student="s", data="d", objective={"energies": []})  # type: ignore[arg-type]
    return result_row(PlannedRun("m", 0, folder, settings, EvaluateSettings(model="m", benchmark=("b",))), scores, {})


def test_official_numbers_stand_beside_the_accuracy(tmp_path: Path) -> None:
    row = row_of(tmp_path, scored(50.0, accuracy=51.0, img_accuracy=30.0, tasks={"count": 1.0}))
    assert row.accuracy == 50.0
    assert row.scores == {"img_accuracy": 30.0, "brier_score": 0.125}
    assert row.figure("img_accuracy") == 30.0


def test_of_several_benchmarks_the_first_leads_and_all_have_their_numbers(tmp_path: Path) -> None:
    several = {"gqa": scored(40.0, open=20.0), "pope": scored(80.0, mean_f1=85.0)}
    row = row_of(tmp_path, {"benchmarks": several, "six_benchmark_average": 61.0})
    assert (row.accuracy, row.agreement, row.accuracy_by_category) == (40.0, 70.0, {"all": 40.0})
    assert row.figure("six_benchmark_average") == 61.0
    assert (row.figure("gqa.accuracy"), row.figure("gqa.open")) == (40.0, 20.0)
    assert row.figure("open") == 20.0
    assert (row.figure("pope.accuracy"), row.figure("pope.mean_f1")) == (80.0, 85.0)


def test_answers_without_confidence_have_no_calibration_error(tmp_path: Path) -> None:
    scores = {name: value for name, value in scored(50.0).items() if name != "expected_calibration_error"}
    assert row_of(tmp_path, scores).expected_calibration_error is None


def test_the_distance_from_a_teacher_has_columns_of_its_own(tmp_path: Path) -> None:
    distance = {"wasserstein_1": 1.5, "agreement": None, "num_samples": 12}
    scores = scored(50.0) | {"matching": distance}
    assert row_of(tmp_path, scores).figure("matching.wasserstein_1") == 1.5
    row = row_of(tmp_path, {"benchmarks": {"gqa": scores}})
    assert row.figure("gqa.matching.wasserstein_1") == row.figure("matching.wasserstein_1") == 1.5
    assert row.figure("matching.agreement") is None
    assert row.agreement == 70.0
