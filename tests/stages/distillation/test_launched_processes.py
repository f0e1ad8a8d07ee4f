"""How a step is shared out changes nothing: one process, several batches, two processes (DDP, FSDP2) train alike."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.world import World

from betakd_pipe.cli import main
from betakd_stages.caching.run import cache_teacher
from betakd_stages.distillation import launching
from betakd_stages.distillation.checkpoints import last_checkpoint
from betakd_stages.distillation.training_log import read_rows
from betakd_stages.errors import ConfigError
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings, DistillSettings

NUM_SAMPLES, STEP = 13, 6
"""No multiple of each other: the orders of two epochs meet inside a step."""
NUM_STEPS = 7
LAUNCHER = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"]
LAUNCHER += ["--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
DDP = [*LAUNCHER, "--multi_gpu", "-m", "betakd_pipe"]
FSDP2 = [*LAUNCHER, "--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
FSDP2 += ["--fsdp_cpu_ram_efficient_loading", "false", str(Path(__file__).with_name("fsdp_on_cpu.py"))]
START_S = 240.0


@pytest.fixture(scope="module")
def arguments(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run over samples of which a third has no image, in random batches: some process has none in a step."""
    folder = tmp_path_factory.mktemp("mixed")
    samples = []
    for number in range(NUM_SAMPLES):
        image = {} if number % 3 == 0 else {"image": f"{number}.png"}
        if image:
            Image.effect_noise((16, 16), 60 + number).convert("RGB").save(folder / image["image"])
        question = ("<image>\n" if image else "") + "is this digit even ?"
        answer = "yes" if number % 2 else "no yes no"
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        samples.append({"id": str(number), **image, "conversations": turns})
    (folder / "train.json").write_text(json.dumps(samples))
    data = f"llava:{folder / 'train.json'}?images={folder}"
    chosen = CacheTeacherSettings(teacher=str(world.teacher), data=data, batch_size=5)
    cache_teacher(chosen, folder / "cache", progress=SilentProgress())
    training = {
        "steps": NUM_STEPS,
        "global_batch_size": STEP,
        "learning_rate": 1e-3,
        "optimizer": "adamw_torch",
        "log_every_steps": 2,
        "checkpoint_every_steps": 3,
        "num_threads": 1,
    }
    return [
        *("distill", "--student", str(world.student), "--cache", str(folder / "cache"), "--data", data),
        *("--energy", "fkl", "--energy", "taid", "--feature", "vision", "--feature", "prompt"),
        *("--weighting", "instance"),
        *(part for name, value in training.items() for part in ("--set", f"training.{name}={value}")),
    ]


