"""The rules against what the official scorers themselves made of the same answers (vectors in tests/vectors)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from betakd_stages.evaluation.benchmarks import gqa, mmbench, mme, pope, scienceqa, textvqa
from betakd_stages.evaluation.benchmarks.base import Grades, Prediction
from betakd_stages.evaluation.benchmarks.vqa_answers import normalised

VECTORS = Path(__file__).parents[2] / "vectors"


def vector(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))


def require_tallies_to_be_the_official_numbers(grades: Grades) -> None:
    for name, tally in grades.tallies.items():
        assert tally.value() == grades.official[name]


def test_scienceqa_parses_and_counts_as_llavas_script() -> None:
    made = vector("scienceqa_cases")
    labels, predictions = [], []
    for case in made["cases"]:
        labels.append(scienceqa.LETTERS[case["answer_index"]])
        text, mark = case["prediction"], "<image>\n" if case["prompt_has_image_tag"] else ""
        predictions.append(None if text is None else Prediction(text, f"{mark}Which?"))
    grades = scienceqa.grade(labels, predictions)
    assert list(grades.parsed) == [case["parsed"] for case in made["cases"]]
    assert list(grades.correct) == [case["correct"] for case in made["cases"]]
    assert grades.official["accuracy"] == made["acc"]
    assert grades.official["img_accuracy"] == made["img_accuracy"]
    assert grades.official["num_correct"] == made["correct"]
    assert grades.official["num_with_image"] == sum(case["is_multimodal"] for case in made["cases"])
    require_tallies_to_be_the_official_numbers(grades)


def test_gqa_converts_and_counts_as_the_authors_script_does() -> None:
    made = vector("gqa_cases")
    references = [gqa.Reference(one["answer"], one["structural"], "all", one["balanced"]) for one in made["cases"]]
    grades = gqa.grade(references, [Prediction(case["raw_prediction"]) for case in made["cases"]])
    assert list(grades.parsed) == [case["converted"] for case in made["cases"]]
    assert list(grades.correct) == [case["correct"] for case in made["cases"]]
    names = {"Binary": "binary", "Open": "open", "Accuracy": "accuracy", "Distribution": "distribution"}
    for line in made["stdout"]:
        name, _, value = line.partition(": ")
        percent = "%" if name != "Distribution" else " (lower is better)"
        assert f"{grades.official[names[name]]:.2f}{percent}" == value
    require_tallies_to_be_the_official_numbers(grades)


def test_textvqa_normalises_and_scores_as_llavas_script() -> None:
    made = vector("textvqa_cases")
    assert {case["in"]: normalised(case["in"]) for case in made["normalize"]} == {
        case["in"]: case["out"] for case in made["normalize"]
    }
    for case in made["prompt_to_question"]:
        assert textvqa.question_in(case["prompt"]) == case["question"]
    predictions = [Prediction(case["prediction"]) for case in made["scores"]]
    grades = textvqa.grade([case["gt"] for case in made["scores"]], predictions)
    np.testing.assert_allclose(grades.correct, [case["score"] for case in made["scores"]], rtol=1e-15)
    assert grades.official["accuracy"] == pytest.approx(100 * made["mean_of_scores"], rel=1e-15)
    require_tallies_to_be_the_official_numbers(grades)


def test_at_most_thirty_two_full_stops_are_removed_as_by_the_official_call() -> None:
    assert normalised("x." * 40) == "x" * 32 + "x." * 8


def test_pope_parses_and_counts_as_llavas_script() -> None:
    made = vector("pope_cases")
    assert [pope.parse(case["text"]) for case in made["cases"]] == [case["parsed"] for case in made["cases"]]
    for texts, labels, metrics in (
        ([case["text"] for case in made["cases"]], [case["label"] for case in made["cases"]], made["metrics"]),
        (made["small"]["texts"], made["small"]["labels"], made["small"]["metrics"]),
    ):
        grades = pope.grade([("random", label) for label in labels], [Prediction(text) for text in texts])
        assert grades.official["random"] == metrics
        assert grades.official["mean_f1"] == 100 * metrics["f1"]
        require_tallies_to_be_the_official_numbers(grades)


def test_mme_parses_as_the_authors_tool() -> None:
    for case in vector("mme_parse_cases")["cases"]:
        assert mme.parse(case["text"]) == case["official"], case


def test_mme_scores_every_task_as_the_authors_tool() -> None:
    made = vector("mme_small")
    lines = [(task, *row) for task, rows in made["input"].items() for row in rows]
    references = [(task, image, label.lower()) for task, image, _, label, _ in lines]
    grades = mme.grade(references, [Prediction(text) for *_, text in lines])
    assert grades.official["tasks"] == made["expected"]["per_task"]
    assert grades.official["perception"] == made["expected"]["perception"]
    assert grades.official["cognition"] == made["expected"]["cognition"]
    require_tallies_to_be_the_official_numbers(grades)


def test_mmbench_reads_letters_as_vlmevalkit() -> None:
    made = vector("mmbench_cases")
    for case in made["cases"]:
        expected = case["vlmevalkit_can_infer"] or mmbench.NO_ANSWER
        assert mmbench.parse(case["prediction"], made["choices"]) == expected, case


def test_mmbench_counts_a_question_that_is_right_in_all_rotations() -> None:
    made = vector("mmbench_cases")
    questions = [
        mmbench.Question(row["index"], {key: row[key] for key in "ABCD" if row[key]}, row["answer"])
        for row in made["circular_rows"]
    ]
    grades = mmbench.grade(questions, [Prediction(row["prediction"]) for row in made["circular_rows"]])
    expected = made["expected"]
    assert grades.official["circular_accuracy"] == 100 * expected["circular_acc"]
    assert grades.official["single_pass_accuracy"] == 100 * expected["vanilla_acc_main_rows_exact_first_letter"]
    assert grades.official["accuracy_of_rows"] == 100 * expected["vanilla_acc_all_rows"]
    require_tallies_to_be_the_official_numbers(grades)
