"""Evaluation: answers, confidences and scores, against numbers computed another way."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.world import World

from betakd_stages.data import load_samples
from betakd_stages.errors import ConfigError, DataError
from betakd_stages.evaluation.generation import greedy_answers
from betakd_stages.evaluation.metrics import expected_calibration_error
from betakd_stages.evaluation.run import evaluate
from betakd_stages.models.loading import load_model
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import EvaluateSettings

BENCHMARK = "digits:test?count=40"


def settings(world: World, **changes: object) -> EvaluateSettings:
    common = {"model": str(world.student), "benchmark": BENCHMARK, "max_new_tokens": 5}
    return EvaluateSettings.model_validate({**common, **changes})


def test_answers_and_confidences_equal_a_loop_that_runs_the_whole_model_for_each_token(world: World) -> None:
    loaded = load_model(world.teacher)
    # An untrained model may answer with the image placeholder, which the loop below could not feed back.
    loaded.model.get_output_embeddings().weight.data[loaded.model.config.image_token_id] = 0
    samples = [one for one in load_samples("digits:test") if one.category in ("which", "sum")][:12]
    batched = [a for batch in greedy_answers(loaded, samples, batch_size=5, max_new_tokens=5) for a in batch]
    for sample, answer in zip(samples, batched, strict=True):
        prompt = loaded.encoder.encode_prompt(sample)
        assert prompt.image_inputs
        new: list[int] = []
        ids, log_probability = prompt.input_ids[None], 0.0
        while len(new) < 5 and (not new or new[-1] != loaded.encoder.tokenizer.eos_token_id):
            with torch.no_grad():
                logits = loaded.model(input_ids=ids, **prompt.image_inputs).logits[0, -1].double()
            new.append(int(logits.argmax()))
            log_probability += float(logits.log_softmax(0)[new[-1]])
            ids = torch.cat([ids, torch.tensor([[new[-1]]])], dim=1)
        assert answer.text == loaded.encoder.tokenizer.decode(new, skip_special_tokens=True).strip()
        assert abs(answer.confidence - np.exp(log_probability)) < 1e-5


def test_calibration_error_equals_its_definition_bin_by_bin() -> None:
    generator = np.random.default_rng(0)
    confidences = generator.random(500)
    correct = generator.random(500) < confidences**2
    expected = 0.0
    for low in range(15):
        inside = (confidences >= low / 15) & (confidences < (low + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidences[inside].mean())
    assert abs(expected_calibration_error(list(confidences), list(correct)) - expected) < 1e-12
    assert expected_calibration_error([1.0, 1.0], [True, True]) == 0
    assert expected_calibration_error([], []) == 0


def test_scores_follow_from_the_predictions_and_a_second_call_does_nothing(world: World, tmp_path: Path) -> None:
    scores = evaluate(settings(world), tmp_path / "out", progress=SilentProgress())
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [row["sample_id"] for row in rows] == [sample.sample_id for sample in load_samples(BENCHMARK)]
    right = [row["answer"].split() == row["label"].split() for row in rows]
    assert [row["correct"] for row in rows] == right
    assert scores["accuracy"] == pytest.approx(100 * np.mean(right))
    for category, accuracy in scores["accuracy_by_category"].items():
        own = [flag for row, flag in zip(rows, right, strict=True) if row["category"] == category]
        assert accuracy == pytest.approx(100 * np.mean(own))
    stamp = (tmp_path / "out" / "scores.json").stat().st_mtime_ns
    assert evaluate(settings(world), tmp_path / "out", progress=SilentProgress()) == scores
    assert (tmp_path / "out" / "scores.json").stat().st_mtime_ns == stamp


def test_agreement_counts_equal_answers_right_or_wrong(world: World, tmp_path: Path) -> None:
    evaluate(settings(world, model=str(world.teacher)), tmp_path / "teacher", progress=SilentProgress())
    with_reference = settings(world, reference=str(tmp_path / "teacher"))
    scores = evaluate(with_reference, tmp_path / "student", progress=SilentProgress())
    answers = [
        [json.loads(line)["answer"] for line in (tmp_path / name / "predictions.jsonl").read_text().splitlines()]
        for name in ("teacher", "student")
    ]
    assert scores["agreement"] == pytest.approx(100 * np.mean([a == b for a, b in zip(*answers, strict=True)]))


def test_what_is_wrong_is_said_in_one_line(world: World, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="benchmark 'vqa' is unknown: use one of digits"):
        evaluate(settings(world, benchmark="vqa"), tmp_path / "out", progress=SilentProgress())
    with pytest.raises(DataError, match="holds no predictions.jsonl: run `betakd-pipe evaluate TEACHER` into it first"):
        evaluate(settings(world, reference=str(tmp_path)), tmp_path / "out", progress=SilentProgress())
    assert not (tmp_path / "out").exists()
    evaluate(settings(world), tmp_path / "out", progress=SilentProgress())
    with pytest.raises(ConfigError, match="out holds scores of another evaluation: weights_sha256 is"):
        evaluate(settings(world, model=str(world.teacher)), tmp_path / "out", progress=SilentProgress())
    shutil.copytree(tmp_path / "out", tmp_path / "short")
    lines = (tmp_path / "short" / "predictions.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "short" / "predictions.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(DataError, match="the reference lacks 'digits-test-.*': evaluate the teacher on the same"):
        evaluate(settings(world, reference=str(tmp_path / "short")), tmp_path / "new", progress=SilentProgress())
