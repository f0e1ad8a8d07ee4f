"""What a report refuses: files that are missing, damaged or of other questions, and scenarios that cannot be shown."""

import html
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.pipeline.report.fixture_folders import METHODS, make_scenario

from betakd_pipe.report import ReportError, ReportScenario, write_report


@pytest.fixture
def small(tmp_path: Path) -> ReportScenario:
    """A scenario that a test may damage."""
    return make_scenario(tmp_path / "runs", methods={"ce": METHODS["ce"]}, seeds=(0,), num_steps=60, num_questions=12)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("damage", ["edited", "emptied"])
def test_a_damaged_cache_is_said_to_be_and_the_report_goes_on(
    damage: str, small: ReportScenario, tmp_path: Path
) -> None:
    manifest = small.folder / "seed-0" / "cache" / "manifest.json"
    if damage == "edited":
        manifest.write_bytes(manifest.read_bytes().replace(b"llava", b"other"))
    else:
        manifest.unlink()
    write_report(tmp_path / "report.html", "CE", [], [small])
    page = html.unescape(read(tmp_path / "report.html"))
    assert "? in the teacher’s cache (a cache cannot be read: see the settings below)" in page
    reason = (
        f"{manifest} is damaged or was edited" if damage == "edited" else f"{manifest.parent} is not a cache, it has no"
    )
    assert f"The cache cannot be read: {reason}" in page
    (line,) = [line for line in read(next(tmp_path.glob("tables/*caches.md"))).splitlines() if "seed-0" in line]
    assert [cell.strip() for cell in line.split("|")][2:7] == ["cannot be read", "–", "–", "–", "1"]


@pytest.mark.parametrize(
    "name", ["runs/ce/metrics.jsonl", "runs/ce/evaluation/predictions.jsonl", "teacher-evaluation/scores.json"]
)
def test_a_missing_file_is_named(name: str, small: ReportScenario, tmp_path: Path) -> None:
    path = small.folder / "seed-0" / name
    path.unlink()
    with pytest.raises(ReportError) as error:
        write_report(tmp_path / "report.html", "CE", [], [small])
    assert str(error.value) == (
        f"{path}: no such file, expected that of a finished run: run the ablation again, it goes on"
    )


def test_a_damaged_line_is_named(small: ReportScenario, tmp_path: Path) -> None:
    path = small.rows[0].run / "metrics.jsonl"
    path.write_text(read(path).replace('"step": 40', '"step": '), encoding="utf-8")
    with pytest.raises(ReportError, match=r"metrics.jsonl, line 2: not JSON \(Expecting value\): delete that run and"):
        write_report(tmp_path / "report.html", "CE", [], [small])


def test_predictions_on_other_questions_are_refused(small: ReportScenario, tmp_path: Path) -> None:
    path = small.rows[0].run / "evaluation" / "predictions.jsonl"
    path.write_text("".join(read(path).splitlines(keepends=True)[:-1]), encoding="utf-8")
    with pytest.raises(ReportError, match=r"answers other questions than .*teacher-evaluation, expected the same"):
        write_report(tmp_path / "report.html", "CE", [], [small])


def test_predictions_that_do_not_fit_the_benchmark_are_refused(small: ReportScenario, tmp_path: Path) -> None:
    shutil.rmtree(small.folder / "seed-0" / "teacher-evaluation")
    path = small.rows[0].run / "evaluation" / "predictions.jsonl"
    path.write_text(read(path).replace("digits-test", "digits-other"), encoding="utf-8")
    with pytest.raises(ReportError, match=r"question .* is 'digits-other.*but the benchmark has 'digits-test"):
        write_report(tmp_path / "report.html", "CE", [], [small])


def test_a_scenario_without_rows_is_refused(small: ReportScenario, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="scenario D1: found no finished run, expected at least one: see why"):
        write_report(tmp_path / "report.html", "CE", [], [replace(small, rows=[])])


def test_two_scenarios_of_one_name_are_refused(small: ReportScenario, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="found two scenarios called D1, expected different names: rename"):
        write_report(tmp_path / "report.html", "CE", [], [small, small])
