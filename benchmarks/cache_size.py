"""Bytes per token against the error they cause: this cache's settings beside what else is in use.

    python benchmarks/cache_size.py [--quick] [--json FILE]

Two teachers, both scaled to a mean entropy of 1 nat: a small language model trained here, for a minute, on the source
text that ships with Python (V = 32,000), and a simulated one (V = 151,936). Students are the teacher plus noise, at a
mean KL of 0.2 (mid) and 0.02 (late). Our settings go through a cache on disk and back. With g = d fkl / d z_student
over the whole vocabulary, the gradient error is sqrt(sum |g^ - g|^2 / sum |g|^2); the bucket KL is that of the kept
entries and the tail, as stored, from what they were. Bytes are those of all arrays but the pooled features.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmark_teachers import (
    Floats,
    Teacher,
    TopEntries,
    bisect,
    entropies,
    language_model,
    simulated_teacher,
    softmax,
    top_entries,
)
from betakd_cache import CacheWriter, TeacherRecord, TokenRule, open_cache

TEMPERATURES = (1.0, 2.0)
STUDENT_KL = {"mid": 0.2, "late": 0.02}
SETTINGS = {
    "ours, top_p 0.999": TokenRule(temperatures=TEMPERATURES),
    "ours, top_p 0.99": TokenRule(top_p=0.99, temperatures=TEMPERATURES),
    "ours, top_p 0.999 at temperature 2": TokenRule(top_p_temperature=2.0, temperatures=TEMPERATURES),
    "ours, K = 64": TokenRule(top_p=1.0, temperatures=TEMPERATURES),
    "ours, exact, K = 64": TokenRule(top_p=1.0, temperatures=TEMPERATURES, exact=True),
}


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """What a codec returns: ids `[N, K]`; per temperature probabilities `[N, K]` (0 at padding) and tails `[N]`."""

    ids: NDArray[np.int64]
    probabilities: dict[float, Floats]
    tail: dict[float, Floats]
    bytes_per_token: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200 tokens, a model of a few steps")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    arguments = parser.parse_args()
    num_tokens, num_steps = (200, 20) if arguments.quick else (2000, 150)
    rows = []
    console = Console(width=140)
    for teacher in (language_model(num_tokens, num_steps), simulated_teacher(num_tokens)):
        rows += measure(teacher, console)
    table = Table(title=f"{num_tokens} tokens; gradient errors in percent, bucket KL in nats")
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "setting" else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:,.4g}" for value in row.values()))
    console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def measure(teacher: Teacher, console: Console) -> list[dict[str, Any]]:
    """The rows of one teacher, and a printed line about its distributions."""
    top = top_entries(teacher, TEMPERATURES)
    codecs = {name: through_cache(teacher, rule, top) for name, rule in SETTINGS.items()}
    codecs |= {name: quantised(top, codec, size) for name, (codec, size) in OTHERS.items()}
    sums = {kl: student_sums(teacher, codecs, target) for kl, target in STUDENT_KL.items()}
    kept = (codecs["ours, top_p 0.999"].probabilities[1.0] > 0).sum(axis=1)
    entropy = np.mean([entropies(logits).mean() for _, logits in teacher.chunks()])
    console.print(
        f"{teacher.name}: mean entropy {entropy:.3f} nats; top_p 0.999 keeps {kept.mean():.1f} entries on average, "
        f"{100 * (kept == 64).mean():.1f} % of the tokens are at the cap of 64"
    )
    return [
        {
            "setting": name,
            "vocabulary": f"{teacher.vocabulary_size:,}",
            "temperature": temperature,
            "bytes_per_token": codec.bytes_per_token,
            "bucket_kl": sums["mid"][name, temperature]["bucket_kl"],
            "gradient_error_mid": 100 * sums["mid"][name, temperature]["gradient_error"],
            "gradient_error_late": 100 * sums["late"][name, temperature]["gradient_error"],
        }
        for name, codec in codecs.items()
        for temperature in TEMPERATURES
    ]


def student_sums(
    teacher: Teacher, codecs: dict[str, Kept], target_kl: float
) -> dict[tuple[str, float], dict[str, float]]:
    """Bucket KL and gradient error of every codec and temperature, for a student at a mean KL of `target_kl`."""
    scale = noise_scale(teacher, target_kl)
    totals = {(name, temperature): np.zeros(3) for name in codecs for temperature in TEMPERATURES}
    for tokens, logits in teacher.chunks():
        student = logits + scale * student_noise(tokens.start, logits.shape)
        for temperature in TEMPERATURES:
            p, q = softmax(logits / temperature), softmax(student / temperature)
            exact = ((q - p) ** 2).sum()
            whole = np.stack([(p * p).sum(axis=1), (p * q).sum(axis=1), (q * q).sum(axis=1)])
            for name, codec in codecs.items():
                stored, tail = codec.probabilities[temperature][tokens], codec.tail[temperature][tokens]
                error, bucket_kl = token_errors(p, q, whole, codec.ids[tokens], stored, tail)
                totals[name, temperature] += [error.sum(), exact, bucket_kl.sum()]
    return {
        key: {"gradient_error": float(np.sqrt(error / exact)), "bucket_kl": float(bucket_kl / teacher.num_tokens)}
        for key, (error, exact, bucket_kl) in totals.items()
    }


def token_errors(
    p: Floats, q: Floats, whole: Floats, ids: NDArray[np.int64], stored: Floats, tail: Floats
) -> tuple[Floats, Floats]:
    """|g^ - g|^2 `[n]` and the bucket KL `[n]`; the gradient gives the tail the student's shape and the stored mass."""
    held = stored > 0
    p_kept = np.where(held, np.take_along_axis(p, ids, axis=1), 0.0)
    q_kept = np.where(held, np.take_along_axis(q, ids, axis=1), 0.0)
    pp, pq, qq = whole - np.stack([(p_kept**2).sum(axis=1), (p_kept * q_kept).sum(axis=1), (q_kept**2).sum(axis=1)])
    p_tail, q_tail = (np.maximum(1 - kept.sum(axis=1), 1e-15) for kept in (p_kept, q_kept))
    # Where a tail is all but empty, rounding is all these differences hold; what they can be at most is known.
    pp, qq = np.clip(pp, 0, p_tail**2), np.clip(qq, 0, q_tail**2)
    pq = np.clip(pq, 0, np.sqrt(pp * qq))
    ratio = tail / q_tail
    error = ((p_kept - stored) ** 2).sum(axis=1) + pp - 2 * ratio * pq + ratio**2 * qq
    with np.errstate(divide="ignore", invalid="ignore"):
        kept_kl = np.where(held, p_kept * np.log(p_kept / stored), 0.0).sum(axis=1)
        tail_kl = p_tail * np.log(p_tail / tail)
    return error, kept_kl + tail_kl


