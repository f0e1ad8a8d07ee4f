"""Students with photographs, some samples without, their teacher's cache, and what their vision tower says."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.stages.mobilevlm.published import TINY_STUDENT, TINY_TEACHER, write_published
from tests.stages.models.parts import save_clip, save_language_model
from tests.stages.photos import write_photos

from betakd_pipe.cli import main
from betakd_stages.models.building import build_model


@dataclass(frozen=True, slots=True)
class VisionWorld:
    """Folders of a student and of two caches, and the data that all of them are about."""

    student: Path
    data: str
    cache: Path
    exact: Path
    """A vision cache in fp32."""
    compact: Path
    """One in float16."""

    def arguments(self, out: Path, *more: str) -> list[str]:
        """A short run of `distill` with plain gradient descent: what differs in gradients differs in weights."""
        training = {"steps": 6, "batch_size": 3, "learning_rate": 0.05, "optimizer": "sgd", "log_every_steps": 1}
        channels = ["--energy", "fkl", "--energy", "rkl", "--feature", "vision", "--weighting", "task"]
        return [
            *("distill", "--student", str(self.student), "--cache", str(self.cache), "--data", self.data),
            *(*channels, "--out", str(out), "--set", "training.warmup=0"),
            *(part for name, value in training.items() for part in ("--set", f"training.{name}={value}")),
            *more,
        ]


def save_llava(folder: Path) -> tuple[Path, Path]:
    tower = save_clip(folder / "tower")
    language = [save_language_model(folder / f"language {width}", seed=width, width=width) for width in (64, 32)]
    teacher, student = (build_model(part, tower, folder / f"model {n}").folder for n, part in enumerate(language))
    return teacher, student


def save_mobilevlm(folder: Path) -> tuple[Path, Path]:
    teacher = write_published(folder / "teacher", TINY_TEACHER, seed=1)
    return teacher, write_published(folder / "student", TINY_STUDENT, seed=2, image_aspect_ratio="square")


PAIRS: dict[str, Callable[[Path], tuple[Path, Path]]] = {"llava": save_llava, "mobilevlm": save_mobilevlm}


def make_world(family: str, folder: Path) -> VisionWorld:
    """A world of this family in a new folder."""
    teacher, student = PAIRS[family](folder)
    world = VisionWorld(student, write_photos(folder), folder / "cache", folder / "exact", folder / "compact")
    assert main(["cache-teacher", "--teacher", str(teacher), "--data", world.data, "--out", str(world.cache)]) == 0
    for out, more in ((world.exact, ["--exact"]), (world.compact, [])):
        assert main(["cache-vision", "--student", str(student), "--data", world.data, "--out", str(out), *more]) == 0
    return world
