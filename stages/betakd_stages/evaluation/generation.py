"""Greedy generation over a sample set, with the probability of each whole answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from betakd_stages.data.sample import Sample
from betakd_stages.models.loading import LoadedModel


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
    for start in range(0, len(samples), batch_size):
        encoded = [encoder.encode_prompt(sample) for sample in samples[start : start + batch_size]]
        batch = encoder.collate(encoded, padding_side="left")
        inputs = {
            name: batch[name].to(model.device)
            for name in ("input_ids", "attention_mask", "pixel_values")
            if name in batch
        }
        with torch.inference_mode():
            output = model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=max_new_tokens,
                output_scores=True,
                return_dict_in_generate=True,
                pad_token_id=encoder.tokenizer.pad_token_id,
                eos_token_id=encoder.tokenizer.eos_token_id,
            )
            new_ids = output.sequences[:, inputs["input_ids"].shape[1] :]
            log_probabilities = model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
        # Count the end token itself, nothing behind it; the padding token may be the end token.
        ended = (new_ids == encoder.tokenizer.eos_token_id).cumsum(dim=1)
        behind_end = ended - (new_ids == encoder.tokenizer.eos_token_id).int() > 0
        confidences = log_probabilities.masked_fill(behind_end, 0.0).sum(dim=1).exp().tolist()
        texts = encoder.tokenizer.batch_decode(new_ids, skip_special_tokens=True)
        yield [Answer(text.strip(), confidence) for text, confidence in zip(texts, confidences, strict=True)]