@pytest.fixture(scope="module")
def alone(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    assert main([*arguments, "--set", f"training.batch_size={STEP}", "--out", str(out)]) == 0
    return out


def start(launcher: list[str], arguments: list[str], out: Path, batch_size: int) -> subprocess.Popen[str]:
    command = [*launcher, *arguments, "--set", f"training.batch_size={batch_size}", "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=START_S)
    assert process.returncode == 0, errors
    return output


def assert_alike(run: Path, other: Path) -> None:
    """The same losses in every row, and the same weights of the student and of all that was learned beside it."""
    for name in ("model/model.safetensors", "weighting.safetensors"):
        left, right = load_file(run / name), load_file(other / name)
        assert left.keys() == right.keys()
        for key, value in left.items():
            torch.testing.assert_close(right[key], value, atol=2e-5, rtol=1e-4, msg=key)
    assert_alike_probes(*(read_rows(path / "probe.jsonl") for path in (run, other)))
    rows, others = (read_rows(path / "metrics.jsonl") for path in (run, other))
    assert [row["step"] for row in rows] == [row["step"] for row in others] == [2, 4, 6, 7]
    for row, twin in zip(rows, others, strict=True):
        assert row.keys() == twin.keys()
        for key, value in row.items():
            assert value == twin[key] or math.isclose(value, twin[key], rel_tol=1e-3, abs_tol=1e-4), (key, value)


def assert_alike_probes(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """Measured after the same steps, on the same samples, with the same figures."""
    assert [row["step"] for row in rows] == [row["step"] for row in others] == [0, 1, 2, 4, 7]
    for row, twin in zip(rows, others, strict=True):
        assert row["samples"].keys() == twin["samples"].keys()
        assert row["samples"].pop("sample_id") == twin["samples"].pop("sample_id")
        for name, values in row["samples"].items():
            own, theirs = (np.array(each, dtype=np.float64) for each in (values, twin["samples"][name]))
            np.testing.assert_allclose(own, theirs, rtol=1e-3, atol=1e-4, err_msg=name)  # NaN where a channel is not
        distances = [each["log_probabilities"]["wasserstein_1"] for each in (row, twin)]
        assert distances[0] == pytest.approx(distances[1], rel=1e-3, abs=1e-4)


def test_one_batch_equals_as_many_batches_of_one(arguments: list[str], alone: Path, tmp_path: Path) -> None:
    assert main([*arguments, "--set", "training.batch_size=1", "--out", str(tmp_path / "run")]) == 0
    assert_alike(alone, tmp_path / "run")


def test_two_processes_equal_one(arguments: list[str], alone: Path, tmp_path: Path) -> None:
    """DDP over gloo; accumulated batches too: 6 samples are 2 processes x 3 batches x 1 sample."""
    output = finish(start(DDP, arguments, tmp_path / "run", batch_size=1))
    assert output.count(f"{NUM_STEPS} steps; objective") == 1
    assert_alike(alone, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(path.name for path in alone.iterdir())


def interrupt(launcher: list[str], arguments: list[str], out: Path) -> None:
    """SIGTERM to the launcher, which hands it on, as soon as there is a checkpoint."""
    process = start(launcher, arguments, out, batch_size=3)
    deadline = time.monotonic() + START_S
    while last_checkpoint(out / "checkpoints") is None and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=START_S)
    assert not (out / "model").exists()
    assert last_checkpoint(out / "checkpoints") is not None


def test_two_processes_that_hold_a_shard_each_equal_one(arguments: list[str], alone: Path, tmp_path: Path) -> None:
    """FSDP2 over gloo, decoder layers apart; the student is gathered at the end."""
    finish(start(FSDP2, arguments, tmp_path / "run", batch_size=3))
    assert_alike(alone, tmp_path / "run")


@pytest.mark.long
def test_two_processes_that_hold_a_shard_each_resume(arguments: list[str], alone: Path, tmp_path: Path) -> None:
    """Checkpoints hold whole tensors, gathered and shared out again."""
    often = [*arguments, "--set", "training.checkpoint_every_steps=2"]
    interrupt(FSDP2, often, tmp_path / "run")
    finish(start(FSDP2, often, tmp_path / "run", batch_size=3))
    assert_alike(alone, tmp_path / "run")


@pytest.mark.long
@pytest.mark.parametrize("num_processes", [1, 2])
def test_what_two_processes_began_is_ended_by_two_or_by_one(
    arguments: list[str], alone: Path, tmp_path: Path, num_processes: int
) -> None:
    often, out = [*arguments, "--set", "training.checkpoint_every_steps=2"], tmp_path / "run"
    interrupt(DDP, often, out)
    if num_processes == 1:
        assert main([*often, "--set", "training.batch_size=3", "--out", str(out)]) == 0
    else:
        finish(start(DDP, often, out, batch_size=3))
    assert_alike(alone, out)


def settings(world: World, **changes: object) -> DistillSettings:
    common = {"student": str(world.student), "cache": str(world.cache), "data": world.data}
    return DistillSettings.model_validate({**common, **changes})


def test_what_several_processes_cannot_do_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "index_and_count", lambda: (0, 2))
    launching.require_what_processes_can(settings(world))
    with pytest.raises(ConfigError, match="weighting pcgrad combines gradients in one process, 2 were started"):
        launching.require_what_processes_can(settings(world, weighting={"name": "pcgrad"}))
    monkeypatch.setitem(os.environ, "ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="FSDP version 1 was asked for.*--fsdp_version 2"):
        launching.require_what_processes_can(settings(world))
    monkeypatch.setitem(os.environ, "FSDP_VERSION", "2")
    launching.require_what_processes_can(settings(world))
    with pytest.raises(ConfigError, match="adapter qlora runs in one process or with DDP, not with FSDP: use those"):
        launching.require_what_processes_can(settings(world, adapter={"kind": "qlora"}))
    measured = settings(world, training={"evaluate_every_steps": 5}, validation=world.data)
    with pytest.raises(ConfigError, match="with FSDP no process holds the whole student"):
        launching.require_what_processes_can(measured)
    monkeypatch.delitem(os.environ, "ACCELERATE_USE_FSDP")
    monkeypatch.setattr(launching, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ConfigError, match="ZeRO-3 was asked for, stages 1 and 2"):
        launching.require_what_processes_can(settings(world))


@pytest.mark.long
@pytest.mark.parametrize(("launcher", "batch_size"), [(DDP, 1), (FSDP2, 3)], ids=["DDP", "FSDP2"])
def test_two_processes_with_a_vision_cache_equal_one_that_sees_pixels(
    world: World, arguments: list[str], alone: Path, tmp_path: Path, launcher: list[str], batch_size: int
) -> None:
    vision = ["--student", str(world.student), "--data", arguments[arguments.index("--data") + 1]]
    assert main(["cache-vision", *vision, "--exact", "--out", str(tmp_path / "vision")]) == 0
    more = ["--vision-cache", str(tmp_path / "vision"), "--set", "training.data_workers=2"]
    finish(start(launcher, [*arguments, *more], tmp_path / "run", batch_size))
    assert_alike(alone, tmp_path / "run")
