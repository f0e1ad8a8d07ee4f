"""Temperature scaling through whole evaluations of tiny models."""

from pathlib import Path

import pytest
from tests.stages.evaluation.drawn_runs import BENCHMARK, predictions_in, run_of, settings
from tests.stages.evaluation.official_files import write_gqa
from tests.world import World

from betakd_stages.data import load_samples
from betakd_stages.evaluation import preparation
from betakd_stages.evaluation.benchmarks import load_benchmark
from betakd_stages.evaluation.benchmarks.base import Benchmark
from betakd_stages.evaluation.metrics import calibration_scores
from betakd_stages.evaluation.preparation import prepared
from betakd_stages.evaluation.run import evaluate
from betakd_stages.evaluation.temperature_scaling import fitted_temperature, scaled
from betakd_stages.progress import SilentProgress


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(world, tmp_path_factory.mktemp("scaled") / "run", posterior={})


def test_temperature_scaling_is_fitted_on_the_held_out_part_and_scored_on_the_other(run: Path, tmp_path: Path) -> None:
    held_out = "digits:validation?count=25"
    asked = settings(run, calibrate_on=held_out)
    scores = evaluate(asked, tmp_path / "out", progress=SilentProgress())
    rows, others = predictions_in(tmp_path / "out"), predictions_in(tmp_path / "out" / "calibration")
    assert [row["sample_id"] for row in others] == [sample.sample_id for sample in load_samples(held_out)]
    temperature = fitted_temperature([row["confidence"] for row in others], [row["correct"] for row in others])
    after = scaled([row["confidence"] for row in rows], temperature)
    expected = {"temperature": temperature, "fitted_on": held_out}
    assert scores["temperature_scaling"] == {
        **expected,
        **calibration_scores(after, [row["correct"] for row in rows]),
    }
    plain = evaluate(settings(run), tmp_path / "plain", progress=SilentProgress())
    assert {name: scores[name] for name in plain} == plain
    stamp = (tmp_path / "out" / "scores.json").stat().st_mtime_ns
    assert evaluate(asked, tmp_path / "out", progress=SilentProgress()) == scores
    assert (tmp_path / "out" / "scores.json").stat().st_mtime_ns == stamp


def test_each_benchmark_and_its_held_out_part_is_loaded_once(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gqa, held_out, loaded = write_gqa(tmp_path / "gqa"), "digits:validation?count=25", []

    def counted(text: str) -> Benchmark:
        loaded.append(text)
        return load_benchmark(text)

    monkeypatch.setattr(preparation, "load_benchmark", counted)
    tasks = prepared(settings(run, benchmark=[gqa, BENCHMARK], calibrate_on=held_out), tmp_path / "out")
    assert sorted(loaded) == sorted([gqa, BENCHMARK, held_out])
    parts = [task.held_out and task.held_out.benchmark.samples.specification for task in tasks]
    assert parts == [None, held_out]
    assert [task.settings.calibrate_on for task in tasks] == [(), (held_out,)]
