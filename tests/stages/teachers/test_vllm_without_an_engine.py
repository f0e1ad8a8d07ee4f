"""What of the vLLM backends can be said without vLLM: refusals, and what is done when an engine fails."""

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.world import World

from betakd_cache import TokenRule
from betakd_pipe.cli import main
from betakd_stages.caching.workers import cache_teacher_in_workers, gpus_of_engine, visible_gpus
from betakd_stages.data import load_samples
from betakd_stages.encoding import EncodedSample
from betakd_stages.errors import ConfigError
from betakd_stages.evaluation.run import evaluate
from betakd_stages.models.loading import load_encoder
from betakd_stages.progress import SilentProgress
from betakd_stages.settings import CacheTeacherSettings, EvaluateSettings, VllmSettings
from betakd_stages.teachers.base import Scored
from betakd_stages.teachers.vllm import teacher as vllm_teacher
from betakd_stages.teachers.vllm.engine import Engine, EngineFailure, EngineSettings
from betakd_stages.teachers.vllm.versions import require_vllm


def installed(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """Make it look as if this vLLM was installed, or none."""
    found = importlib.util.find_spec
    spec = None if version is None else object()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "vllm" else found(name))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)


def test_without_vllm_the_backend_is_refused_with_the_way_to_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(monkeypatch, None)
    arguments = ["cache-teacher", "--teacher", str(world.teacher), "--data", world.data, "--out", str(tmp_path / "c")]
    assert main([*arguments, "--backend", "vllm"]) == 2
    assert "backend vllm needs vLLM, which is not installed: pip install" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_an_evaluation_by_vllm_without_it_is_refused_alike(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, None)
    settings = EvaluateSettings(model=str(world.teacher), benchmark=("digits?count=2",), backend="vllm")
    with pytest.raises(ConfigError, match="backend vllm needs vLLM, which is not installed: pip install"):
        evaluate(settings, tmp_path / "scores", progress=SilentProgress())
    assert not (tmp_path / "scores").exists()


def test_an_unknown_version_is_refused_by_name_and_the_stable_path_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "0.41.2")
    with pytest.raises(ConfigError) as caught:
        require_vllm("vllm")
    assert str(caught.value) == (
        "vLLM 0.41.2 is installed; backend vllm works from inside its worker and knows 0.32.x: install one of these, "
        "or use backend vllm_prompt_logprobs, which has vLLM's stable interface"
    )
    assert require_vllm("vllm_prompt_logprobs") == "0.41.2"
    assert require_vllm("vllm", answers_only=True) == "0.41.2"
    installed(monkeypatch, "0.9.1+cpu")
    with pytest.raises(ConfigError, match=r"vLLM 0.9.1 is installed; backend vllm_prompt_logprobs needs 0.32 or newer"):
        require_vllm("vllm_prompt_logprobs")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--backend", "vllm", "--set", "quantisation=int4"], "quantisation is int4, which is for backend hf"),
        (["--backend", "vllm", "--set", "attention=eager"], "attention is eager, which is for backend hf"),
        (
            ["--backend", "vllm_prompt_logprobs"],
            "knows the teacher at temperature 1 and no features, asked are temperatures 1, 2, top_p_temperature 1 and "
            "features vision, prompt: give --temperatures 1 --features '', or use backend vllm",
        ),
        (["--backend", "tgi"], "backend"),
    ],
)
def test_settings_that_a_backend_does_not_have_are_refused(
    world: World, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["cache-teacher", "--teacher", str(world.teacher), "--data", world.data, "--out", str(tmp_path / "c")]
    assert main([*arguments, *flags]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_every_engine_has_gpus_of_its_own(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["0", "1", "2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,5,3,1")
    assert [gpus_of_engine(visible_gpus(), 2, number) for number in range(2)] == [["7", "5"], ["3", "1"]]
    settings = CacheTeacherSettings(
        teacher=str(world.teacher), data=world.data, backend="vllm", vllm=VllmSettings(tensor_parallel_size=2)
    )
    with pytest.raises(
        ConfigError,
        match="3 engines of vLLM with vllm.tensor_parallel_size 2 take 6 GPUs, 4 are visible: start fewer workers",
    ):
        cache_teacher_in_workers(settings, tmp_path / "cache", num_workers=3, progress=SilentProgress())


class FragileEngine:
    """Dies of one sample, as the real one does: it can only be closed then."""

    def __init__(self, poison: set[str], log: list[str]) -> None:
        self.poison, self.log, self.dead = poison, log, False
        log.append("started")

    def run(self, encoded: Sequence[EncodedSample], parameters: Sequence[Any], image_token_id: int) -> list[Any]:
        assert not self.dead
        assert image_token_id == 3
        if self.poison & {sample.sample_id for sample in encoded}:
            self.dead = True
            raise EngineFailure("vLLM fails on it (out of luck)")
        return [
            "vLLM refuses it (odd)" if sample.sample_id.endswith("7") else f"output of {sample.sample_id}"
            for sample in encoded
        ]

    def close(self) -> None:
        self.log.append("closed")


class PlainTeacher(vllm_teacher.VllmTeacher):
    """Gives the outputs for records."""

    knows_logits = True

    def engine_settings(self, settings: EngineSettings) -> EngineSettings:
        return settings

    def prepare(self, engine: Engine) -> None:
        pass

    def parameters(self, number: int, sample: EncodedSample) -> Any:
        return None

    def scored(self, engine: Engine, outputs: Sequence[Any], encoded: Sequence[EncodedSample]) -> Scored:
        pairs = zip(encoded, outputs, strict=True)
        records = [SimpleNamespace(sample_id=sample.sample_id) for sample, output in pairs if "refuses" not in output]
        return Scored(records, {})  # type: ignore[arg-type]


@pytest.mark.parametrize("poisoned", [(), (0,), (3, 9), tuple(range(10))])
def test_the_samples_an_engine_dies_of_are_found_by_halving_and_no_other_is_lost(
    world: World, monkeypatch: pytest.MonkeyPatch, poisoned: tuple[int, ...]
) -> None:
    encoder = load_encoder(world.teacher)
    encoded = [encoder.encode(sample) for sample in load_samples(world.data)[:10]]
    poison = {encoded[place].sample_id for place in poisoned}
    log: list[str] = []
    monkeypatch.setattr(vllm_teacher, "Engine", lambda settings: FragileEngine(poison, log))
    settings = CacheTeacherSettings(teacher=str(world.teacher), data=world.data, backend="vllm")
    teacher = PlainTeacher(settings, world.teacher, encoder, TokenRule(), "0.32.0")
    found = teacher.score(encoded)
    assert {name for name, reason in found.rejected.items() if "fails" in reason} == poison
    assert found.rejected.keys() | {record.sample_id for record in found.records} == {s.sample_id for s in encoded}
    assert log.count("started") == log.count("closed") + 1
    assert len(teacher.score([encoded[0]]).records) == (0 not in poisoned)
