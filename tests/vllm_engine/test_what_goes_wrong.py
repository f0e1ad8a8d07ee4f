"""Samples that an engine cannot take, engines that fail, and runs that are killed: one clear line, and nothing lost."""

import contextlib
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.vllm_engine.engine_world import EngineWorld, assert_same_caches, command

from betakd_cache import open_cache
from betakd_stages.data import load_samples
from betakd_stages.data.sample import Sample, Turn
from betakd_stages.models.loading import load_encoder
from betakd_stages.settings import CacheTeacherSettings
from betakd_stages.teachers.opening import open_teacher

COMMAND = Path(sys.executable).with_name("betakd-pipe")
AT_WORK_S = 300.0


def spawned(process_id: int) -> set[int]:
    """The processes that descend from one."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        parents[int(path.parent.name)] = int(fields[1])
    found = {process_id}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {process_id}


def test_killed_and_resumed_the_cache_is_that_of_an_uninterrupted_run(
    engine_world: EngineWorld, one_pass: Path
) -> None:
    out = engine_world.folder / "killed"
    settings = {"batch_size": 2, "bucket_window": 2, "shard_samples": 4, "vllm.max_num_batched_tokens": 64}
    words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    arguments = ["cache-teacher", *engine_world.arguments(out), "--backend", "vllm", *words]
    with subprocess.Popen([str(COMMAND), *arguments], stderr=subprocess.DEVNULL) as process:
        deadline_s = time.monotonic() + AT_WORK_S
        while not list(out.glob("shard-*.parquet")) or not len(open_cache(out, allow_incomplete=True)):
            assert time.monotonic() < deadline_s
            assert process.poll() is None
            time.sleep(0.002)
        engines = spawned(process.pid)
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL
    kept = len(open_cache(out, allow_incomplete=True))
    assert 4 <= kept < 20
    deadline_s = time.monotonic() + 60
    while any(Path(f"/proc/{engine}").exists() for engine in engines):
        assert time.monotonic() < deadline_s, "an engine outlives its parent"
        time.sleep(0.05)
    assert command(*arguments) == 0
    assert_same_caches(one_pass, out, tolerance=1e-5)


def test_samples_that_cannot_be_scored_are_recorded_with_reasons_and_the_others_kept(
    engine_world: EngineWorld, tmp_path: Path
) -> None:
    rows = json.loads((engine_world.folder / "data" / "train.json").read_text(encoding="utf-8"))[:4]
    images = tmp_path / "images"
    shutil.copytree(engine_world.folder / "data" / "images", images)
    (images / "broken.png").write_bytes(b"\x89PNG no more")
    rows.append(row("broken", "<image>\nis it even ?", "yes") | {"image": "broken.png"})
    shortest = Sample("shortest", None, (Turn("is it even ?", "1"),))
    others = len(load_encoder(engine_world.teacher).encode(shortest).input_ids) - 1
    rows += [row(f"of {length} tokens", "is it even ?", "1" * (length - others)) for length in (63, 64, 65)]
    (tmp_path / "train.json").write_text(json.dumps(rows), encoding="utf-8")
    data = f"llava:{tmp_path}/train.json?images={images}"
    arguments = ["--teacher", str(engine_world.teacher), "--data", data, "--backend", "vllm"]
    out = str(tmp_path / "cache")
    assert command("cache-teacher", *arguments, "--out", out, "--set", "max_rejected=3") == 0
    cache = open_cache(out)
    assert len(cache) == 5
    assert set(cache.rejected) == {"broken", "of 64 tokens", "of 65 tokens"}
    assert cache.rejected["of 64 tokens"] == (
        "it is 64 tokens long, vLLM takes at most 63 with a context of 64: backend hf takes 64"
    )
    assert "sample of 65 tokens is 65 tokens long, at most 64 are taken" in cache.rejected["of 65 tokens"]
    assert "broken.png" in cache.rejected["broken"]


def row(name: str, question: str, answer: str) -> dict[str, object]:
    """A sample in LLaVA's form."""
    return {"id": name, "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}


def test_a_sample_on_which_the_engine_dies_is_found_and_the_others_are_scored(
    engine_world: EngineWorld, caplog: pytest.LogCaptureFixture
) -> None:
    settings = CacheTeacherSettings(teacher=str(engine_world.teacher), data=engine_world.data, backend="vllm")
    with contextlib.closing(open_teacher(settings)) as teacher:
        good, bad = (teacher.encoder.encode(sample) for sample in load_samples(settings.data)[2:4])
        bad = dataclasses.replace(bad, image_inputs={"pixel_values": torch.zeros(1, 3, 5, 5)})
        scored = teacher.score([bad, good])
        assert [record.sample_id for record in scored.records] == [good.sample_id]
        assert list(scored.rejected) == [bad.sample_id]
        assert scored.rejected[bad.sample_id].startswith("vLLM fails on it (")
        assert "a new engine is started to find the sample" in caplog.text
        assert len(teacher.score([good]).records) == 1


def test_more_entries_than_the_vocabulary_has_are_all_of_them(engine_world: EngineWorld, tmp_path: Path) -> None:
    """No engine's limit on log probabilities is left: what is asked for is what it is started with."""
    arguments = ["cache-teacher", "--teacher", str(engine_world.teacher), "--data", engine_world.data, "--limit", "3"]
    stable = ["--backend", "vllm_prompt_logprobs", "--temperatures", "1", "--features", "", "--top-p", "1"]
    assert command(*arguments, *stable, "--out", str(tmp_path / "cache"), "--top-k", "200") == 0
    cache = open_cache(tmp_path / "cache")
    assert cache.record(0).entry_counts.tolist() == [34] * len(cache.record(0).token_ids)
    assert (cache.record(0).tail_lse == -float("inf")).all()
