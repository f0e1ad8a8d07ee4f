"""What a run writes while it trains: metrics.jsonl (same bytes for the same seed), timings.jsonl (times, memory).

B samples of a batch.
"""

import json
import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # comes with accelerate, without types
import torch
from torch import Tensor

from betakd_stages.distillation.entropy_quartiles import by_quartile
from betakd_stages.encoding import segments, supervised_tokens
from betakd_stages.files import write_atomically

METRICS = "metrics.jsonl"
TIMINGS = "timings.jsonl"
QUANTILES = (0.1, 0.5, 0.9)
COLLAPSE_CORRELATION = 0.1
"""Of log beta with the teacher's entropy; sound weightings stay well below 0."""


def summarise(
    figures: Sequence[Mapping[str, Tensor]], channels: Sequence[str], entropy_borders: Sequence[float] = ()
) -> dict[str, float | None]:
    """One row of metrics over the batches since the last row; None where a figure is undefined.

    The cross-entropy, its weight with quantiles over samples, and the entropies of teacher and student in nats. Per
    channel: the energy and its product with beta (means over samples), beta's mean and quantiles, and the correlation
    of log beta with the teacher's entropy over the samples of a batch (mean over batches), which is positive when the
    weighting collapses. Cross-entropy, energies and betas also by quartile of the teacher's entropy, where the borders
    between those are given.
    """

    def joined(name: str) -> Tensor:
        return torch.cat([batch[name].double() for batch in figures])

    entropy = joined("teacher_entropy")
    row: dict[str, float | None] = {
        "objective": float(sum(batch["objective"].double() for batch in figures))
        / float(sum(batch["count"].double() for batch in figures)),
        "cross_entropy": float(joined("cross_entropy").mean()),
        **by_quartile("cross_entropy", joined("cross_entropy"), entropy, entropy_borders),
        **_mean_and_quantiles("cross_entropy_weight", joined("cross_entropy_weights")),
        "teacher_entropy": float(entropy.mean()),
        "student_entropy": float(joined("student_entropy").mean()),
    }
    energies, betas = joined("energies"), joined("betas")
    present = torch.cat([batch["present"] for batch in figures])
    for index, channel in enumerate(channels):
        rows = present[:, index]
        energy, beta = energies[rows, index], betas[rows, index]
        if not len(beta):
            continue
        row[f"energy/{channel}"] = float(energy.mean())
        row.update(by_quartile(f"energy/{channel}", energy, entropy[rows], entropy_borders))
        row[f"weighted/{channel}"] = float((beta * energy).mean())
        row.update(_mean_and_quantiles(f"beta/{channel}", beta))
        row.update(by_quartile(f"beta/{channel}", beta, entropy[rows], entropy_borders))
        correlations = [_entropy_correlation(batch, index) for batch in figures]
        defined = [value for value in correlations if value is not None]
        row[f"entropy_correlation/{channel}"] = sum(defined) / len(defined) if defined else None
    return row


def _mean_and_quantiles(name: str, values: Tensor) -> dict[str, float]:
    """The mean under `name`, and quantiles such as `name/q90`."""
    quantiles = {f"{name}/q{round(100 * share)}": float(torch.quantile(values, share)) for share in QUANTILES}
    return {name: float(values.mean()), **quantiles}


def _entropy_correlation(batch: Mapping[str, Tensor], channel: int) -> float | None:
    rows = batch["present"][:, channel]
    log_beta = batch["betas"][rows, channel].double().clamp(min=1e-30).log()
    return correlation(log_beta, batch["teacher_entropy"][rows].double())


def collapsing(
    first: Mapping[str, float | None], now: Mapping[str, float | None], channels: Sequence[str]
) -> list[str]:
    """The channels whose weight has doubled since the first row and is largest where the teacher knows least.

    That is how a learned weighting collapses: a flat teacher is the easiest to match, so its energy falls fastest and
    its weight grows without bound.
    """
    found = []
    for channel in channels:
        before, after = first.get(f"beta/{channel}"), now.get(f"beta/{channel}")
        slope = now.get(f"entropy_correlation/{channel}")
        if before and after and slope and after > 2 * before and slope > COLLAPSE_CORRELATION:
            found.append(channel)
    return found


