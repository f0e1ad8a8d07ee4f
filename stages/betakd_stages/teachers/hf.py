"""A teacher run by transformers: teacher-forced, its head applied to the answer rows only."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from betakd_cache import FeatureLayout, TeacherRecord, TokenRule
from betakd_stages.encoding import EncodedSample
from betakd_stages.errors import ConfigError
from betakd_stages.feature_layouts import parse_feature
from betakd_stages.features import feature_layout
from betakd_stages.models.forward import AnswerRows, answer_rows
from betakd_stages.models.generation import continue_prompts
from betakd_stages.models.loading import LoadedModel, weights_sha256
from betakd_stages.settings.teacher import GenerationSettings
from betakd_stages.targets import TeacherTargets
from betakd_stages.teachers.base import Scored
from betakd_stages.teachers.focus import first_layer_attention, visual_focus
from betakd_stages.teachers.records import cut_records, flat_columns, targets_of, token_counts
from betakd_stages.teachers.sampling import KeyedSampling


class HuggingFaceTeacher:
    """A `Teacher` that is a model of transformers on one device."""

    knows_logits = True
    batches_itself = False

    def __init__(
        self,
        loaded: LoadedModel,
        token_rule: TokenRule,
        features: Sequence[str] = ("vision", "prompt"),
        vision_focus: int = 0,
    ) -> None:
        """`features` as in `feature_layouts`; `vision_focus` visual tokens of each sample are noted, see `focus`.

        Raises ConfigError for a layout that the teacher's images do not have.
        """
        self.loaded = loaded
        self.encoder = loaded.encoder
        self._model = loaded.model.eval().requires_grad_(False)
        self.token_rule = token_rule
        self._vision_focus = vision_focus
        if vision_focus:
            self._model.set_attn_implementation("eager")  # no other one hands out its weights
        named = dict(map(parse_feature, features))
        hidden_size = loaded.model.config.get_text_config().hidden_size
        self.vocabulary_size = self.encoder.vocabulary_size
        self.feature_sizes = dict.fromkeys(named, hidden_size)
        self._layouts = {name: feature_layout(layout, self.encoder, vision_focus) for name, layout in named.items()}

    @property
    def feature_layouts(self) -> dict[str, FeatureLayout]:
        """The layouts of the features that are not pooled, by name."""
        return {name: layout for name, layout in self._layouts.items() if not layout.is_pooled}

    def identity(self) -> dict[str, Any]:
        """What the cache must remember: the teacher's weights and how they were run, and its encoder's identity."""
        config = self.loaded.model.config
        quantisation = getattr(config, "quantization_config", None)
        teacher = {
            "model_type": config.model_type,
            "weights_sha256": weights_sha256(self.loaded.folder),
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "backend": "hf",
            "attention": str(config._attn_implementation),
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        }
        if isinstance(quantisation, transformers.BitsAndBytesConfig):
            teacher["quantisation"] = "int8" if quantisation.load_in_8bit else "int4"
        return {"teacher": teacher, **self.encoder.identity()}

    @torch.inference_mode()
    def score(self, encoded: Sequence[EncodedSample]) -> Scored:
        """The records of a batch; a sample with a NaN or infinite logit is rejected, the others are not harmed.

        Raises ConfigError where the batch is too much for the device's memory.
        """
        try:
            rows, focus = self.forward(self.batch(encoded))
            targets, bad = self.targets(rows, len(encoded))
        except torch.OutOfMemoryError:
            raise ConfigError(
                f"the GPU's memory does not hold a batch of {len(encoded)} samples of up to "
                f"{max(len(sample.input_ids) for sample in encoded)} tokens: lower batch_size, use precision bf16, or "
                "spread the teacher over several GPUs (device_map auto)"
            ) from None
        records = self.records(targets, rows, focus, encoded)
        return Scored(
            [record for index, record in enumerate(records) if index not in bad],
            {encoded[index].sample_id: "the teacher's logits hold NaN or infinity" for index in sorted(bad)},
        )

    def write(
        self,
        prompts: Sequence[EncodedSample],
        keys: Sequence[str],
        limits: Sequence[int],
        generation: GenerationSettings,
    ) -> list[list[int] | str]:
        """The ids written behind each prompt, as `base.Teacher` has it.

        Raises ConfigError where the batch is too much for the device's memory.
        """
        encoder = self.encoder
        sampling = [KeyedSampling(generation, keys)] if generation.temperature else []
        try:
            new_ids, _ = continue_prompts(
                self.loaded,
                prompts,
                max_new_tokens=max(limits),
                forbidden=encoder.control_token_ids,
                processors=sampling,
            )
        except torch.OutOfMemoryError:
            raise ConfigError(
                f"the GPU's memory does not hold {len(prompts)} answers of up to {max(limits)} tokens while they are "
                "written: lower batch_size or generation.max_new_tokens, or use precision bf16"
            ) from None
        return [
            _up_to_end(ids[:limit], encoder.end_token_ids) for ids, limit in zip(new_ids.tolist(), limits, strict=True)
        ]

    def batch(self, encoded: Sequence[EncodedSample]) -> dict[str, Tensor]:
        """The padded batch of these samples on the teacher's device."""
        return {name: value.to(self._model.device) for name, value in self.encoder.collate(encoded).items()}

    def forward(self, batch: dict[str, Tensor]) -> tuple[AnswerRows, list[list[int]]]:
        """The answer rows of a batch, and the places in focus of each sample; none of one without an image."""
        if not self._vision_focus:
            return answer_rows(self._model, batch, self._layouts), [[] for _ in batch["labels"]]
        with first_layer_attention(self._model) as captured:
            rows = answer_rows(self._model, batch, self._layouts)
        image_token_id = self.encoder.image_token_id
        found = iter(visual_focus(captured[0], batch, image_token_id, self._vision_focus).tolist())
        return rows, [next(found) if has_image else [] for has_image in batch["has_image"].tolist()]

    def targets(self, rows: AnswerRows, num_samples: int) -> tuple[TeacherTargets, set[int]]:
        """What is kept of a batch's logits, chosen on the device, and which samples have one that is not finite."""
        samples = {"sample_index": rows.sample_index, "num_samples": num_samples}
        targets, finite = targets_of(self._logits(rows), rows.gold_ids, self.token_rule, **samples)
        return targets, set(rows.sample_index[~finite].tolist())

    def records(
        self, targets: TeacherTargets, rows: AnswerRows, focus: Sequence[list[int]], encoded: Sequence[EncodedSample]
    ) -> list[TeacherRecord]:
        """One record per sample of the batch that these targets and rows are of."""
        features = {name: values.float().cpu() for name, values in rows.features.items()}
        present = {name: values.tolist() for name, values in rows.present.items()}
        held = [
            {name: values[index] for name, values in features.items() if present[name][index]}
            for index in range(len(encoded))
        ]
        return cut_records(flat_columns(targets), token_counts(targets), encoded, held, focus)

    def _logits(self, rows: AnswerRows) -> Tensor:
        # Rows of the head beyond the tokenizer's real size are padding: nobody may give them probability.
        logits = self._model.get_output_embeddings()(rows.hidden)[:, : self.vocabulary_size].float()
        return logits.to(rows.gold_ids.device)  # a teacher over several GPUs has its head on the last

    def close(self) -> None:
        """Nothing: the model goes with the teacher."""


def _up_to_end(ids: list[int], end_token_ids: Sequence[int]) -> list[int]:
    """The ids up to and with the first end token, all where there is none."""
    ends = [place for place, token_id in enumerate(ids) if token_id in end_token_ids]
    return ids[: ends[0] + 1] if ends else ids
