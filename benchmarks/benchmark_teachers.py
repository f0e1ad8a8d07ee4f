"""Teachers of benchmarks: full logits of some thousand tokens at a mean entropy of 1 nat, without any download."""

import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CHUNK_TOKENS = 50


@dataclass(frozen=True, slots=True, eq=False)
class Teacher:
    """Logits `[n, V]` of consecutive chunks of tokens, at any time the same, and the gold ids `[N]`."""

    name: str
    vocabulary_size: int
    num_tokens: int
    chunk: Callable[[int], Floats]
    gold: NDArray[np.int64]

    def chunks(self) -> Iterator[tuple[slice, Floats]]:
        """(tokens, logits) from first to last."""
        for start in range(0, self.num_tokens, CHUNK_TOKENS):
            stop = min(start + CHUNK_TOKENS, self.num_tokens)
            yield slice(start, stop), self.chunk(start // CHUNK_TOKENS)[: stop - start]


@dataclass(frozen=True, slots=True, eq=False)
class TopEntries:
    """The 64 likeliest ids of every token, and sums over all the others."""

    ids: NDArray[np.int64]
    gaps: Floats
    gold_gap: Floats
    rest_mass: dict[float, Floats]
    """Per temperature the sum of exp(-gap / temperature) `[N]` over the others."""
    rest_energy: dict[float, Floats]
    """Per temperature the sum of gap exp(-gap / temperature) `[N]` over the others."""
    logit_max: Floats
    logit_mean: Floats
    logit_std: Floats


def top_entries(teacher: Teacher, temperatures: Sequence[float], k: int = 64) -> TopEntries:
    """One pass over the teacher's full logits."""
    parts: list[tuple[Any, ...]] = []
    for tokens, logits in teacher.chunks():
        largest = logits.max(axis=1, keepdims=True)
        gaps = largest - logits
        ids = np.argpartition(gaps, k, axis=1)[:, :k]
        ids = np.take_along_axis(ids, np.argsort(np.take_along_axis(gaps, ids, axis=1), axis=1), axis=1)
        top, gold = np.take_along_axis(gaps, ids, axis=1), gaps[np.arange(len(gaps)), teacher.gold[tokens]]
        moments = (logits.max(axis=1), logits.mean(axis=1), logits.std(axis=1))
        np.put_along_axis(gaps, ids, 1e6, axis=1)  # weighs nothing in the sums over the others
        sums = []
        for temperature in temperatures:
            weights = np.exp(-gaps / temperature)
            sums += [weights.sum(axis=1), (weights * gaps).sum(axis=1)]
        parts.append((ids, top, gold, *moments, *sums))
    ids, top, gold, largest, mean, deviation, *sums = (np.concatenate(part) for part in zip(*parts, strict=True))
    return TopEntries(
        ids,
        top,
        gold,
        dict(zip(temperatures, sums[::2], strict=True)),
        dict(zip(temperatures, sums[1::2], strict=True)),
        largest,
        mean,
        deviation,
    )


def simulated_teacher(num_tokens: int, vocabulary_size: int = 151_936) -> Teacher:
    """Logits that fall with the logarithm of the rank, as words do; how steeply differs from token to token."""

    def raw(number: int) -> Floats:
        generator = np.random.default_rng(1000 + number)
        steepness = 1 + generator.gamma(3.0, 0.5, (CHUNK_TOKENS, 1))
        return steepness * generator.standard_exponential((CHUNK_TOKENS, vocabulary_size))

    return scaled_teacher("simulated", vocabulary_size, num_tokens, raw, None)


def language_model(num_tokens: int, num_steps: int, vocabulary_size: int = 32_000) -> Teacher:
    """A feed-forward model of the next word from the last eight, trained on the standard library's source text."""
    torch.manual_seed(0)
    words = library_words(vocabulary_size)
    held_out, training = torch.tensor(words[: 4 * num_tokens + 8]), torch.tensor(words[4 * num_tokens + 8 :])
    embedding = torch.nn.Embedding(vocabulary_size, 96)
    body = torch.nn.Sequential(
        torch.nn.Linear(768, 256), torch.nn.GELU(), torch.nn.Linear(256, 96), torch.nn.LayerNorm(96)
    )
    torch.nn.init.normal_(embedding.weight, std=0.1)
    optimizer = torch.optim.Adam([*embedding.parameters(), *body.parameters()], lr=2e-3)
    for _ in range(num_steps):
        ends = torch.randint(8, len(training), (512,))
        context = training[ends[:, None] + torch.arange(-8, 0)]
        logits = body(embedding(context).flatten(1)) @ embedding.weight.T
        loss = torch.nn.functional.cross_entropy(logits, training[ends])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ends = torch.arange(8, 4 * num_tokens + 8, 4)
    with torch.no_grad():
        hidden = body(embedding(held_out[ends[:, None] + torch.arange(-8, 0)]).flatten(1)).double().numpy()
    table = embedding.weight.detach().double().numpy()

    def raw(number: int) -> Floats:
        return hidden[number * CHUNK_TOKENS : (number + 1) * CHUNK_TOKENS] @ table.T

    return scaled_teacher("language model", vocabulary_size, num_tokens, raw, held_out[ends].numpy())


def library_words(vocabulary_size: int) -> list[int]:
    """The standard library's top-level modules as ids of words, marks and line ends; the last id is any other word."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    text = "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.py")))
    words = re.findall(r"\w+|[^\w\s]|\n *", text)
    common = [word for word, _ in Counter(words).most_common(vocabulary_size - 1)]
    numbers = {word: number for number, word in enumerate(common)}
    return [numbers.get(word, vocabulary_size - 1) for word in words]


def scaled_teacher(
    name: str, vocabulary_size: int, num_tokens: int, raw: Callable[[int], Floats], gold: NDArray[np.int64] | None
) -> Teacher:
    """The teacher whose logits are `raw` times the number that brings the mean entropy to 1 nat, rounded to float32.

    Without gold ids, they are drawn from its distribution.
    """
    num_chunks = num_tokens // CHUNK_TOKENS
    sample = np.concatenate([raw(number) for number in range(0, num_chunks, max(num_chunks // 8, 1))])

    def sample_entropy(scale: float) -> float:
        return float(entropies(scale * sample).mean())

    def scale_of(entropy: float) -> float:
        return bisect(lambda scale: -sample_entropy(scale), -entropy, 0.05, 50.0)

    scale = scale_of(1.0)
    # The sample is off by a few hundredths of a nat from all of the tokens: aim it so that those come out at 1.
    mean = np.mean([entropies(scale * raw(number)).mean() for number in range(num_chunks)])
    scale = scale_of(sample_entropy(scale) + 1.0 - float(mean))

    def chunk(number: int) -> Floats:
        return (scale * raw(number)).astype(np.float32).astype(np.float64)

    if gold is None:
        generator = np.random.default_rng(5)
        numbers = range(-(-num_tokens // CHUNK_TOKENS))
        drawn = [
            np.argmax(chunk(number) + generator.gumbel(size=(CHUNK_TOKENS, vocabulary_size)), 1) for number in numbers
        ]
        gold = np.concatenate(drawn)[:num_tokens]
    return Teacher(name, vocabulary_size, num_tokens, chunk, gold)


def bisect(function: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Where a rising function reaches `target`."""
    for _ in range(20):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if function(middle) < target else (low, middle)
    return (low * high) ** 0.5


def entropies(logits: Floats) -> Floats:
    """The entropy `[n]` in nats."""
    p = softmax(logits)
    return -(p * np.log(np.maximum(p, 1e-300))).sum(axis=1)


def softmax(logits: Floats) -> Floats:
    """Probabilities along the last axis."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)
