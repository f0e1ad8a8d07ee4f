"""Greedy generation over a sample set, with the probability of each whole answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from betakd_stages.data.sample import Sample
from betakd_stages.encoding import model_inputs
from betakd_stages.models.loading import LoadedModel

GREEDY: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.0, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
"""The largest logit, whatever a model's generation_config.json says; what is behind the penalty has no effect."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A generated answer and the probability the model gives to all of its tokens together."""

    text: str
    confidence: float


def greedy_answers(
    loaded: LoadedModel, samples: Sequence[Sample], *, batch_size: int, max_new_tokens: int
) -> Iterator[list[Answer]]:
    """The answers, batch by batch in order. The model stays where it is; prompts are padded on the left."""
    model, encoder = loaded.model.eval(), loaded.encoder
    # Nobody trains the head's rows behind the tokenizer's last token: they are no answers.
    padding_rows = list(range(encoder.vocabulary_size, model.get_output_embeddings().weight.shape[0]))
    for start in range(0, len(samples), batch_size):
        encoded = [encoder.encode_prompt(sample) for sample in samples[start : start + batch_size]]
        batch = encoder.collate(encoded, padding_side="left")
        inputs = {name: value.to(model.device) for name, value in model_inputs(batch).items()}
        with torch.inference_mode():
            output = model.generate(
                **inputs,
                **GREEDY,
                max_new_tokens=max_new_tokens,
                output_scores=True,
                return_dict_in_generate=True,
                pad_token_id=encoder.pad_token_id,
                eos_token_id=encoder.end_token_ids,
                suppress_tokens=padding_rows or None,
            )
            new_ids = output.sequences[:, inputs["input_ids"].shape[1] :]
            log_probabilities = model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
        # Count the end token itself, nothing behind it; the padding token may be the end token.
        is_end = torch.isin(new_ids, torch.tensor(encoder.end_token_ids, device=new_ids.device)).int()
        behind_end = is_end.cumsum(dim=1) - is_end > 0
        confidences = log_probabilities.masked_fill(behind_end, 0.0).sum(dim=1).exp().tolist()
        texts = encoder.tokenizer.batch_decode(new_ids, skip_special_tokens=True)
        yield [Answer(text.strip(), confidence) for text, confidence in zip(texts, confidences, strict=True)]
