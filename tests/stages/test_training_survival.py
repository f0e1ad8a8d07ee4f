"""Runs of stage two that are killed or told to stop: resumed, they end byte for byte as the uninterrupted one."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.launcher import Launcher
from tests.world import World

from betakd_pipe.cli import main
from betakd_stages.distillation.callback import RunCallback
from betakd_stages.distillation.checkpoints import last_checkpoint
from betakd_stages.distillation.interruption import stop_requests
from betakd_stages.distillation.run import distill
from betakd_stages.errors import Interrupted
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import DistillSettings

DEFAULT_HANDLERS: dict[int, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
NUM_STEPS = 24
LOG_EVERY_STEPS = 3
AT_WORK_S = 120.0


@pytest.fixture(autouse=True)
def _default_handlers() -> Iterator[None]:
    """As for a command in a terminal: what a shell starts in the background ignores Ctrl-C."""
    before = {number: signal.signal(number, handler) for number, handler in DEFAULT_HANDLERS.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def arguments(world: World, out: Path) -> list[str]:
    """A run in which everything has state: three energies, learned weights, a schedule, three epochs, accumulation."""
    training = {
        "steps": NUM_STEPS,
        "batch_size": 3,
        "accumulation": 2,
        "learning_rate": 1e-3,
        "log_every_steps": LOG_EVERY_STEPS,
        "checkpoint_every_steps": 5,
        "num_threads": 1,
    }
    return [
        *("distill", "--student", str(world.student), "--cache", str(world.cache), "--data", world.data),
        *("--energy", "taid", "--energy", "ctkd", "--energy", "fkl", "--weighting", "instance", "--out", str(out)),
        *(part for name, value in training.items() for part in ("--set", f"training.{name}={value}")),
    ]


@pytest.fixture(scope="module")
def reference(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("reference") / "run"
    assert main(arguments(world, out)) == 0
    assert num_rows(out) == NUM_STEPS // LOG_EVERY_STEPS
    return out


def num_rows(run: Path) -> int:
    """How many rows of metrics there are at this moment."""
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def assert_same_run(found: Path, expected: Path) -> None:
    """Equal bytes, in the student, in what was learned beside it, and in the metrics."""
    for name in ("model/model.safetensors", "weighting.safetensors", "metrics.jsonl", "result.json"):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name


def stop_at_work(launcher: Launcher, command: list[str], run: Path, by: signal.Signals, at: float) -> None:
    """Send a signal to a run that starts or goes on.

    `at` from 0 to 1: how much of the rows that are left it has written when the signal comes, nearly; where between
    two rows is a matter of chance.
    """
    child = launcher.start(command)
    before = num_rows(run)
    wanted = before + 1 + int(at * (NUM_STEPS // LOG_EVERY_STEPS - before - 2))
    deadline_s = time.monotonic() + AT_WORK_S
    while num_rows(run) < wanted:
        assert Path(f"/proc/{child}").exists(), "the command failed by itself"
        assert time.monotonic() < deadline_s
        time.sleep(0.001)
    os.kill(child, by)
    status = launcher.status()
    if by == signal.SIGKILL:
        assert os.WTERMSIG(status) == signal.SIGKILL
    else:
        assert os.waitstatus_to_exitcode(status) == 128 + by
        checkpoint = last_checkpoint(run / "checkpoints")
        assert checkpoint is not None
        assert f"after step {checkpoint.name.removeprefix('checkpoint-')} of" in (run / "log.txt").read_text()


def run_campaign(world: World, launcher: Launcher, reference: Path, out: Path, generator: random.Random) -> None:
    """Kill a run once and tell it to stop once, in either order, each at a random moment, and let it end."""
    for by in generator.sample([signal.SIGKILL, signal.SIGTERM], 2):
        stop_at_work(launcher, arguments(world, out), out, by, at=generator.uniform(0, 0.5))
    assert main(arguments(world, out)) == 0
    assert_same_run(out, reference)


def test_a_run_killed_and_told_to_stop_ends_as_the_uninterrupted_one(
    world: World, launcher: Launcher, reference: Path, tmp_path: Path
) -> None:
    run_campaign(world, launcher, reference, tmp_path / "run", random.Random(7))


@pytest.mark.long
def test_ten_random_kills_change_nothing(world: World, launcher: Launcher, reference: Path, tmp_path: Path) -> None:
    generator = random.Random(8)
    for number in range(5):
        run_campaign(world, launcher, reference, tmp_path / f"run {number}", generator)


class Stop(SilentProgress):
    """A signal while a step is under way."""

    def __init__(self, at_step: int, by: signal.Signals) -> None:
        self._at_step = at_step
        self._by = by
        self._step = 0

    def start(self, description: str, total: int, done: int = 0) -> None:
        self._step = done

    def advance(self, num_units: int = 1, **shown: float | str) -> None:
        self._step += num_units
        if self._step == self._at_step and num_units:
            signal.raise_signal(self._by)


def test_a_stop_leaves_a_checkpoint_at_that_very_step_and_no_trace_in_the_metrics(
    reference: Path, tmp_path: Path
) -> None:
    """Between two rows, where an epoch ends, where a checkpoint was due anyway, and at the last step."""
    settings = DistillSettings.model_validate(yaml.safe_load((reference / "config.yaml").read_text()))
    run = tmp_path / "run"
    stops = [(4, signal.SIGTERM), (8, signal.SIGINT), (10, signal.SIGTERM), (23, signal.SIGTERM), (24, signal.SIGTERM)]
    for step, by in stops:
        with pytest.raises(Interrupted, match=f"stopped by {by.name} after step {step} of 24, .*goes on") as caught:
            distill(settings, run, progress=Stop(step, by))
        assert caught.value.exit_code == {signal.SIGTERM: 143, signal.SIGINT: 130}[by]
        assert last_checkpoint(run / "checkpoints") == run / "checkpoints" / f"checkpoint-{step}"
        assert not (run / "model").exists()
        written = (run / "metrics.jsonl").read_bytes()
        assert (reference / "metrics.jsonl").read_bytes().startswith(written)
        assert num_rows(run) == step // LOG_EVERY_STEPS
    assert distill(settings, run, progress=SilentProgress()).steps == NUM_STEPS
    assert_same_run(run, reference)


def test_a_signal_after_the_last_step_is_not_swallowed(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DistillSettings.model_validate(yaml.safe_load((reference / "config.yaml").read_text()))
    one_step = settings.model_copy(update={"training": settings.training.model_copy(update={"steps": 1})})
    monkeypatch.setattr(RunCallback, "on_train_end", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        distill(one_step, tmp_path / "run", progress=SilentProgress())
    assert not (tmp_path / "run" / "model").exists()


def test_a_stop_is_noted_once_and_the_handlers_are_as_before_afterwards() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with stop_requests() as request:
        assert request.signal is None
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert request.signal is signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_second_ctrl_c_does_not_wait() -> None:
    with stop_requests() as request:
        signal.raise_signal(signal.SIGINT)
        assert request.signal is signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_signal_that_another_handles_stays_theirs() -> None:
    """Such as Ctrl-C in a worker process, which its parent handles, or under nohup."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_requests() as request:
            signal.raise_signal(signal.SIGINT)
            assert request.signal is None
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            signal.raise_signal(signal.SIGTERM)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_no_handler_is_set() -> None:
    found = []

    def enter() -> None:
        with stop_requests():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]
