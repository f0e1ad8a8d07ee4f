"""Answers as ids, put where a sample leaves its own open: no text in between, so nothing is tokenised twice."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from betakd_stages.encoding.sample import IGNORED, EncodedSample


@dataclass(frozen=True, slots=True)
class WrittenAnswer:
    """The ids of an answer, its end token last unless it was cut off before."""

    ids: tuple[int, ...]
    is_cut: bool


def answer_spans(labels: Tensor) -> list[tuple[int, int]]:
    """Where each answer starts and stops in the labels, int64 [L], of one sample."""
    supervised = torch.nn.functional.pad((labels != IGNORED).int(), (1, 1))
    edges = supervised.diff().nonzero()[:, 0].tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def with_answers(encoded: EncodedSample, answers: Sequence[WrittenAnswer]) -> EncodedSample:
    """The sample with these answers in the place of its first ones, up to where the next answer would begin.

    With no answer it is the prompt of the first, with all it is the whole sample. What the template puts behind an
    answer stays. Behind one that was cut off goes the end token that stood there before, unsupervised: later turns
    see a well-formed conversation, and nobody learns an end that was not written.
    """
    spans = answer_spans(encoded.labels)
    sources, ids, labels = [], [], []

    def keep(start: int, stop: int) -> None:
        sources.append(torch.arange(start, stop))
        ids.append(encoded.input_ids[start:stop])
        labels.append(torch.full((stop - start,), IGNORED))

    behind = 0
    for (start, stop), answer in zip(spans, answers, strict=False):
        keep(behind, start)
        written = torch.tensor(answer.ids)
        sources.append(torch.full_like(written, -1))
        ids.append(written)
        labels.append(written)
        behind = stop - 1 if answer.is_cut else stop
    keep(behind, spans[len(answers)][0] if len(answers) < len(spans) else len(encoded.labels))
    source = torch.cat(sources)
    return dataclasses.replace(
        encoded,
        input_ids=torch.cat(ids),
        labels=torch.cat(labels),
        # Such inputs say where an image is, which no answer holds: 0 everywhere in it.
        token_inputs={name: values[source] * (source >= 0) for name, values in encoded.token_inputs.items()},
    )
