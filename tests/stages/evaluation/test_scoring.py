"""Files of predictions: whose answer a row is, what is refused, intervals, comparisons, the average of six."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from tests.stages.evaluation.official_files import WRITERS, write_gqa, write_lines, write_scienceqa, write_textvqa

from betakd_stages.errors import DataError
from betakd_stages.evaluation.benchmarks import load_benchmark
from betakd_stages.evaluation.benchmarks.base import Benchmark, Prediction
from betakd_stages.evaluation.predictions import read_predictions
from betakd_stages.evaluation.scoring import score_file, scores_of, six_benchmark_average

PERFECT = {"accuracy": 100, "img_accuracy": 100, "mean_f1": 100, "perception": 2000, "circular_accuracy": 100}


def right_answers(benchmark: Benchmark) -> list[dict[str, Any]]:
    """A file's rows, all right, in another order than the benchmark's."""
    rows = [
        {**row, "text": sample.turns[0].answer, "answer_id": "x", "model_id": "m", "metadata": {}}
        for row, sample in zip(benchmark.rows, benchmark.samples, strict=True)
    ]
    return [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]


def refusal(specification: str, path: Path, against: Path | None = None) -> str:
    with pytest.raises(DataError) as error:
        score_file(specification, path, against)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", WRITERS)
def test_right_answers_in_any_order_score_in_full(name: str, tmp_path: Path) -> None:
    specification = WRITERS[name](tmp_path)
    path = write_lines(tmp_path / "answers.jsonl", right_answers(load_benchmark(specification)))
    scores = score_file(specification, path)
    assert scores["accuracy"] == 100
    if name != "textvqa":  # 4 to 6 of 10 people say nokia, all that counts
        assert all(value == 100 for value in scores["accuracy_by_category"].values())
    for key, full in PERFECT.items():
        assert scores["official"].get(key, full) == pytest.approx(full)
    for key, (low, high) in scores["intervals"].items():
        assert high == pytest.approx(scores["official"][key])
        assert low == high or name == "pope"  # a resample of four lines may have no yes, and then no F1


@pytest.mark.parametrize("name", WRITERS)
def test_wrong_answers_score_nothing_and_answers_in_part_lie_inside_their_interval(name: str, tmp_path: Path) -> None:
    benchmark = load_benchmark(WRITERS[name](tmp_path))
    wrong = {"yes": "no", "no": "yes", "Yes": "No", "No": "Yes"}
    labels = [sample.turns[0].answer for sample in benchmark.samples]
    prompts = [str(row["prompt"]) for row in benchmark.rows]
    bad = [Prediction(wrong.get(label, "zzz"), prompt) for label, prompt in zip(labels, prompts, strict=True)]
    scores = scores_of(benchmark, bad, benchmark.grade(bad))
    assert scores["accuracy"] == 0
    good = [Prediction(label, prompt) for label, prompt in zip(labels, prompts, strict=True)]
    mixed = [*good[: len(good) // 2], *bad[len(good) // 2 :]]
    grades = benchmark.grade(mixed)
    for key, (low, high) in scores_of(benchmark, mixed, grades)["intervals"].items():
        assert low <= grades.official[key] <= high
        assert grades.official[key] == grades.tallies[key].value()


def test_a_missing_answer_is_wrong_in_scienceqa_and_refused_elsewhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    specification = write_scienceqa(tmp_path / "scienceqa")
    rows = [row for row in right_answers(load_benchmark(specification)) if row["question_id"] != "5"]
    scores = score_file(specification, write_lines(tmp_path / "answers.jsonl", rows))
    assert scores["num_missing"] == 1
    assert scores["accuracy"] == 75
    assert scores["official"]["img_accuracy"] == 100  # of the one prediction that is there
    assert scores["official"]["num_with_image"] == 1
    assert "scienceqa: 1 questions have no prediction; they count as wrong" in caplog.text
    specification = write_gqa(tmp_path / "gqa")
    rows = [row for row in right_answers(load_benchmark(specification)) if row["question_id"] not in ("202", "203")]
    path = write_lines(tmp_path / "answers.jsonl", rows)
    message = f"{path} lacks 2 of 4 questions of gqa, the first '202': its rule wants an answer to each"
    assert refusal(specification, path) == message


def test_answers_twice_or_to_other_questions_are_refused(tmp_path: Path) -> None:
    specification = write_textvqa(tmp_path)
    rows = right_answers(load_benchmark(specification))
    path = write_lines(tmp_path / "answers.jsonl", [*rows, rows[1]])
    assert f"row 4 of {path}: it answers ('i" in refusal(specification, path)
    assert "which a row before it answers: keep one of them" in refusal(specification, path)
    path = write_lines(tmp_path / "answers.jsonl", [{**rows[0], "question_id": "i9"}])
    assert "row 1 of" in refusal(specification, path)
    assert "textvqa does not ask ('i9', " in refusal(specification, path)
    assert "score it on the files it was made with" in refusal(specification, path)


def test_rows_without_what_the_rule_reads_are_refused(tmp_path: Path) -> None:
    specification = write_scienceqa(tmp_path)
    rows: tuple[tuple[Mapping[str, Any], str], ...] = (
        ({"text": "A"}, "it has 'text': expected one of question_id, questionId, index"),
        ({"question_id": "5"}, "it has 'question_id': expected one of text, prediction"),
        ({"question_id": "5", "text": "A"}, "it lacks 'prompt', which the rule of scienceqa reads: add what was asked"),
        ({"question_id": "5", "text": None, "prompt": ""}, "its text is missing: expected text"),
        ({"question_id": "5", "text": "A", "prompt": "", "confidence": 2}, "its confidence is 2: expected a prob"),
    )
    for row, message in rows:
        assert message in refusal(specification, write_lines(tmp_path / "answers.jsonl", [row]))
    assert "absent.jsonl cannot be read" in refusal(specification, tmp_path / "absent.jsonl")


def test_the_form_that_gqas_own_script_reads_is_read_too(tmp_path: Path) -> None:
    specification = write_gqa(tmp_path)
    rows = [{"questionId": str(number), "prediction": "yes"} for number in range(201, 205)]
    path = tmp_path / "testdev_predictions.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    assert score_file(specification, path)["official"] == {
        "accuracy": 25,
        "open": 0,
        "binary": 50,
        "distribution": pytest.approx((2 * 2 + 1 + 0) / 4 / 100),
    }


def test_two_questions_that_are_the_same_are_both_answered_and_held_to_the_later_answers(tmp_path: Path) -> None:
    write_textvqa(tmp_path)
    file = tmp_path / "TextVQA_0.5.1_val.json"
    value = json.loads(file.read_text(encoding="utf-8"))
    value["data"].append({**value["data"][0], "question_id": 999, "answers": ["lg"] * 10})
    file.write_text(json.dumps(value), encoding="utf-8")
    benchmark = load_benchmark(f"textvqa={tmp_path}")
    rows = [{**row, "text": text} for row, text in zip(benchmark.rows, ("lg", "x", "x", "nokia"), strict=True)]
    predictions = read_predictions(write_lines(tmp_path / "answers.jsonl", rows), benchmark)
    assert list(benchmark.grade(predictions).correct) == [1, 0, 0, 0]


def test_a_difference_has_the_paired_interval_and_mcnemars_test(tmp_path: Path) -> None:
    questions = {
        str(number): {
            "question": f"What {number}?",
            "answer": "yes",
            "imageId": "n1",
            "isBalanced": True,
            "types": {"structural": "verify"},
        }
        for number in range(400)
    }
    (tmp_path / "testdev_balanced_questions.json").write_text(json.dumps(questions), encoding="utf-8")
    generator = np.random.default_rng(0)
    right = [generator.random(400) < share for share in (0.8, 0.7)]
    paths = [
        write_lines(
            tmp_path / f"{number}.jsonl",
            [{"question_id": str(key), "text": "Yes." if flag else "no"} for key, flag in enumerate(flags)],
        )
        for number, flags in enumerate(right)
    ]
    found = score_file(f"gqa={tmp_path}", paths[0], paths[1])["difference"]
    expected = 100 * (right[0].mean() - right[1].mean())
    assert found["accuracy"]["difference"] == pytest.approx(expected)
    pairs = right[0].astype(float) - right[1]
    theirs = scipy.stats.bootstrap((100 * pairs,), np.mean, method="percentile", rng=1, batch=500)
    np.testing.assert_allclose(found["accuracy"]["interval"], theirs.confidence_interval, atol=0.4)
    only = (right[0] & ~right[1]).sum(), (right[1] & ~right[0]).sum()
    assert found["mcnemar_p_value"] == pytest.approx(scipy.stats.binomtest(only[0], sum(only)).pvalue)
    back = score_file(f"gqa={tmp_path}", paths[1], paths[0])["difference"]
    assert back["accuracy"]["difference"] == pytest.approx(-expected)


def test_runs_that_were_shown_different_images_are_not_compared(tmp_path: Path) -> None:
    specification = write_scienceqa(tmp_path)
    rows = right_answers(load_benchmark(specification))
    shown = write_lines(tmp_path / "shown.jsonl", rows)
    blind = write_lines(tmp_path / "blind.jsonl", [{**row, "prompt": "Which?"} for row in rows])
    assert "has <image> in its prompt in one file of predictions alone" in refusal(specification, shown, blind)
    assert score_file(specification, shown, shown)["difference"]["img_accuracy"]["p_value"] == 1


def test_the_average_is_of_all_six_or_not_given() -> None:
    published = {
        "gqa": {"official": {"accuracy": 59.3}},
        "scienceqa": {"official": {"accuracy": 1.0, "img_accuracy": 66.7}},
        "textvqa": {"official": {"accuracy": 52.1}},
        "pope": {"official": {"mean_f1": 84.3}},
        "mme": {"official": {"perception": 1302.8, "cognition": 300.0}},
        "mmbench": {"official": {"circular_accuracy": 57.7}},
    }
    average = six_benchmark_average(published)  # MobileVLM V2 1.7B, whose paper says 64.2
    assert average is not None
    assert round(average, 1) == 64.2
    for name in published:
        assert six_benchmark_average({key: value for key, value in published.items() if key != name}) is None
    assert six_benchmark_average({**published, "scienceqa": {"official": {"accuracy": 66.7}}}) is None