def correlation(left: Tensor, right: Tensor) -> float | None:
    """Pearson's correlation of two float64 vectors; None where one is constant or has fewer than two numbers."""
    if len(left) < 2:
        return None
    left, right = left - left.mean(), right - right.mean()
    scale = float(left.norm() * right.norm())
    # Rounding leaves a trace of spread in a constant vector.
    if min(float(left.abs().max()), float(right.abs().max())) < 1e-9 or scale == 0:
        return None
    return float(left @ right) / scale


def batch_sizes(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The lengths of a batch's samples, int64 `[B]` on the CPU: `tokens` with visual ones and without padding, and
    `supervised_tokens`."""
    of_sample = segments(batch)
    if "attention_mask" in batch:
        of_sample = of_sample[batch["attention_mask"].bool()]
    return {
        "tokens": torch.bincount(of_sample.flatten(), minlength=len(batch["has_image"])).cpu(),
        "supervised_tokens": supervised_tokens(batch).cpu(),
    }


def throughput(figures: Sequence[Mapping[str, Tensor]], num_steps: int, seconds_per_step: float) -> dict[str, float]:
    """Samples and tokens per second of training, from the batches of so many steps; all processes together.

    Visual tokens count as tokens.
    """
    lengths = {name: torch.cat([batch[name] for batch in figures]) for name in ("tokens", "supervised_tokens")}
    amounts = {"samples": len(lengths["tokens"]), **{name: int(each.sum()) for name, each in lengths.items()}}
    return {f"{name}_per_second": round(n / num_steps / seconds_per_step, 3) for name, n in amounts.items()}


class TrainingLog:
    """Appends rows to metrics.jsonl and timings.jsonl of a run folder."""

    def __init__(self, folder: Path, resumed_step: int, entropy_borders: Sequence[float] = ()) -> None:
        """Rows beyond `resumed_step` are dropped: they will be written again. `entropy_borders` as in `summarise`."""
        self.entropy_borders = entropy_borders
        self._folder = folder
        kept = [keep_rows(folder / name, resumed_step) for name in (METRICS, TIMINGS)]
        self._last_row_step = kept[0][-1]["step"] if kept[0] else 0
        self._started = time.perf_counter()
        self._step = resumed_step

    def write(self, step: int, row: Mapping[str, Any], figures: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
        """Append one row, of these batches; returns that of timings.jsonl, which counts from the row before."""
        seconds_per_step = (time.perf_counter() - self._started) / (step - self._step)
        timing = {
            "step": step,
            "seconds_per_step": round(seconds_per_step, 6),
            # Of the steps before a checkpoint that was resumed from the batches are known, their seconds are not.
            **throughput(figures, step - self._last_row_step, seconds_per_step),
            **_memory_mib(),
        }
        self._append(METRICS, {"step": step, **row})
        self._append(TIMINGS, timing)
        self._started, self._step = time.perf_counter(), step
        self._last_row_step = step
        return timing

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        with (self._folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _memory_mib() -> dict[str, int]:
    """What this process holds and has held at most, and the most it held on the GPU since it was last asked, in MiB."""
    memory = {
        "memory_mib": psutil.Process().memory_info().rss // 2**20,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    if torch.cuda.is_available():
        memory["peak_gpu_memory_mib"] = torch.cuda.max_memory_allocated() // 2**20
        torch.cuda.reset_peak_memory_stats()
    return memory


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file; a last line cut off by a crash is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows


def rows_until(path: Path, step: int) -> list[dict[str, Any]]:
    """The rows up to that step; none where there is no file."""
    return [row for row in (read_rows(path) if path.is_file() else []) if row["step"] <= step]


def keep_rows(path: Path, resumed_step: int) -> list[dict[str, Any]]:
    """The rows up to that step; the file holds them alone afterwards, and exists."""
    kept = rows_until(path, resumed_step)
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept))
    return kept
