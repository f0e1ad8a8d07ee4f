"""`evaluate` on benchmarks of the official formats: several at once, interrupted and resumed, the same as `score`."""

import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.stages.evaluation.official_files import WRITERS
from tests.stages.models.world import folder_of

from betakd_stages.errors import ConfigError
from betakd_stages.evaluation import generation
from betakd_stages.evaluation.generation import Answer, greedy_answers
from betakd_stages.evaluation.run import evaluate
from betakd_stages.evaluation.scoring import score_file
from betakd_stages.models.loading import LoadedModel
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import EvaluateSettings

SUBJECT = ("questions_sha256", "weights_sha256", "max_new_tokens", "backend", "precision")
DIGITS = "digits:test?count=10"


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("benchmarks")
    return {name: write(folder / name) for name, write in WRITERS.items()}


def settings(*benchmarks: str, **changes: Any) -> EvaluateSettings:
    model = str(folder_of("llava (CLIP)"))
    common = {"model": model, "benchmark": list(benchmarks), "batch_size": 3, "max_new_tokens": 3}
    return EvaluateSettings.model_validate({**common, **changes})


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_six_benchmarks_give_six_folders_one_average_and_the_numbers_of_score(
    benchmarks: dict[str, str], tmp_path: Path
) -> None:
    summary = evaluate(settings(*benchmarks.values()), tmp_path, progress=SilentProgress())
    assert list(summary["benchmarks"]) == list(benchmarks)
    assert 0 <= summary["six_benchmark_average"] <= 100
    assert json.loads((tmp_path / "scores.json").read_text(encoding="utf-8")) == summary
    for name, specification in benchmarks.items():
        evaluated = json.loads((tmp_path / name / "scores.json").read_text(encoding="utf-8"))
        assert evaluated == summary["benchmarks"][name]
        scored = score_file(specification, tmp_path / name / "predictions.jsonl")
        assert {key: evaluated[key] for key in scored} == scored
        assert "brier_score" in scored
        assert set(evaluated) - set(scored) == set(SUBJECT)
        rows = read(tmp_path / name / "predictions.jsonl")
        assert {"sample_id", "label", "answer", "correct", "question_id", "prompt", "text"} <= set(rows[0])
        assert all(row["text"] == row["answer"] for row in rows)
    assert not list(tmp_path.rglob("answers-under-way*"))
    before = files_in(tmp_path)
    assert evaluate(settings(*benchmarks.values()), tmp_path, progress=SilentProgress()) == summary
    assert files_in(tmp_path) == before


def test_an_evaluation_that_is_cut_off_ends_as_an_uninterrupted_one_and_repeats_no_whole_batch(
    benchmarks: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = settings(benchmarks["gqa"], benchmarks["mmbench"])
    evaluate(asked, tmp_path / "whole", progress=SilentProgress())
    num_asked: list[int] = []

    def counted(loaded: LoadedModel, samples: Any, **options: Any) -> Iterator[list[Answer]]:
        for batch in greedy_answers(loaded, samples, **options):
            if len(num_asked) == 3:
                raise KeyboardInterrupt
            num_asked.append(len(batch))
            yield batch

    monkeypatch.setattr(generation, "greedy_answers", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(asked, tmp_path / "cut", progress=SilentProgress())
    assert num_asked == [3, 1, 3]  # gqa whole, one batch of three of mmbench
    under_way = tmp_path / "cut" / "mmbench" / "answers-under-way.jsonl"
    assert len(read(under_way)) == 1 + 3
    assert (tmp_path / "cut" / "gqa" / "scores.json").is_file()
    with under_way.open("a", encoding="utf-8") as file:
        file.write('{"text": "a whole answer of a batch", "confidence": 0.5}\n{"text": "half an ans')
    num_asked.clear()
    evaluate(asked, tmp_path / "cut", progress=SilentProgress())
    assert num_asked == [3, 3]
    assert files_in(tmp_path / "cut") == files_in(tmp_path / "whole")


def test_answers_of_another_model_are_not_mixed_in(benchmarks: dict[str, str], tmp_path: Path) -> None:
    line = json.dumps({"benchmark": "gqa:elsewhere"}) + "\n"
    (tmp_path / "answers-under-way.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(ConfigError, match="holds scores of another evaluation: benchmark is 'gqa:elsewhere' there"):
        evaluate(settings(benchmarks["gqa"]), tmp_path, progress=SilentProgress())
    assert (tmp_path / "answers-under-way.jsonl").read_text(encoding="utf-8") == line


def test_answers_that_another_process_writes_are_left_alone(benchmarks: dict[str, str], tmp_path: Path) -> None:
    with (tmp_path / "answers-under-way.jsonl").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match=f"{tmp_path} is being written by another process: wait for it, or end"):
            evaluate(settings(benchmarks["gqa"]), tmp_path, progress=SilentProgress())
    evaluate(settings(benchmarks["gqa"]), tmp_path, progress=SilentProgress())
    assert sorted(files_in(tmp_path)) == ["predictions.jsonl", "scores.json"]


def test_two_benchmarks_of_one_name_are_refused(benchmarks: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="benchmarks digits, digits: each may be named once in an evaluation"):
        evaluate(settings(DIGITS, "digits:validation"), tmp_path, progress=SilentProgress())


def test_agreement_and_the_teachers_quartiles_are_read_from_a_folder_of_the_same_form(
    benchmarks: dict[str, str], tmp_path: Path
) -> None:
    names = (benchmarks["gqa"], benchmarks["pope"])
    evaluate(settings(*names), tmp_path / "teacher", progress=SilentProgress())
    asked = settings(*names, reference=str(tmp_path / "teacher"))
    scores = evaluate(asked, tmp_path / "student", progress=SilentProgress())["benchmarks"]
    assert {name: one["agreement"] for name, one in scores.items()} == {"gqa": 100, "pope": 100}
    rows = sorted(read(tmp_path / "teacher" / "pope" / "predictions.jsonl"), key=lambda row: -row["confidence"])
    quarter = [100 * sum(row["correct"] for row in rows[start : start + 3]) / 3 for start in (0, 3, 6, 9)]
    found = scores["pope"]["accuracy_by_reference_confidence"]
    assert list(found.values()) == pytest.approx(quarter)
