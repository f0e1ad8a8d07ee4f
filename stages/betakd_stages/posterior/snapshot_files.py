"""The snapshots of a run's posterior on disk, and draws from the Gaussian that they span.

    posterior/map.safetensors             what trained of the student, as the run ended with it; its metadata hold the
                                          sha256 of the student that the run started from, where the rest is read
    posterior/snapshot-0000.safetensors   the same of each snapshot

K snapshots with weights w_k and mean m span the Gaussian with that mean and their covariance,

    m + sum_k z_k (w_k - m) / sqrt(K - 1),    z_k ~ N(0, 1).

That is SWAG's (Maddox et al. 2019) without its diagonal, which keeps each weight's variance and forgets how weights go
together. Each draw is a sum of snapshots whose shares add up to 1, so no more than a tensor of each is in memory.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from betakd_stages.errors import ConfigError, ModelError

FOLDER = "posterior"
MAP = "map.safetensors"
BASE = "base_weights_sha256"
"""A lone key: with several their order in the file, and so its bytes, would differ from run to run."""


def snapshot_path(folder: Path, index: int) -> Path:
    """Where a snapshot is kept."""
    return folder / f"snapshot-{index:04d}.safetensors"


def snapshot_paths(folder: Path) -> list[Path]:
    """The snapshots that there are, in order."""
    return sorted(folder.glob("snapshot-*.safetensors"))


def posterior_folder(run: Path) -> Path:
    """The folder of a run's snapshots. Raises ConfigError where it has none."""
    if not snapshot_paths(run / FOLDER):
        raise ConfigError(
            f"{run} holds no {FOLDER}/, from which students could be drawn: name a run that sampled it (distill "
            "--set posterior.count=20), or leave --draws out"
        )
    return run / FOLDER


def require_base(folder: Path, student: Path, weights: str) -> None:
    """Nothing; raises ModelError where the run did not start from the student with these weights (their sha256)."""
    with safe_open(folder / MAP, framework="pt") as file:
        known = (file.metadata() or {}).get(BASE)
    if known != weights:
        raise ModelError(
            f"{student} is not the student that {folder} was sampled around: {BASE} is {known} there and {weights} "
            "here. Put that student back, or distil again into another folder"
        )


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file: whole, or not at all."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    save_file(dict(tensors), temporary, None if metadata is None else dict(metadata))
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def shares_of_draw(num_snapshots: int, seed: int, draw: int) -> NDArray[np.float64]:
    """What each snapshot contributes to a draw, `[K]`; adding up to 1. Each draw is its own, however many are made."""
    normal = np.random.default_rng([seed, draw]).standard_normal(num_snapshots)
    shares: NDArray[np.float64] = (normal - normal.mean()) / np.sqrt(num_snapshots - 1) + 1 / num_snapshots
    return shares


def mixed(paths: Sequence[Path], shares: Sequence[float] | NDArray[np.float64]) -> dict[str, Tensor]:
    """The sums of the files' tensors times their shares, computed in float64; of whole numbers those of the first."""
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in paths]
        names = files[0].keys()
        return {name: _mixed_tensor([file.get_tensor(name) for file in files], shares) for name in names}


def _mixed_tensor(tensors: Sequence[Tensor], shares: Sequence[float] | NDArray[np.float64]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[0]
    summed = sum(float(share) * tensor.double() for tensor, share in zip(tensors, shares, strict=True))
    assert isinstance(summed, Tensor)
    return summed.to(tensors[0].dtype)


def snapshots_sha256(folder: Path) -> str:
    """The sha256 of the contents of the folder's files in order."""
    digest = hashlib.sha256()
    for path in (folder / MAP, *snapshot_paths(folder)):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
