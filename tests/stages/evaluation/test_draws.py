"""Students drawn from a run's posterior, through whole evaluations of tiny models."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tests.stages.evaluation.drawn_runs import BENCHMARK, NUM_DRAWS, predictions_in, run_of, settings
from tests.stages.evaluation.official_files import write_gqa
from tests.world import World

from betakd_pipe.cli import main
from betakd_stages.data import load_samples
from betakd_stages.errors import ConfigError, ModelError
from betakd_stages.evaluation.answers import UnderWay
from betakd_stages.evaluation.draws import DrawnStudents, answer_probabilities, quantiles
from betakd_stages.evaluation.generation import Answer, greedy_answers
from betakd_stages.evaluation.metrics import calibration, calibration_scores
from betakd_stages.evaluation.run import evaluate
from betakd_stages.models.loading import load_model
from betakd_stages.posterior.snapshot_files import shares_of_draw, snapshot_paths
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import EvaluateSettings


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(world, tmp_path_factory.mktemp("drawn") / "run")


@pytest.fixture(scope="module")
def drawn(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation with draws."""
    out = tmp_path_factory.mktemp("drawn") / "scores"
    evaluate(settings(run, draws=NUM_DRAWS), out, progress=SilentProgress())
    return out


def test_the_answers_are_the_runs_own_and_a_forward_pass_gives_them_their_confidence(
    run: Path, drawn: Path, tmp_path: Path
) -> None:
    evaluate(settings(run), tmp_path / "plain", progress=SilentProgress())
    plain, rows = predictions_in(tmp_path / "plain"), predictions_in(drawn)
    assert [row["answer"] for row in rows] == [row["answer"] for row in plain]
    own = [row["confidence"] for row in plain]
    np.testing.assert_allclose([row["map_confidence"] for row in rows], own, atol=1e-6)


def test_a_forward_pass_gives_answers_that_ended_and_that_were_cut_the_confidence_they_were_written_with(
    world: World, run: Path
) -> None:
    untrained = load_model(world.teacher)
    untrained.model.get_output_embeddings().weight.data[untrained.model.config.image_token_id] = 0
    samples, num_tokens = load_samples(BENCHMARK), []
    for student in (DrawnStudents(run).student, untrained):
        for most in (1, 5):
            answers = [a for b in greedy_answers(student, samples, batch_size=8, max_new_tokens=most) for a in b]
            own = [answer.confidence for answer in answers]
            np.testing.assert_allclose(answer_probabilities(student, samples, answers, 7), own, atol=1e-5)
            num_tokens += [len(answer.token_ids) for answer in answers]
    assert {1, 2, 5} <= set(num_tokens)


def test_a_draw_is_the_mixture_of_the_snapshots_and_gives_its_own_probabilities(run: Path, drawn: Path) -> None:
    students = DrawnStudents(run)
    snapshots = [load_file(path) for path in snapshot_paths(run / "posterior")]
    samples = load_samples(BENCHMARK)
    answers = [a for b in greedy_answers(students.student, samples, batch_size=8, max_new_tokens=4) for a in b]
    probabilities = []
    for draw in range(NUM_DRAWS):
        students.become_draw(0, draw)
        shares = shares_of_draw(3, 0, draw)
        state = students.student.model.state_dict()
        for name in ("lm_head.weight", "model.multi_modal_projector.linear_1.bias"):
            expected = sum(share * one[name].double() for share, one in zip(shares, snapshots, strict=True))
            torch.testing.assert_close(state[name].double(), expected, atol=1e-6, rtol=1e-6)
        probabilities.append(answer_probabilities(students.student, samples, answers, 8))
    rows = predictions_in(drawn)
    assert np.std(probabilities, axis=0).max() > 1e-3
    np.testing.assert_allclose([row["confidence"] for row in rows], np.mean(probabilities, axis=0), atol=1e-6)
    low, high = np.quantile(probabilities, [0.05, 0.95], axis=0)
    np.testing.assert_allclose([row["credible_interval"] for row in rows], np.stack([low, high], axis=1), atol=1e-6)


