"""One sample as a model eats it, and how several become a batch.

B samples, L tokens.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

IGNORED = -100
NOT_FOR_THE_MODEL = ("labels", "has_image", "sample_ids", "teacher", "segments")
"""What a batch holds beside the model's inputs."""


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """One sample as a model eats it."""

    sample_id: str
    input_ids: Tensor  # int64 [L], the image's placeholders included
    labels: Tensor  # int64 [L], the id where it is supervised, else -100
    image_inputs: Mapping[str, Tensor]  # by the model's names, each as for a batch of one; empty without an image
    token_inputs: Mapping[str, Tensor]  # int64 [L] each, by the model's names, such as mm_token_type_ids
    image_sha256: str | None

    @property
    def answer_ids(self) -> Tensor:
        """The supervised ids, int64 [T]."""
        return self.labels[self.labels != IGNORED]

    @property
    def num_bytes(self) -> int:
        """What the tensors take in memory."""
        tensors = (self.input_ids, self.labels, *self.image_inputs.values(), *self.token_inputs.values())
        return sum(tensor.nbytes for tensor in tensors)

    def prompt(self) -> "EncodedSample":
        """The sample up to where its first answer begins: nothing is supervised."""
        end = int((self.labels != IGNORED).nonzero()[0, 0])
        return dataclasses.replace(
            self,
            input_ids=self.input_ids[:end],
            labels=self.labels[:end],
            token_inputs={name: values[:end] for name, values in self.token_inputs.items()},
        )


def collate(encoded: Sequence[EncodedSample], pad_token_id: int, padding_side: str) -> dict[str, Tensor]:
    """A padded batch: input_ids, attention_mask, labels and token inputs int64 [B, L], and the images' tensors.

    has_image bool [B] tells which samples have an image; the images' tensors follow each other along dimension 0,
    padded with zeros to the largest along the others, as the families' processors do it.
    """

    def padded(tensors: list[Tensor], value: int) -> Tensor:
        return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=padding_side)

    batch = {
        "input_ids": padded([sample.input_ids for sample in encoded], pad_token_id),
        # From lengths, never from `ids != pad`: the padding token may be the end token.
        "attention_mask": padded([torch.ones_like(sample.input_ids) for sample in encoded], 0),
        "labels": padded([sample.labels for sample in encoded], IGNORED),
        "has_image": torch.tensor([bool(sample.image_inputs) for sample in encoded]),
    }
    for name in encoded[0].token_inputs:
        batch[name] = padded([sample.token_inputs[name] for sample in encoded], 0)
    with_image = [sample.image_inputs for sample in encoded if sample.image_inputs]
    for name in with_image[0] if with_image else ():
        batch[name] = _joined([image_inputs[name] for image_inputs in with_image])
    return batch


def packed(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A padded batch, right-padded, as one row without padding: the samples of B rows follow each other in `[1, N]`.

    position_ids begin at 0 with every sample, from which a model without attention_mask sees where one ends; segments
    int64 `[1, N]` is the sample of each token.
    """
    valid = batch["attention_mask"].bool()
    rows, places = valid.nonzero(as_tuple=True)
    result = dict(batch)
    for name, values in batch.items():
        if values.shape == valid.shape:
            result[name] = values[valid][None]
    del result["attention_mask"]
    # No token predicts the first one of the next sample.
    result["labels"] = result["labels"].masked_fill(places == 0, IGNORED)
    return {**result, "position_ids": places[None], "segments": rows[None]}


def segments(batch: Mapping[str, Tensor]) -> Tensor:
    """The sample of each token, int64, of the shape of input_ids."""
    if "segments" in batch:
        return batch["segments"]
    ids = batch["input_ids"]
    return torch.arange(len(ids), device=ids.device)[:, None].expand(ids.shape)


def supervised_tokens(batch: Mapping[str, Tensor]) -> Tensor:
    """How many tokens of each sample are supervised, int64 [B]."""
    predicted = batch["labels"][:, 1:] != IGNORED
    return torch.bincount(segments(batch)[:, 1:][predicted], minlength=len(batch["has_image"]))


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """The part of a batch that goes into the model."""
    return {name: value for name, value in batch.items() if name not in NOT_FOR_THE_MODEL}


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors along dimension 0, zeros behind what is shorter along another."""
    sizes = [max(own) for own in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]

    def filled(tensor: Tensor) -> Tensor:
        missing = [size - own for size, own in zip(sizes, tensor.shape[1:], strict=True)]
        return pad(tensor, [number for zeros in reversed(missing) for number in (0, zeros)])

    return torch.cat([filled(tensor) for tensor in tensors])
