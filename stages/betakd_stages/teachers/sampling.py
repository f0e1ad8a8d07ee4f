"""Sampling that depends on what is sampled and on nothing else: not on batch, order, process or device.

Adding independent standard Gumbel noise to logits and taking the largest is a draw from their softmax (Gumbel-max). The
noise is a function of seed, answer, step and token, so a run that is interrupted or cut up differently draws the same.

B answers, V rows of the head.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from betakd_stages.settings.teacher import GenerationSettings

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


class KeyedSampling(LogitsProcessor):
    """Logits to numbers whose largest is a draw at the settings' temperature and top_p; call it once per step."""

    def __init__(self, generation: GenerationSettings, keys: Sequence[str]) -> None:
        """`keys` [B] name the answers."""
        self._seed, self._keys, self._step = generation.seed, keys, 0
        self._warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(generation.temperature)]
        if generation.top_p < 1:
            self._warpers.append(TopPLogitsWarper(generation.top_p))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Float64 [B, V] of logits [B, V]."""
        for warper in self._warpers:
            scores = warper(input_ids, scores)
        seeds = torch.tensor([stream_seed(self._seed, key, self._step) for key in self._keys], device=scores.device)
        self._step += 1
        return scores + gumbel_noise(seeds, scores.shape[1])


def stream_seed(seed: int, key: str, step: int) -> int:
    """64 bits, as a signed number, for one step of one answer."""
    digest = hashlib.sha256(f"{seed}\0{key}\0{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def gumbel_noise(seeds: Tensor, num_numbers: int) -> Tensor:
    """Standard Gumbel numbers, float64 [B, num_numbers]; row b is made of the SplitMix64 stream of seeds[b], int64.

    Whole numbers wrap around, so every device makes the same. Source: Steele, Lea, Flood 2014 (SplitMix64).
    """
    counters = torch.arange(1, num_numbers + 1, device=seeds.device)
    state = seeds[:, None] + counters * _signed(GOLDEN_GAMMA)
    for shift, factor in MIX:
        state = (state ^ _shifted(state, shift)) * _signed(factor)
    state = state ^ _shifted(state, 31)
    uniform = (_shifted(state, 12).double() + 0.5) * 2.0**-52  # strictly between 0 and 1: 52 bits and a half are exact
    return -(-uniform.log()).log()


def _shifted(state: Tensor, shift: int) -> Tensor:
    """An unsigned shift to the right; torch's own one repeats the sign."""
    return (state >> shift) & ((1 << (64 - shift)) - 1)


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number