def test_the_scores_have_intervals_over_the_draws_own_answers_and_calibration_of_the_mean(
    run: Path, drawn: Path
) -> None:
    scores, rows = json.loads((drawn / "scores.json").read_text()), predictions_in(drawn)
    correct = [row["correct"] for row in rows]
    for name, value in calibration([row["confidence"] for row in rows], correct).items():
        assert scores[name] == value
    for name, value in calibration_scores([row["map_confidence"] for row in rows], correct).items():
        assert scores["map"][name] == value
    students, accuracies = DrawnStudents(run), []
    samples = load_samples(BENCHMARK)
    for draw in range(NUM_DRAWS):
        students.become_draw(0, draw)
        answers = [a for b in greedy_answers(students.student, samples, batch_size=8, max_new_tokens=4) for a in b]
        right = [a.text.split() == s.turns[0].answer.split() for a, s in zip(answers, samples, strict=True)]
        accuracies.append(100 * np.mean(right))
    assert scores["credible_intervals"]["accuracy"] == pytest.approx(np.quantile(accuracies, [0.05, 0.95]))
    assert scores["credible_intervals"]["official.accuracy"] == scores["credible_intervals"]["accuracy"]
    assert scores["mean_of_draws"]["accuracy"] == pytest.approx(np.mean(accuracies))
    low, high = scores["credible_intervals"]["expected_calibration_error"]
    assert 0 <= low < high <= 1


def test_an_evaluation_cut_between_two_draws_ends_as_the_whole_one(run: Path, drawn: Path, tmp_path: Path) -> None:
    class Cut(SilentProgress):
        def start(self, description: str, total: int, done: int = 0) -> None:
            self.left = total // 2 if "draws" in description else total + 1

        def advance(self, num_units: int = 1, **shown: float | str) -> None:
            self.left -= num_units
            if self.left == 0:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(settings(run, draws=NUM_DRAWS), tmp_path / "out", progress=Cut())
    assert len((tmp_path / "out" / "draws-under-way.jsonl").read_text().splitlines()) == 1 + NUM_DRAWS // 2
    evaluate(settings(run, draws=NUM_DRAWS), tmp_path / "out", progress=SilentProgress())
    for name in ("predictions.jsonl", "scores.json"):
        assert (tmp_path / "out" / name).read_bytes() == (drawn / name).read_bytes()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"predictions.jsonl", "scores.json"}


