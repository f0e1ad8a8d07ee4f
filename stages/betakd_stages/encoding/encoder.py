"""What the encoders of all families share: prompts, the answer mask, identity, batches.

B samples, L tokens.
"""

import functools
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, GenerationConfig

from betakd_stages.data.sample import Sample, Turn
from betakd_stages.encoding.sample import IGNORED, EncodedSample, collate
from betakd_stages.errors import DataError, ModelError

TEXTS_IN_MEMORY = 2**15


class Encoder(ABC):
    """Encodes samples for one model folder; one subclass per way to make tokens of an image.

    `tokenizer`, `image_processor` and `config` are transformers'. `max_length` is the most tokens a sample may have:
    the model's context unless it is set lower.
    """

    def __init__(
        self, tokenizer: Any, image_processor: Any, config: Any, generation_config: GenerationConfig | None = None
    ) -> None:
        """`generation_config` names end tokens beside the tokenizer's own."""
        if not tokenizer.chat_template:
            raise ModelError("the tokenizer has no chat template: save one with the model (chat_template.jinja)")
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.config = config
        self.max_length: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
        ends = generation_config.eos_token_id if generation_config else None
        ends = ends if isinstance(ends, list) else [ends]
        self.end_token_ids = list(dict.fromkeys(id for id in (tokenizer.eos_token_id, *ends) if id is not None))
        # Matching a cache and training both need the text of a sample; rendering and tokenising take a millisecond.
        self._encode_turns = functools.lru_cache(TEXTS_IN_MEMORY)(self._encode_conversation)

    @classmethod
    def load(cls, folder: Path) -> "Encoder":
        """The encoder of a model folder. Raises OSError or ValueError where a part is missing."""
        return cls(
            AutoTokenizer.from_pretrained(folder, local_files_only=True),
            AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil"),
            AutoConfig.from_pretrained(folder, local_files_only=True),
            load_generation_config(folder),
        )

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write to a model folder what `load` needs beside the model's own files."""

    @property
    @abstractmethod
    def num_image_tokens(self) -> int | None:
        """How many tokens one image becomes; None where that depends on the image."""

    @abstractmethod
    def encode(self, sample: Sample) -> EncodedSample:
        """The whole sample.

        Raises DataError where its image cannot be read, where it is too long, and for control tokens in its text.
        """

    @property
    def pad_token_id(self) -> int:
        """The id of padding, an end token where the tokenizer has none: it is masked."""
        pad_token_id = self.tokenizer.pad_token_id
        return self.end_token_ids[0] if pad_token_id is None else pad_token_id

    @property
    def image_token_id(self) -> int:
        """The id of the placeholder that visual tokens replace."""
        return int(self.config.image_token_id)

    @property
    def image_token(self) -> str:
        """The text of that placeholder."""
        return str(self.tokenizer.convert_ids_to_tokens(self.image_token_id))

    @property
    def vocabulary_size(self) -> int:
        """The tokenizer's real size; rows of the head beyond it are padding."""
        return len(self.tokenizer)

    def identity(self) -> dict[str, Any]:
        """What a cache must remember of this encoder: tokenizer, prompt template and image processing."""
        return {
            "tokenizer": {"sha256": self._tokenizer_sha256, "vocabulary_size": self.vocabulary_size},
            "prompt": {"template_sha256": hashlib.sha256(self.tokenizer.chat_template.encode()).hexdigest()},
            "image_processor": {"sha256": self._image_processor_sha256},
        }

    @functools.cached_property
    def _tokenizer_sha256(self) -> str:
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        special = sorted(map(str, self.tokenizer.all_special_tokens))
        return hashlib.sha256(json.dumps([vocabulary, special]).encode()).hexdigest()

    @functools.cached_property
    def _image_processor_sha256(self) -> str:
        settings = {key: value for key, value in self.image_processor.to_dict().items() if "_type" not in key}
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()

    def segments(self, turns: Sequence[Turn], has_image: bool) -> list[tuple[str, bool]]:
        """The conversation's text in order, each piece with whether it is supervised: prompt, answer, prompt, ...

        A prompt is what the chat template renders for generation, so that training and inference ask alike.
        """
        messages: list[dict[str, Any]] = []
        pieces: list[tuple[str, bool]] = []
        done = ""
        for index, turn in enumerate(turns):
            image = [{"type": "image"}] if index == 0 and has_image else []
            messages.append({"role": "user", "content": [*image, {"type": "text", "text": turn.question}]})
            prompt = self._render(messages, add_generation_prompt=True)
            messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
            full = self._render(messages, add_generation_prompt=False)
            if not prompt.startswith(done):
                raise ModelError(
                    "the chat template rewrites earlier text when a turn is added: the answer mask is unsafe"
                )
            answer = full[len(prompt) :] if full.startswith(prompt) else _answer_behind(prompt, full, turn.answer)
            pieces += [(prompt[len(done) :], False), (answer, True)]
            done = full
        return pieces

    def _render(self, messages: list[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except (TemplateError, TypeError) as error:
            raise ModelError(
                f"the chat template fails on a message with parts of type image and text ({error}): give one that "
                "takes them"
            ) from None

    def answer_ids(self, sample: Sample) -> Tensor:
        """The supervised ids, int64 [T], without reading the image. Raises DataError as `encode` does."""
        labels = self.encode_text(sample)[1]
        return labels[labels != IGNORED]

    def encode_text(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """Input ids and labels, int64 [L] each, as far as they are known without reading the image.

        An answer's segment is supervised up to its end token. Raises DataError for control tokens in the text and
        where it is too long.
        """
        self._refuse_control_tokens(sample)
        ids, labels = self._encode_turns(sample.turns, sample.image is not None)
        self.require_length(sample.sample_id, len(ids))
        return ids, labels

    def require_length(self, sample_id: str, num_tokens: int) -> None:
        """Nothing; raises DataError where a sample has too many tokens: an answer is never cut."""
        if self.max_length is not None and num_tokens > self.max_length:
            raise DataError(
                f"sample {sample_id} is {num_tokens} tokens long, at most {self.max_length} are taken: raise "
                "max_length (up to the model's context), or leave the sample out"
            )

    def _refuse_control_tokens(self, sample: Sample) -> None:
        for turn in sample.turns:
            if found := self._control_tokens.search(turn.question) or self._control_tokens.search(turn.answer):
                raise DataError(
                    f"sample {sample.sample_id}: its text holds {found[0]!r}, which is a control token of this model: "
                    "take it out of the data"
                )

    @functools.cached_property
    def _control_tokens(self) -> re.Pattern[str]:
        tokens = {*map(str, self.tokenizer.all_special_tokens), self.image_token}
        return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))

    @functools.cached_property
    def control_token_ids(self) -> list[int]:
        """The ids that no answer may hold: what the tokenizer calls special and the image's placeholder, less ends."""
        special = {id for id, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        special |= {*self.tokenizer.all_special_ids, self.image_token_id}
        return sorted(special - set(self.end_token_ids))

    def _encode_conversation(self, turns: tuple[Turn, ...], has_image: bool) -> tuple[Tensor, Tensor]:
        ids = self._start_ids(turns, has_image)
        labels = [IGNORED] * len(ids)
        for text, supervised in self.segments(turns, has_image):
            piece = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            if not supervised:
                piece = self._expand_image_token(piece)
            cut = self._supervised_length(piece) if supervised else 0
            ids += piece
            labels += piece[:cut] + [IGNORED] * (len(piece) - cut)
        return torch.tensor(ids), torch.tensor(labels)

    def _start_ids(self, turns: tuple[Turn, ...], has_image: bool) -> list[int]:
        """The start token where the tokenizer puts one in front of every text and the template has not done so."""
        start = self.tokenizer.bos_token_id
        if start is None or self.tokenizer("")["input_ids"][:1] != [start]:
            return []
        opening = self.segments(turns, has_image)[0][0]
        return [] if opening.startswith(self.tokenizer.bos_token) else [start]

    def _expand_image_token(self, piece: list[int]) -> list[int]:
        """A prompt's ids with the placeholder repeated, where that can be known from the text."""
        return piece

    def _supervised_length(self, piece: Sequence[int]) -> int:
        for place, id in enumerate(piece):
            if id in self.end_token_ids:
                return place + 1
        raise ModelError(
            "the chat template closes an answer without the end-of-sequence token (or one that generation_config.json "
            "names): mend the template"
        )

    def encode_prompt(self, sample: Sample) -> EncodedSample:
        """The sample up to where its first answer begins, for generation: nothing is supervised."""
        return self.encode(sample).prompt()

    def collate(self, encoded: Sequence[EncodedSample], *, padding_side: str = "right") -> dict[str, Tensor]:
        """A padded batch, as in `sample.collate`."""
        return collate(encoded, self.pad_token_id, padding_side)


def load_generation_config(folder: Path) -> GenerationConfig | None:
    """What a model folder says about generation, if it does."""
    if not (folder / "generation_config.json").is_file():
        return None
    return GenerationConfig.from_pretrained(folder, local_files_only=True)


def _answer_behind(prompt: str, full: str, answer: str) -> str:
    """The answer's segment where the template spaces a prompt and the same prompt with an answer differently."""
    place = 0
    for character in "".join(prompt.split()):
        while full[place : place + 1].isspace():
            place += 1
        place += 1
        if full[place - 1 : place] != character:
            break
    else:
        rest = full[place:].lstrip()
        if rest.startswith(answer.strip()):
            return answer[: len(answer) - len(answer.lstrip())] + rest
    raise ModelError("the chat template rewrites the prompt when an answer is added: the answer mask is unsafe")
