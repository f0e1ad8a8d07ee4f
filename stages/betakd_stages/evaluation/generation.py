"""Greedy generation over a sample set, with the probability of each whole answer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from betakd_stages.data.sample import Sample
from betakd_stages.models.generation import continue_prompts
from betakd_stages.models.loading import LoadedModel
from betakd_stages.settings import EvaluateSettings


@dataclass(frozen=True, slots=True)
class Answer:
    """A generated answer and the probability the model gives to all of its tokens together; the tokens, an end token
    included, where somebody reads them."""

    text: str
    confidence: float
    token_ids: Sequence[int] = ()


Answerer = Callable[..., Iterator[list[Answer]]]
"""From samples, `batch_size` and `max_new_tokens` to answers, batch by batch."""


@contextmanager
def opened_answerer(settings: EvaluateSettings, loaded: Callable[[], LoadedModel]) -> Iterator[Answerer]:
    """The model of these settings, ready to answer: `loaded` for transformers, or vLLM's own.

    Raises ModelError, ConfigError where it cannot be had.
    """
    if settings.backend == "hf":
        yield partial(greedy_answers, loaded())
        return
    from betakd_stages.teachers.vllm.answering import VllmAnswerer  # its engine takes vLLM

    answerer = VllmAnswerer(settings)
    try:
        yield answerer.answers
    finally:
        answerer.close()


def greedy_answers(
    loaded: LoadedModel, samples: Sequence[Sample], *, batch_size: int, max_new_tokens: int
) -> Iterator[list[Answer]]:
    """The answers, batch by batch in order. The model stays where it is; prompts are padded on the left."""
    model, encoder = loaded.model.eval(), loaded.encoder
    for start in range(0, len(samples), batch_size):
        prompts = [encoder.encode_prompt(sample) for sample in samples[start : start + batch_size]]
        new_ids, output = continue_prompts(loaded, prompts, max_new_tokens=max_new_tokens, output_scores=True)
        log_probabilities = model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
        # Count the end token itself, nothing behind it; the padding token may be the end token.
        is_end = torch.isin(new_ids, torch.tensor(encoder.end_token_ids, device=new_ids.device)).int()
        behind_end = is_end.cumsum(dim=1) - is_end > 0
        confidences = log_probabilities.masked_fill(behind_end, 0.0).sum(dim=1).exp().tolist()
        texts = encoder.tokenizer.batch_decode(new_ids, skip_special_tokens=True)
        ids = [row[~behind].tolist() for row, behind in zip(new_ids, behind_end, strict=True)]
        yield [Answer(text.strip(), *rest) for text, *rest in zip(texts, confidences, ids, strict=True)]
