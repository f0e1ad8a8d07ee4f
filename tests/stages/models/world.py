"""Samples with images of several shapes, and a model folder of every family, made once per test process."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
from PIL import Image
from tests.stages.models.families import FAMILIES
from tests.stages.models.parts import save_clip, save_language_model, save_siglip

from betakd_stages.data.sample import LoadedImage, Sample, Turn
from betakd_stages.models.building import build_model

TURNS = (Turn("What is it?", "A cat."), Turn("Colour?", "Black."))
ALL = ("llava (CLIP)", "llava (SigLIP)", *FAMILIES)


@dataclass(frozen=True, slots=True)
class Noise:
    """An image of random pixels."""

    width: int
    height: int

    def load(self) -> LoadedImage:
        pixels = np.random.default_rng(self.width).integers(0, 256, (self.height, self.width, 3), dtype=np.uint8)
        return LoadedImage(Image.fromarray(pixels), self.sha256())

    def sha256(self) -> str:
        return f"{self.width} x {self.height}"


def sample(turns: Sequence[Turn] = TURNS, size: tuple[int, int] | None = (30, 20)) -> Sample:
    """A sample with an image of so many pixels (width, height), or none."""
    return Sample("one", Noise(*size) if size else None, tuple(turns))


SAMPLES = (sample(), sample(TURNS[:1], None), sample(TURNS[:1], (17, 40)), sample(size=None))


@cache
def folder_of(family: str) -> Path:
    """A model folder of this family; tests must not change it."""
    folder = Path(mkdtemp(prefix="betakd-family-"))
    if family in FAMILIES:
        return FAMILIES[family].save(folder, seed=1)
    save_tower = save_clip if family == "llava (CLIP)" else save_siglip
    language = save_language_model(folder / "language", seed=1)
    return build_model(language, save_tower(folder / "tower"), folder / "model").folder
