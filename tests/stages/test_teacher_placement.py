"""Where and how a teacher runs: what cannot be had here is refused with what is missing, the rest gives its numbers."""

import importlib.util
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from tests.cache.records import assert_equal_records
from tests.stages.test_caching import settings
from tests.world import World

from betakd_cache import CacheError, diff, open_cache
from betakd_pipe.cli import main
from betakd_stages.caching.run import cache_teacher
from betakd_stages.data import load_samples
from betakd_stages.errors import ConfigError
from betakd_stages.models.placement import Placement, place
from betakd_stages.progress import SilentProgress
from betakd_stages.teachers.opening import open_hf_teacher


def refusal(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], *changes: str) -> str:
    """The last line that the command prints with these settings, having cached nothing."""
    flags = ["--teacher", str(world.teacher), "--data", world.data, "--out", str(tmp_path / "cache")]
    assert main(["cache-teacher", *flags, *(part for change in changes for part in ("--set", change))]) == 2
    assert not (tmp_path / "cache").exists()
    return capsys.readouterr().err.splitlines()[-1]


def test_flash_attention_without_a_gpu_the_package_and_bf16_is_refused_with_all_that_is_missing(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refusal(world, tmp_path, capsys, "attention=flash_attention_2") == (
        "betakd-pipe: attention flash_attention_2 needs a GPU, the package flash-attn (pip install flash-attn), "
        "precision bf16 (found fp32): add that, or choose attention sdpa"
    )


def test_flash_attention_with_all_it_needs_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert Placement(attention="flash_attention_2").arguments("bf16") == {"attn_implementation": "flash_attention_2"}
    with pytest.raises(
        ConfigError, match=r"flash_attention_2 needs precision bf16 \(found fp32\): add that, or choose"
    ):
        Placement(attention="flash_attention_2").arguments("fp32")


@pytest.mark.parametrize("quantisation", ["int8", "int4"])
def test_quantisation_without_bitsandbytes_is_refused(
    world: World,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    quantisation: str,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert refusal(world, tmp_path, capsys, f"quantisation={quantisation}") == (
        f"betakd-pipe: quantisation {quantisation} needs the package bitsandbytes: install it (pip install "
        "'betakd-pipe[qlora]'), or leave quantisation out (bf16 halves the weights anywhere, device_map auto spreads "
        "them)"
    )


@pytest.mark.parametrize(("quantisation", "least", "most"), [("int8", 1e-3, 0.3), ("int4", 0.03, 3)])
def test_a_quantised_teacher_runs_without_a_gpu_and_rounds_what_it_says(
    world: World,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    quantisation: str,
    least: float,
    most: float,
) -> None:
    for kind in (quantisation, "none"):
        cache_teacher(settings(world, quantisation=kind, exact=True), tmp_path / kind, progress=SilentProgress())
    identity = open_cache(tmp_path / quantisation).manifest.identity["teacher"]
    assert identity["quantisation"] == quantisation
    difference = diff(tmp_path / quantisation, tmp_path / "none").largest_log_prob_difference
    assert least < difference < most
    assert caplog.records == []


def test_focus_and_an_attention_that_hides_its_weights_exclude_each_other(world: World) -> None:
    with pytest.raises(
        ValidationError, match="vision_focus is 2 and attention sdpa: only eager attention hands out whe"
    ):
        settings(world, features=("vision:tokens",), vision_focus=2, attention="sdpa")


def test_sdpa_and_eager_attention_agree_and_a_cache_is_not_continued_with_the_other(
    world: World, tmp_path: Path
) -> None:
    for attention in ("sdpa", "eager"):
        some = settings(world, attention=attention, exact=True)
        cache_teacher(some, tmp_path / attention, progress=SilentProgress())
        held = open_cache(tmp_path / attention).manifest.identity["teacher"]["attention"]
        assert held == attention
    assert diff(tmp_path / "sdpa", tmp_path / "eager").largest_log_prob_difference < 1e-4
    other = settings(world, attention="eager", exact=True)
    with pytest.raises(CacheError, match='was written with teacher.attention = "sdpa", this run has "eager"; use the'):
        cache_teacher(other, tmp_path / "sdpa", progress=SilentProgress())


def test_device_maps_and_quantisation_say_where_weights_go_so_that_nothing_moves_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.nn.Module, "to", lambda *arguments: pytest.fail("moved"))
    arguments = Placement(device_map="auto").arguments("bf16")
    assert arguments == {"device_map": "auto"}
    place(torch.nn.Linear(1, 1), arguments)  # type: ignore[arg-type]


def test_a_teacher_with_a_device_map_says_the_same_bit_for_bit(world: World, tmp_path: Path) -> None:
    for device_map in ("single", "auto"):
        cache_teacher(settings(world, device_map=device_map), tmp_path / device_map, progress=SilentProgress())
    one, other = open_cache(tmp_path / "single"), open_cache(tmp_path / "auto")
    for index in range(len(one)):
        assert_equal_records(other.record(index), one.record(index))


def test_a_batch_that_is_too_much_for_the_gpu_is_refused_with_its_size(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = settings(world)
    teacher = open_hf_teacher(some)
    loaded = teacher.loaded
    encoded = [loaded.encoder.encode(sample) for sample in load_samples(world.data)[:3]]
    longest = max(len(sample.input_ids) for sample in encoded)

    def too_much(*inputs: object, **named: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(loaded.model.base_model, "forward", too_much)
    with pytest.raises(ConfigError) as caught:
        teacher.score(encoded)
    assert str(caught.value) == (
        f"the GPU's memory does not hold a batch of 3 samples of up to {longest} tokens: lower batch_size, use "
        "precision bf16, or spread the teacher over several GPUs (device_map auto)"
    )
