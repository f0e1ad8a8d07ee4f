"""What encoders, loading and freezing refuse, and that the message says what to do."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.stages.models.world import TURNS, folder_of, sample
from transformers import Qwen2Config

from betakd_cache import FeatureLayout, TokenRule
from betakd_stages.data.sample import Turn
from betakd_stages.encoding import Encoder, ProcessorEncoder, processor_loading
from betakd_stages.encoding.processor_loading import load_processor
from betakd_stages.errors import ConfigError, DataError, MismatchError, ModelError
from betakd_stages.features import require_places
from betakd_stages.models.forward import answer_rows
from betakd_stages.models.guards import require_usable
from betakd_stages.models.loading import LoadedModel, load_encoder, load_model
from betakd_stages.models.parts import freeze
from betakd_stages.teachers.hf import HuggingFaceTeacher

LLAVA, QWEN, SMOLVLM = "llava (CLIP)", "qwen2_5_vl", "smolvlm"


def encoder_with(template: str | Callable[[str], str], family: str = LLAVA) -> Encoder:
    """An encoder with another chat template, or a changed one."""
    encoder = load_encoder(folder_of(family))
    own = encoder.tokenizer.chat_template
    encoder.tokenizer.chat_template = template if isinstance(template, str) else template(own)
    return encoder


def copied(family: str, folder: Path) -> Path:
    return Path(shutil.copytree(folder_of(family), folder / "model"))


def change_config(folder: Path, **fields: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **fields}), encoding="utf-8")
    return folder


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    encoder = encoder_with(lambda own: "{{ messages | length > 2 }}" + own)
    with pytest.raises(ModelError, match="the chat template rewrites earlier text when a turn is added: the answer"):
        encoder.encode(sample(TURNS))


def test_a_template_that_rewrites_the_prompt_when_the_answer_comes_is_refused() -> None:
    encoder = encoder_with(lambda own: "{{ messages | length }}" + own)
    with pytest.raises(ModelError, match="the chat template rewrites the prompt when an answer is added: the answer"):
        encoder.encode(sample(TURNS))


def test_a_template_for_messages_of_plain_text_is_refused() -> None:
    plain = "{% for message in messages %}{{ '<|im_start|>' + message['content'] + '<|im_end|>' }}{% endfor %}"
    with pytest.raises(ModelError, match="fails on a message with parts of type image and text .*: give one that"):
        encoder_with(plain).encode(sample())


def test_a_template_that_raises_is_refused_with_its_words() -> None:
    raising = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ModelError, match="fails on a message .*\\(roles must alternate\\)"):
        encoder_with(raising).encode(sample())


def test_a_template_that_ends_answers_with_no_end_token_is_refused() -> None:
    encoder = encoder_with(lambda own: own.replace("<|im_end|>", ""), QWEN)
    with pytest.raises(ModelError, match="without the end-of-sequence token \\(or one that generation_config.json"):
        encoder.encode(sample())


@pytest.mark.parametrize(("text", "number"), [("", 0), ("<|image_pad|><|image_pad|>", 2)])
def test_a_llava_template_must_put_the_image_token_once(text: str, number: int) -> None:
    encoder = encoder_with(lambda own: own.replace("<|image_pad|>", text))
    with pytest.raises(ModelError, match=f"puts {number} image tokens into a prompt .*must put '<|image_pad|>' once"):
        encoder.encode(sample())


def test_a_template_without_the_image_is_refused_by_the_familys_processor_or_by_us() -> None:
    """Which of the two depends on the release of transformers."""
    encoder = encoder_with(lambda own: own.replace("<|image_pad|>", ""), QWEN)
    by = "Qwen2_5_VLProcessor refuses it|its prompt has no place for its image"
    with pytest.raises(DataError, match=f"sample one: ({by}) \\(.*mend the chat template if"):
        encoder.encode(sample())


@pytest.mark.parametrize("family", [LLAVA, QWEN, SMOLVLM, "gemma3"])
def test_control_tokens_in_the_text_are_refused(family: str) -> None:
    encoder = load_encoder(folder_of(family))
    for mark in (encoder.image_token, encoder.tokenizer.eos_token):
        for turn in (Turn(f"What is {mark}?", "A cat."), Turn("What is it?", f"A {mark} cat.")):
            with pytest.raises(DataError, match="sample one: its text holds '.*', which is a control token of this"):
                encoder.encode(sample([turn]))


def test_an_image_that_the_processor_cannot_take_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="sample one: Qwen2_5_VLProcessor refuses it \\(absolute aspect ratio must be"):
        load_encoder(folder_of(QWEN)).encode(sample(size=(800, 2)))


@pytest.mark.parametrize("family", [LLAVA, QWEN])
def test_a_sample_that_is_too_long_is_refused_never_cut(family: str) -> None:
    one = sample()
    length = len(load_encoder(folder_of(family)).encode(one).input_ids)
    assert len(load_encoder(folder_of(family), max_length=length).encode(one).input_ids) == length
    with pytest.raises(DataError, match=f"sample one is {length} tokens long, at most {length - 1} are taken: raise"):
        load_encoder(folder_of(family), max_length=length - 1).encode(one)


def test_the_models_context_is_the_longest_that_is_taken() -> None:
    encoder = load_encoder(folder_of(LLAVA))
    long = sample([Turn("What is it?", "A cat. " * 200)])
    with pytest.raises(DataError, match="tokens long, at most 512 are taken"):
        encoder.encode(long)
    with pytest.raises(ConfigError, match="max_length is 513, the context of .* is 512 tokens: lower it"):
        load_encoder(folder_of(LLAVA), max_length=513)


def test_tensors_that_do_not_form_a_batch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder: Any = load_encoder(folder_of(QWEN))
    own = encoder.processor

    class Ragged:
        def __call__(self, **given: Any) -> dict[str, Any]:
            return {**own(**given), "tiles": [[1], [1, 2]]}

    monkeypatch.setattr(encoder, "processor", Ragged())
    with pytest.raises(ModelError, match="Ragged gives tiles as list, a tensor is expected: not supported"):
        encoder.encode(sample())


def test_a_tower_that_is_not_known_is_refused(tmp_path: Path) -> None:
    pixtral = {"model_type": "pixtral", "image_size": 16, "patch_size": 4}
    encoder = load_encoder(change_config(copied(LLAVA, tmp_path), vision_config=pixtral))
    with pytest.raises(ModelError, match="the vision tower is of type 'pixtral': LLaVA is supported with clip_vision_"):
        encoder.encode(sample())


def test_a_family_whose_processor_needs_what_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor_loading, "STAND_INS", {})
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", None)
    with pytest.raises(ModelError, match="needs SmolVLMProcessor, which cannot be used here \\(Package `num2words`"):
        load_encoder(folder_of(SMOLVLM))


def test_a_family_without_a_processor_or_with_one_for_sound_is_refused() -> None:
    with pytest.raises(ModelError, match="is of model type 'fast_vlm', for which transformers has no processor"):
        load_processor(folder_of(QWEN), "fast_vlm")
    with pytest.raises(ModelError, match="its processor wants a part 'feature_extractor', supported are those for"):
        load_processor(folder_of(QWEN), "gemma3n")


def test_a_family_that_names_no_image_token_is_refused() -> None:
    encoder: Any = load_encoder(folder_of(QWEN))
    with pytest.raises(ModelError, match="config.json of model type 'qwen2' names no image_token_id: this family does"):
        ProcessorEncoder(encoder.processor, Qwen2Config())


def test_a_config_that_is_not_valid_is_one_line(tmp_path: Path) -> None:
    folder = change_config(copied(QWEN, tmp_path), image_token_id=None)
    with pytest.raises(ModelError, match="config.json of .* is not valid \\(Validation error for field 'image_tok"):
        load_encoder(folder)


@pytest.fixture
def loaded() -> LoadedModel:
    return load_model(folder_of(LLAVA))


def test_an_encoder_decoder_is_refused(loaded: LoadedModel) -> None:
    loaded.model.config.is_encoder_decoder = True
    with pytest.raises(ModelError, match="a model of type 'llava' has an encoder for text: supported are models"):
        require_usable(loaded.model, loaded.encoder)


def test_a_model_without_a_head_of_its_own_is_refused(loaded: LoadedModel) -> None:
    body: Any = loaded.model.base_model
    with pytest.raises(ModelError, match="a model of type 'llava' has no head apart from the rest"):
        require_usable(body, loaded.encoder)


def test_more_tokens_than_rows_are_refused(loaded: LoadedModel) -> None:
    loaded.encoder.tokenizer.add_tokens([f"word{number}" for number in range(60)])
    with pytest.raises(ModelError, match="the tokenizer has 329 tokens, the model 320 rows: they do not belong"):
        require_usable(loaded.model, loaded.encoder)


def test_scaled_logits_are_refused(loaded: LoadedModel) -> None:
    def scale(module: torch.nn.Module, given: Any, outputs: Any) -> Any:
        return dataclasses.replace(outputs, logits=outputs.logits * 0.99)

    loaded.model.register_forward_hook(scale)
    with pytest.raises(ModelError, match="a model of type 'llava' scales or caps its logits: both stages take"):
        require_usable(loaded.model, loaded.encoder)


def test_a_projector_of_unknown_name_is_refused_only_where_it_matters(loaded: LoadedModel) -> None:
    model = loaded.model.base_model
    model.bridge = model.multi_modal_projector
    del model.multi_modal_projector
    freeze(loaded.model, train_vision_tower=True, train_projector=True)
    with pytest.raises(ConfigError, match="where the vision tower of model type 'llava' ends and its projector"):
        freeze(loaded.model, train_vision_tower=False, train_projector=True)


def test_a_model_whose_language_model_sees_no_visual_tokens_has_no_vision_feature(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = loaded.encoder.collate([loaded.encoder.encode(sample())])
    monkeypatch.setattr(loaded.model, "get_decoder", lambda: loaded.model.base_model)
    with pytest.raises(ModelError, match="of type 'llava' gives its language model no visual tokens: leave the"):
        answer_rows(loaded.model, batch, {"vision": FeatureLayout()})


def test_places_of_images_of_varying_size_are_refused_on_both_sides() -> None:
    with pytest.raises(ConfigError, match="layout 'grid:2x2' needs the same number of visual tokens .*'smolvlm'"):
        HuggingFaceTeacher(load_model(folder_of(SMOLVLM)), TokenRule(), features=("vision:grid:2x2",))
    with pytest.raises(MismatchError, match="the cache holds vision as tokens, the student's images differ in their"):
        require_places(16, "tokens", None)
    require_places(1, "pooled", None)


def test_an_unsupported_type_is_refused_with_what_is_supported(tmp_path: Path) -> None:
    folder = change_config(copied(QWEN, tmp_path), model_type="bert")
    with pytest.raises(ModelError, match="supported are llava, mobilevlm and the image-text models of transformers"):
        load_encoder(folder)


def test_a_processor_file_that_is_damaged_is_one_line(tmp_path: Path) -> None:
    folder = copied(SMOLVLM, tmp_path)
    (folder / "processor_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="lacks a tokenizer or an image processor \\(It looks like the config file"):
        load_encoder(folder)
