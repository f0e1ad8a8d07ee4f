"""Prompts, masks and supervised tokens, against the published code's prompts and SentencePiece's ids."""

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image
from tests.stages.mobilevlm.published import TINY_STUDENT, VECTORS, write_published

from betakd_stages.data.sample import LoadedImage, Sample, Turn
from betakd_stages.encoding import IGNORED
from betakd_stages.errors import DataError, ModelError
from betakd_stages.models.loading import load_encoder
from betakd_stages.models.mobilevlm.encoder import MobileVlmEncoder
from betakd_stages.models.mobilevlm.processor import MobileVlmProcessor

PROMPTS = json.loads((VECTORS / "prompt_cases.json").read_text(encoding="utf-8"))["cases"]
GOLDEN = json.loads((VECTORS / "llama_style.json").read_text(encoding="utf-8"))["conversations"]
NUM_IMAGE_TOKENS = 4
PUBLISHED_IMAGE_ID = -200


@dataclasses.dataclass(frozen=True, slots=True)
class GreyImage:
    """An image that needs no file."""

    def load(self) -> LoadedImage:
        return LoadedImage(Image.new("RGB", (9, 5), (90, 90, 90)), self.sha256())

    def sha256(self) -> str:
        return "sha"


def encoder(folder: Path, version: str = "v1", legacy: bool | None = True) -> MobileVlmEncoder:
    loaded = load_encoder(write_published(folder / "model", TINY_STUDENT, prompt_version=version, legacy=legacy))
    assert isinstance(loaded, MobileVlmEncoder)
    return loaded


def sample(*turns: tuple[str, str], image: bool = True) -> Sample:
    return Sample("one", GreyImage() if image else None, tuple(Turn(*turn) for turn in turns))


@pytest.fixture(scope="module")
def v1(tmp_path_factory: pytest.TempPathFactory) -> MobileVlmEncoder:
    return encoder(tmp_path_factory.mktemp("v1"))


@pytest.mark.parametrize("case", PROMPTS, ids=lambda case: case["prompt"][-30:])
def test_prompts_are_the_published_codes(tmp_path: Path, case: dict) -> None:
    version = case["mode"].partition(" ")[0]
    *questions_and_answers, last = case["turns"]
    texts = [text.removeprefix("<image>\n") for text in [*questions_and_answers, last or "unknown"]]
    turns = tuple(Turn(question, answer) for question, answer in zip(texts[::2], texts[1::2], strict=True))
    segments = encoder(tmp_path, version).segments(turns, case["turns"][0].startswith("<image>"))
    if last is None:
        segments.pop()
    assert "".join(text for text, _ in segments) == case["prompt"]
    if "supervised_text" in case:
        assert "".join(text for text, supervised in segments if supervised) == case["supervised_text"]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['version']}-{case['turns']}-{case['legacy']}")
def test_ids_and_supervised_tokens_are_sentencepieces(tmp_path: Path, case: dict) -> None:
    subject = encoder(tmp_path, case["version"], case["legacy"])
    ids, labels = subject.encode_text(sample(*case["turns"], image=case["image"]))
    repeats = [NUM_IMAGE_TOKENS if id == PUBLISHED_IMAGE_ID else 1 for id in case["ids"]]
    placed = [0 if id == PUBLISHED_IMAGE_ID else id for id in case["ids"]]
    assert ids.tolist() == [id for id, times in zip(placed, repeats, strict=True) for _ in range(times)]
    assert labels.tolist() == [id for id, times in zip(case["labels"], repeats, strict=True) for _ in range(times)]


def test_a_tokenizer_that_does_not_say_whether_it_is_legacy_is(tmp_path: Path) -> None:
    turns = [("What is it?", "A cat."), ("Colour?", "Black.")]
    unsaid = encoder(tmp_path / "unsaid", legacy=None).encode_text(sample(*turns))[0].tolist()
    assert unsaid == encoder(tmp_path / "legacy", legacy=True).encode_text(sample(*turns))[0].tolist()
    assert unsaid != encoder(tmp_path / "newer", legacy=False).encode_text(sample(*turns))[0].tolist()


def test_answers_and_their_end_are_supervised_and_nothing_else(v1: MobileVlmEncoder) -> None:
    encoded = v1.encode(sample(("What is it?", "A cat."), ("Colour?", "Black.")))
    assert v1.tokenizer.decode(encoded.answer_ids) == "A cat.</s> Black.</s>"
    supervised = encoded.labels != IGNORED
    assert encoded.input_ids[supervised].tolist() == encoded.labels[supervised].tolist()


