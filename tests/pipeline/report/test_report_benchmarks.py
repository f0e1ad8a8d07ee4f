"""Reports of evaluations on several benchmarks."""

import json
from pathlib import Path

from tests.pipeline.report.fixture_folders import make_scenario

from betakd_pipe.report import write_report
from betakd_pipe.report.records import read_predictions, read_scores


def test_of_several_benchmarks_the_first_is_reported(tmp_path: Path) -> None:
    scenario = make_scenario(tmp_path / "ablation", num_questions=12)
    evaluation = scenario.rows[-1].run / "evaluation"
    predictions, scores = read_predictions(evaluation), dict(read_scores(evaluation))
    one_page = write_report(tmp_path / "one.html", "title", [], [scenario]).read_text(encoding="utf-8")
    for folder in [*(row.run / "evaluation" for row in scenario.rows), *scenario.folder.glob("*/teacher-evaluation")]:
        if not (folder / "scores.json").is_file():
            continue
        (folder / "first").mkdir()
        (folder / "predictions.jsonl").rename(folder / "first" / "predictions.jsonl")
        own = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        several = {"benchmarks": {"first": own, "second": {"accuracy": 1.0}}}
        (folder / "scores.json").write_text(json.dumps(several), encoding="utf-8")
    assert read_predictions(evaluation) == predictions
    assert read_scores(evaluation) == scores
    assert write_report(tmp_path / "two.html", "title", [], [scenario]).read_text(encoding="utf-8") == one_page