def through_cache(teacher: Teacher, rule: TokenRule, top: TopEntries) -> Kept:
    """What comes back of the teacher from a cache on disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cache"
        with CacheWriter.open(
            path, identity={}, token_rule=rule, vocabulary_size=teacher.vocabulary_size, feature_sizes={}
        ) as writer:
            writer.append(record_of(teacher, rule, top))
            writer.complete()
        compact = open_cache(path).batch([0])
        batch = compact.decode()
    scaled = {t: np.exp(-batch.gaps.astype(np.float64) / t) for t in TEMPERATURES}
    tails = {t: np.exp(batch.tail_lse[:, column].astype(np.float64)) for column, t in enumerate(rule.temperatures)}
    totals = {t: scaled[t].sum(axis=1) + tails[t] for t in TEMPERATURES}
    return Kept(
        batch.ids,
        {t: scaled[t] / totals[t][:, None] for t in TEMPERATURES},
        {t: tails[t] / totals[t] for t in TEMPERATURES},
        sum(array.nbytes for array in compact.arrays.values()) / teacher.num_tokens,
    )


def record_of(teacher: Teacher, rule: TokenRule, top: TopEntries) -> TeacherRecord:
    """All tokens of the teacher as one sample; what is dropped of the 64 joins the rest."""
    t = rule.top_p_temperature
    weights = np.exp(-top.gaps / t)
    reached = np.cumsum(weights, axis=1) >= rule.top_p * (weights.sum(axis=1) + top.rest_mass[t])[:, None]
    wanted = np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, rule.top_k)
    ranks = np.arange(rule.top_k)
    is_gold = top.ids == teacher.gold[:, None]
    outside = ~(is_gold & (ranks < wanted[:, None])).any(axis=1)
    place = np.minimum(wanted, rule.top_k - 1)[outside]
    ids, gaps = top.ids.copy(), top.gaps.copy()
    ids[outside, place], gaps[outside, place] = teacher.gold[outside], top.gold_gap[outside]
    counts = np.where(outside, np.minimum(wanted + 1, rule.top_k), wanted)
    kept = ranks < counts[:, None]
    dropped = (ranks >= np.where(outside, counts - 1, counts)[:, None]) & ~is_gold
    beyond = ~is_gold.any(axis=1)  # the gold id is among the rest
    tail_lse, tail_energy = [], []
    for temperature in rule.temperatures:
        lost = np.where(dropped, np.exp(-top.gaps / temperature), 0.0)
        gold = np.where(beyond, np.exp(-top.gold_gap / temperature), 0.0)
        mass = top.rest_mass[temperature] + lost.sum(axis=1) - gold
        energy = top.rest_energy[temperature] + (lost * top.gaps).sum(axis=1) - gold * top.gold_gap
        tail_lse.append(np.log(mass))
        tail_energy.append(energy / mass)
    single = np.float32
    return TeacherRecord(
        sample_id="all",
        token_ids=teacher.gold,
        entry_counts=counts,
        ids=ids[kept],
        gaps=gaps[kept].astype(single),
        gold_gap=top.gold_gap.astype(single),
        tail_lse=np.stack(tail_lse, axis=1).astype(single),
        tail_energy=np.stack(tail_energy, axis=1).astype(single),
        logit_max=top.logit_max.astype(single),
        logit_mean=top.logit_mean.astype(single),
        logit_std=top.logit_std.astype(single),
    )


def quantised(top: TopEntries, codec: Callable[[Floats], Floats], bytes_per_token: float) -> Kept:
    """64 ids and log-probabilities through `codec`; the tail is one minus the kept at temperature 1, else unknown."""
    total = np.exp(-top.gaps).sum(axis=1, keepdims=True) + top.rest_mass[1.0][:, None]
    log_p = codec(-top.gaps - np.log(total))
    kept = np.exp(log_p)
    hot = softmax(log_p / 2)
    return Kept(
        top.ids,
        {1.0: kept, 2.0: hot},
        {1.0: np.maximum(1 - kept.sum(axis=1), 1e-12), 2.0: np.full(len(top.ids), 1e-12)},
        bytes_per_token,
    )


def four_bits(values: Floats) -> Floats:
    """Sixteen even levels between the ends of each token."""
    low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    return low + np.round((values - low) / (high - low) * 15) / 15 * (high - low)


def polynomial(values: Floats) -> Floats:
    """A polynomial of degree 7 in the logarithm of the rank with float16 coefficients, fitted to each token."""
    basis = np.polynomial.chebyshev.chebvander(np.log(np.arange(1, 65)) / np.log(64) * 2 - 1, 7)
    fitted = []
    for row in values:
        weights = np.exp(row / 4)
        coefficients = np.linalg.lstsq(basis * weights[:, None], row * weights, rcond=None)[0]
        fitted.append(basis @ coefficients.astype(np.float16).astype(np.float64))
    return np.stack(fitted)


def eight_bit_floats(values: Floats) -> Floats:
    """Rounded to float8 e4m3."""
    return torch.tensor(values).to(torch.float8_e4m3fn).to(torch.float64).numpy()


OTHERS: dict[str, tuple[Callable[[Floats], Floats], float]] = {
    "int32 + fp32, K = 64": (lambda values: values.astype(np.float32).astype(np.float64), 512),
    "int32 + fp16, K = 64": (lambda values: values.astype(np.float16).astype(np.float64), 384),
    "int32 + fp8, K = 64": (eight_bit_floats, 320),
    "int32 + 4 bit, K = 64": (four_bits, 296),
    "int32 + polynomial, K = 64": (polynomial, 272),
}


def noise_scale(teacher: Teacher, target_kl: float) -> float:
    """The scale of the student's noise at which the mean KL of the first chunk is `target_kl`."""
    tokens, logits = next(teacher.chunks())
    noise = student_noise(tokens.start, logits.shape)
    p = softmax(logits)

    def mean_kl(scale: float) -> float:
        q = softmax(logits + scale * noise)
        return float((p * np.log(np.maximum(p, 1e-300) / np.maximum(q, 1e-300))).sum(axis=1).mean())

    return bisect(mean_kl, target_kl, 1e-3, 10.0)


def student_noise(number: int, shape: tuple[int, ...]) -> Floats:
    """Standard normal noise, the same for the same chunk."""
    return np.random.default_rng(7_000_000 + number).normal(size=shape)


if __name__ == "__main__":
    main()