def test_a_caption_ends_with_a_line_break_and_no_end_token(tmp_path: Path) -> None:
    plain = encoder(tmp_path, "plain")
    encoded = plain.encode(sample(("Describe it", "A cat.")))
    assert plain.tokenizer.decode(encoded.answer_ids) == "A cat.\n"
    assert encoded.input_ids[:5].tolist() == [1, 0, 0, 0, 0]
    assert plain.encode_prompt(sample(("Describe it", "A cat."))).input_ids.tolist() == [1, 0, 0, 0, 0]


def test_the_prompt_at_inference_is_the_one_of_training_up_to_the_answer(v1: MobileVlmEncoder) -> None:
    prompt = v1.encode_prompt(sample(("What is it?", "A cat.")))
    text = v1.tokenizer.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}], tokenize=False
    )
    batch = v1.processor(images=GreyImage().load().pixels, text=text)
    assert batch["input_ids"][0].tolist() == prompt.input_ids.tolist()
    assert prompt.image_inputs
    assert batch["pixel_values"][0].tolist() == prompt.image_inputs["pixel_values"][0].tolist()


def test_the_processor_pads_on_the_left_and_masks_the_padding(v1: MobileVlmEncoder) -> None:
    assert isinstance(v1.processor, MobileVlmProcessor)
    texts = ["Hello", "What is it? Hello"]
    batch = v1.processor(text=texts)
    lengths = [len(v1.processor.tokenize_with_spans(text)[0]) for text in texts]
    assert lengths[0] < lengths[1]
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    assert batch["attention_mask"][0].tolist() == sorted(batch["attention_mask"][0].tolist())
    assert (batch["input_ids"][0][batch["attention_mask"][0] == 0] == v1.tokenizer.pad_token_id).all()
    assert "pixel_values" not in batch


@pytest.mark.parametrize("mark", ["<image>", "</s>", "<s>", "<unk>"])
def test_text_that_holds_a_control_token_is_refused(v1: MobileVlmEncoder, mark: str) -> None:
    for turn in ((f"What {mark} is it?", "A cat."), ("What is it?", f"A cat{mark}")):
        with pytest.raises(DataError, match=f"sample one: its text holds '{mark}', which is a control token"):
            v1.encode_text(sample(turn))


def test_plain_prompts_refuse_conversations_and_text_alone(tmp_path: Path) -> None:
    plain = encoder(tmp_path, "plain")
    with pytest.raises(DataError, match="plain prompts take one image and one turn, found an image and 2 turns"):
        plain.encode_text(sample(("a", "b"), ("c", "d")))
    with pytest.raises(DataError, match='found no image and 1 turns: give captions, or set prompt_version to "v1"'):
        plain.encode_text(sample(("a", "b"), image=False))


def test_a_tokenizer_that_merges_across_the_start_of_an_answer_is_refused(
    v1: MobileVlmEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = v1.processor.tokenize_with_spans

    def colon_takes_the_space_behind_it(text: str) -> tuple[list[int], list[tuple[int, int]]]:
        ids, spans = honest(text)
        return ids, [(begin, end + (text[end - 1 : end] == ":")) for begin, end in spans]

    monkeypatch.setattr(v1.processor, "tokenize_with_spans", colon_takes_the_space_behind_it)
    with pytest.raises(ModelError, match="the tokenizer joins the end of a prompt with the answer behind it"):
        v1.encode_text(sample(("Which tokens are joined?", "A cat.")))


def test_an_unknown_prompt_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="config.json has prompt_version 'v0': expected 'v1' or 'plain'"):
        encoder(tmp_path, "v0")


def test_teacher_and_student_with_other_prompts_have_other_identities(v1: MobileVlmEncoder, tmp_path: Path) -> None:
    plain = encoder(tmp_path, "plain")
    assert plain.identity()["prompt"] != v1.identity()["prompt"]
    assert plain.identity()["tokenizer"] == v1.identity()["tokenizer"]


@pytest.mark.parametrize("version", ["v1", "plain"])
def test_a_written_answer_ends_with_what_ends_one_in_the_data(tmp_path: Path, version: str) -> None:
    subject = encoder(tmp_path, version)
    answer = subject.answer_ids(sample(("What is it?", "A cat."))).tolist()
    ends = [place for place, token_id in enumerate(answer) if token_id in subject.end_token_ids]
    assert ends == [len(answer) - 1]
