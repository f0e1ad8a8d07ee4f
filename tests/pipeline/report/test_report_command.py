"""`betakd-pipe report` on folders as the other commands leave them, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from tests.pipeline.report.fixture_folders import METHODS, make_scenario

from betakd_pipe.ablation.rows import ResultRow, write_row
from betakd_pipe.ablation.spec import AblationSpec, all_methods, plan_run
from betakd_pipe.cli import main
from betakd_pipe.report import ReportError, read_scenario


@pytest.fixture
def ablation(tmp_path: Path) -> Path:
    """An ablation of two methods and two seeds, of which one run is missing."""
    chosen = {name: METHODS[name] for name in ("ce", "fkl-task")}
    scenario = make_scenario(tmp_path, "table", chosen, seeds=(0, 1), num_steps=60, num_questions=12)
    spec = AblationSpec.model_validate(
        {
            "seeds": [0, 1],
            "student": "student",
            "data": "digits:transfer?label_noise=0.3",
            "cache": f"{scenario.folder}/seed-{{seed}}/cache",
            "base": {"training": {"steps": 60}},
            "evaluate": {"benchmark": "digits"},
            "methods": {
                "ce": {"objective": {"energies": []}},
                "fkl-task": {"objective": {"energies": ["fkl"]}, "weighting": {"name": "task"}},
            },
        }
    )
    (scenario.folder / "spec.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json", exclude_defaults=True)))
    rows: dict[tuple[str, int], ResultRow] = {(row.method, row.seed): row for row in scenario.rows}
    for method in all_methods(spec):
        for seed in spec.seeds:
            if (method, seed) != ("fkl-task", 1):
                write_row(plan_run(spec, scenario.folder, method, seed), rows[method, seed])
    return scenario.folder


def test_an_unfinished_ablation_is_shown_as_far_as_it_is_done(
    ablation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page" / "index.html"
    assert main(["report", str(ablation), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: 1 section, tables/ and figures/ beside it\n"
    page = out.read_text(encoding="utf-8")
    assert "Unfinished: 3 of 4 runs are done, and this is what they say so far." in page
    assert "2 methods, 2 seeds; data digits:transfer?label_noise=0.3; student student; cache" in page
    assert "<title>Distillation report: table</title>" in page
    assert (tmp_path / "page" / "tables" / "table-methods.csv").is_file()
    assert (tmp_path / "page" / "figures" / "table-beta-fkl.svg").is_file()


def test_several_folders_are_several_sections_and_a_run_is_one(ablation: Path, tmp_path: Path) -> None:
    run = ablation / "seed-0" / "runs" / "ce"
    (run / "result.json").write_text(json.dumps({"steps": 60, "metrics": {"cross_entropy": 0.5}}))
    out = tmp_path / "page.html"
    assert main(["report", str(run), str(ablation), "--out", str(out), "--title", "Both", "--baseline", "ce"]) == 0
    page = out.read_text(encoding="utf-8")
    assert '<section id="ce">' in page
    assert '<section id="table">' in page
    assert "<title>Both</title>" in page
    assert read_scenario(run).rows[0].seconds == pytest.approx(0.6)  # of its own timings


def test_what_is_no_ablation_and_no_finished_run_is_refused(ablation: Path, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"neither an ablation \(spec.yaml\) nor a finished run \(result.json\)"):
        read_scenario(tmp_path)
    run = ablation / "seed-0" / "runs" / "ce"
    (run / "result.json").write_text(json.dumps({"steps": 60, "metrics": {}}))
    shutil.rmtree(run / "evaluation")
    with pytest.raises(ReportError, match=r"ce: has no evaluation/scores.json, .*: betakd-pipe evaluate .*ce --benchm"):
        read_scenario(run)


def test_nothing_is_written_where_the_baseline_is_no_method(
    ablation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page" / "index.html"
    assert main(["report", str(ablation), "--out", str(out), "--baseline", "fkl"]) == 2
    assert "--baseline fkl: no such method, expected one of ce, fkl-task" in capsys.readouterr().err
    assert not out.parent.exists()
