"""Mixtures: several sources in one set, drawn and shuffled by a seed, with ids that cannot clash.

A cache holds each sample once, so a mixture never repeats one: weights say how a total is shared out, not how often a
sample is seen.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from betakd_stages.data.sample import LazySamples, Sample, SampleSet
from betakd_stages.data.specification import DataSpecification, parse_specification
from betakd_stages.errors import DataError
from betakd_stages.settings import Settings


class Source(Settings):
    """One source: all of its samples, or `count` of them, or its share of the total by `weight`."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", description="leads the ids: NAME/ID")
    data: str
    count: int | None = Field(default=None, gt=0)
    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class Mixture(Settings):
    """What a mixture's file holds."""

    seed: int = Field(default=0, ge=0)
    total: int | None = Field(default=None, gt=0)
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _belong_together(self) -> "Mixture":
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sources are named {twice[0]!r}: names lead the ids and must differ")
        if any(source.count is not None and source.weight is not None for source in self.sources):
            raise ValueError("a source has both count and weight: give one")
        if (self.total is None) != all(source.weight is None for source in self.sources):
            raise ValueError("total and weights need each other: total is what the sources with a weight share")
        return self


def load_mixture(specification: DataSpecification, load: Callable[[str], SampleSet]) -> SampleSet:
    """The samples of `mixture:FILE.yaml`; `load` gives those of a source.

    Raises DataError for a wrong file, a source that has too few samples, or a mixture inside a mixture.
    """
    specification.typed_options({})
    path = Path(specification.argument)
    mixture = _read(path)
    parts = []
    for source in mixture.sources:
        if parse_specification(source.data).name == specification.name:
            raise DataError(f"{path}: source {source.name!r} is itself a mixture: name its sources here")
        parts.append(load(source.data))
    shared = _shares(mixture)
    chosen = [
        _drawn(source, len(part), shared.get(source.name, source.count), mixture.seed, path)
        for source, part in zip(mixture.sources, parts, strict=True)
    ]
    places = np.concatenate(
        [np.stack([np.full(len(held), number), held], axis=1) for number, held in enumerate(chosen)]
    )
    order = np.random.default_rng(mixture.seed).permutation(len(places))
    names = [source.name for source in mixture.sources]
    get = partial(_sample, names=names, parts=parts, places=places[order])
    return SampleSet(specification.canonical(), LazySamples(get, range(len(places))))


def _read(path: Path) -> Mixture:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise DataError(f"mixture {path} cannot be read ({error.strerror}): check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"mixture {path} is not YAML ({' '.join(str(error).split())}): correct it") from None
    try:
        return Mixture.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(
            f"mixture {path}: {place}: {first['msg'].removeprefix('Value error, ')}. Expected sources: a list of "
            "{name, data, count or weight}, with seed and total"
        ) from None


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _shares(mixture: Mixture) -> dict[str, int]:
    """How many samples of the total each source with a weight gives: rounded by largest remainder, so they add up."""
    weights = {source.name: source.weight for source in mixture.sources if source.weight is not None}
    if mixture.total is None:
        return {}
    exact = {name: mixture.total * weight / sum(weights.values()) for name, weight in weights.items()}
    shares = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: shares[name] - exact[name])
    for name in by_remainder[: mixture.total - sum(shares.values())]:
        shares[name] += 1
    return shares


def _drawn(source: Source, num_samples: int, count: int | None, seed: int, path: Path) -> NDArray[np.int64]:
    """Which of the source's samples are taken. They depend on its name and the seed, not on the other sources."""
    if count is None:
        return np.arange(num_samples)
    if count > num_samples:
        raise DataError(
            f"{path}: source {source.name!r} shall give {count} samples and has {num_samples}: ask for fewer, a cache "
            "holds each sample once"
        )
    key = int.from_bytes(hashlib.sha256(source.name.encode()).digest()[:8], "little")
    return np.random.default_rng((seed, key)).permutation(num_samples)[:count]


def _sample(position: int, names: Sequence[str], parts: Sequence[SampleSet], places: NDArray[np.int64]) -> Sample:
    number, index = places[position].tolist()
    sample = parts[number][index]
    name = names[number]
    return dataclasses.replace(sample, sample_id=f"{name}/{sample.sample_id}", category=sample.category or name)