def test_draws_of_another_evaluation_are_refused_and_go_before_the_answers_they_are_of(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, asked = tmp_path / "out", settings(run, benchmark="digits:test?count=5", draws=2)
    out.mkdir()
    (out / "draws-under-way.jsonl").write_text('{"benchmark": "gqa:elsewhere"}\n')
    with pytest.raises(ConfigError, match="holds scores of another evaluation: benchmark is 'gqa:elsewhere' there"):
        evaluate(asked, out, progress=SilentProgress())
    (out / "draws-under-way.jsonl").unlink()

    def killed(self: UnderWay[Any]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(UnderWay, "remove", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(asked, out, progress=SilentProgress())
    assert {path.name for path in out.iterdir()} == {"answers-under-way.jsonl", "predictions.jsonl", "scores.json"}


def test_students_with_adapters_are_drawn_from_what_trained_of_them_beside_the_student_they_started_from(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = shutil.copytree(world.student, tmp_path / "student")
    run = run_of(world, tmp_path / "run", student=str(student), adapter={"kind": "lora", "rank": 2})
    scores = evaluate(settings(run, draws=2), tmp_path / "drawn", progress=SilentProgress())
    plain = evaluate(settings(run), tmp_path / "plain", progress=SilentProgress())
    assert scores["map"]["brier_score"] == pytest.approx(plain["brier_score"], abs=1e-5)
    assert scores["brier_score"] != scores["map"]["brier_score"]
    (weights,) = student.glob("*.safetensors")
    rebuilt = {name: tensor + 0.01 for name, tensor in load_file(weights).items()}
    save_file(rebuilt, weights, {"format": "pt"})
    asked = ("--benchmark", BENCHMARK, "--draws", "2", "--out", str(tmp_path / "out"))
    capsys.readouterr()  # what loading said
    assert main(["evaluate", str(run), *asked]) == 2
    error = capsys.readouterr().err
    assert f"{student} is not the student that {run / 'posterior'} was sampled around: base_weights_sha256 is" in error
    assert "Put that student back, or distil again into another folder" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_drawn_students_take_questions_that_are_longer_than_what_the_run_trained_on(
    world: World, run: Path, tmp_path: Path
) -> None:
    kept = yaml.safe_load((run / "config.yaml").read_text())
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "posterior").symlink_to(run / "posterior")
    (folder / "config.yaml").write_text(yaml.safe_dump({**kept, "max_length": 3}), encoding="utf-8")
    assert DrawnStudents(folder).student.encoder.max_length == load_model(world.student).encoder.max_length != 3


def test_what_cannot_be_drawn_or_calibrated_is_one_line_and_leaves_nothing(
    world: World, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, gqa = tmp_path / "out", write_gqa(tmp_path / "gqa")
    common = ("--benchmark", BENCHMARK, "--out", str(out))
    for model, flags, message in (
        (world.student, ("--draws", "4"), "holds no posterior/, from which students could be drawn: name a run"),
        (run, ("--set", "interval_level=0.5"), "interval_level is 0.5, but it is of draws, which is not given: give"),
        (run, ("--set", "seed=3"), "seed is 3, but it is of draws, which is not given: give draws, or leave seed out"),
        (run, ("--set", "on_mismatch=drop"), "on_mismatch is drop, but it is of cache, which is not given"),
        (run, ("--draws", "1"), "draws is 1, but an interval needs at least 2"),
        (
            run,
            ("--draws", "4", "--backend", "vllm"),
            "draws is 4, which backend hf in precision fp32 can do, found vllm",
        ),
        (run, ("--calibrate-on", BENCHMARK), f"holds 30 of the questions that are evaluated ({BENCHMARK}): name"),
        (run, ("--calibrate-on", f"{BENCHMARK}&label_noise=0.9"), "holds 30 of the questions that are evaluated"),
        (run, ("--calibrate-on", "digits:test"), "calibrate_on digits:test holds 30 of the questions that are"),
        (run, ("--calibrate-on", gqa), "calibrate_on names gqa, which is not evaluated: name another part of digits"),
    ):
        assert main(["evaluate", str(model), *common, *flags]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not out.exists()


def test_the_command_prints_credible_intervals_by_name(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = ("--benchmark", BENCHMARK, "--draws", "2", "--set", "interval_level=0.5", "--set", "max_new_tokens=3")
    assert main(["evaluate", str(run), *asked, "--out", str(out)]) == 0
    low, high = json.loads((out / "scores.json").read_text())["credible_intervals"]["brier_score"]
    assert f"credible_intervals.brier_score: {low:.5g} to {high:.5g}\n" in capsys.readouterr().out


def test_a_run_whose_settings_are_gone_is_named(run: Path, tmp_path: Path) -> None:
    for content, reason in ((None, "No such file"), ("student: [", "while parsing"), ("seed: 1\n", "validation error")):
        folder = tmp_path / reason.split()[0]
        folder.mkdir()
        (folder / "posterior").symlink_to(run / "posterior")
        if content is not None:
            (folder / "config.yaml").write_text(content)
        with pytest.raises(ConfigError, match=f"config.yaml cannot be read as the settings of a run \\(.*{reason}"):
            DrawnStudents(folder)


def test_an_answer_that_names_an_image_cannot_be_read_back(run: Path) -> None:
    students = DrawnStudents(run)
    image = students.student.encoder.image_token_id
    samples = load_samples(BENCHMARK)
    with pytest.raises(ModelError, match="stands for an image and cannot be read back as text: train .* longer"):
        answer_probabilities(students.student, samples[:1], [Answer("", 0.5, (image,))], 1)


def test_quantiles_are_of_the_middle() -> None:
    values = np.arange(101.0)[:, None] * [1.0, 2.0]
    np.testing.assert_allclose(quantiles(values.tolist(), 0.9), [[5.0, 95.0], [10.0, 190.0]])


def test_settings_that_were_kept_with_all_defaults_can_be_read_back(run: Path) -> None:
    for asked in (settings(run), settings(run, draws=2, seed=3, interval_level=0.5)):
        assert EvaluateSettings.model_validate(asked.model_dump(mode="json")) == asked
