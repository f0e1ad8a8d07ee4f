"""The recipes that come with the package: each is valid, and its run can be tried without being made."""

import json
import math
from pathlib import Path

import pytest
from PIL import Image
from tests.stages.mobilevlm.published import TINY_STUDENT, TINY_TEACHER, write_published
from tests.stages.models.parts import save_clip, save_language_model

from betakd_pipe.cli import main
from betakd_pipe.config import load_settings
from betakd_pipe.recipes import recipe_command, recipe_names, recipe_path
from betakd_stages.errors import ConfigError
from betakd_stages.models.building import build_model
from betakd_stages.models.loading import weights_sha256
from betakd_stages.settings import DistillSettings

NUM_SAMPLES = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Captioned images, which prompts of either kind take."""
    folder = tmp_path_factory.mktemp("data")
    entries = []
    for number in range(NUM_SAMPLES):
        Image.effect_noise((24, 20), 60 + number).convert("RGB").save(folder / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": f"A cat {number}."}]
        entries.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (folder / "data.json").write_text(json.dumps(entries), encoding="utf-8")
    return f"llava:{folder / 'data.json'}?images={folder}"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Teacher and student of either family, with random weights."""
    folder = tmp_path_factory.mktemp("models")
    teacher = write_published(folder / "teacher", TINY_TEACHER, seed=1)
    student = write_published(folder / "student", TINY_STUDENT, seed=2)
    tower = save_clip(folder / "tower")
    wide = save_language_model(folder / "wide", seed=1, width=64, num_rows=352)
    narrow = save_language_model(folder / "narrow", seed=2, width=32, num_rows=320)
    qwen = [build_model(part, tower, folder / f"qwen-{part.name}").folder for part in (wide, narrow)]
    return {"mobilevlm-v2": (teacher, student), "llava-qwen": (qwen[0], qwen[1])}


@pytest.fixture(scope="module")
def caches(
    models: dict[str, tuple[Path, Path]], data: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The teachers' caches, by their recipes; a student serves as a second teacher."""
    folder = tmp_path_factory.mktemp("caches")
    made = {family: (teacher, family) for family, (teacher, _) in models.items()}
    made["second"] = (models["llava-qwen"][1], "llava-qwen")
    for name, (teacher, family) in made.items():
        flags = ["--recipe", f"{family}-teacher", "--teacher", str(teacher), "--data", data]
        assert main(["cache-teacher", *flags, *SHORT, "--out", str(folder / name)]) == 0
    return {name: folder / name for name in made}


SHORT = ["--set", "max_length=256"]
"""The tiny models' context is shorter than the recipes' 2,048 tokens."""


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_passes_a_dry_run_that_leaves_nothing_behind(
    name: str,
    models: dict[str, tuple[Path, Path]],
    caches: dict[str, Path],
    data: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    family = next((family for family in models if name.startswith(family)), "llava-qwen")
    teacher, student = models[family]
    before = weights_sha256(student)
    inputs = {
        "cache-teacher": ["--teacher", str(teacher)],
        "distill": ["--student", str(student), "--cache", str(caches[family])],
    }
    if name == "merge-specialists":
        inputs["distill"] += ["--cache", str(caches["second"])]
    command = recipe_command(name)
    arguments = [command, "--recipe", name, *inputs[command], "--data", data, *SHORT, "--dry-run"]
    capsys.readouterr()
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    if command == "distill":
        training = load_settings(
            DistillSettings, None, {"student": "s", "cache": ["c", "c2"], "data": "d"}, recipe=name
        ).training
        size = training.global_batch_size or training.batch_size
        batches = f"as {size // training.batch_size} batches of {training.batch_size} in each of 1 processes"
        assert lines[0] == "samples: 16 (0 dropped)"
        assert lines[1] == f"steps: {training.steps or math.ceil(16 / size)} of {size} samples, {batches}"
        assert [line.split(":")[0] for line in lines[-3:]] == ["checkpoint", "peak memory", "peak GPU memory"]
    else:
        assert any(line.startswith("total_bytes: ") for line in lines)
    assert not (tmp_path / "out").exists()
    assert weights_sha256(student) == before


def test_a_dry_run_finds_what_the_run_would(
    models: dict[str, tuple[Path, Path]],
    caches: dict[str, Path],
    data: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Here a student whose tokenizer is not the teacher's."""
    flags = ["--recipe", "mobilevlm-v2-stage2", "--student", str(models["llava-qwen"][1]), "--data", data, *SHORT]
    out = tmp_path / "run"
    assert main(["distill", *flags, "--cache", str(caches["mobilevlm-v2"]), "--out", str(out), "--dry-run"]) == 2
    assert "tokenizer" in capsys.readouterr().err
    assert not out.exists()


def test_recipes_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[0] for line in listed[:10]] == recipe_names()
    assert main(["recipes", "llava-qwen-stage1"]) == 0
    assert capsys.readouterr().out == recipe_path("llava-qwen-stage1").read_text(encoding="utf-8")


def test_a_file_and_flags_win_over_a_recipe_and_unknown_recipes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("student: s\ndata: d\ncache: c\ntraining: {warmup: 0.1, batch_size: 4}\n")
    found = load_settings(
        DistillSettings, tmp_path / "mine.yaml", {"training.batch_size": 2}, [], recipe="mobilevlm-v2-stage1"
    )
    assert (found.training.warmup, found.training.batch_size) == (0.1, 2)
    assert found.training.projector_learning_rate == 1e-3
    with pytest.raises(ConfigError, match="--recipe mobilevlm-v2-stage3: no such recipe; did you mean mobilevlm-v2"):
        load_settings(DistillSettings, None, {}, [], recipe="mobilevlm-v2-stage3")


def test_a_recipe_may_have_a_learning_rate_for_each_weighting() -> None:
    inputs = {"student": "s", "cache": "c", "data": "d"}
    for name, learning_rate in (("task", 0.5), ("instance", 0.01), ("kendall", 0.05), ("fixed", 0.05)):
        found = load_settings(DistillSettings, None, {**inputs, "weighting.name": name}, recipe="digits")
        assert found.weighting.learning_rate == learning_rate
    chosen = load_settings(DistillSettings, None, inputs, ["weighting.learning_rate=0.2"], recipe="digits")
    assert chosen.weighting.learning_rate == 0.2
    with pytest.raises(ConfigError, match=r"weighting.learning_rate: found 'much', expected a valid number"):
        load_settings(DistillSettings, None, inputs, ["weighting.learning_rate={task: much}"])
