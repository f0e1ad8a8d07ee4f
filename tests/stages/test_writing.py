"""Writing answers turn by turn: prompts, lengths and ends, with a teacher whose words are fixed beforehand."""

from collections.abc import Sequence
from typing import cast

import pytest
import torch
from tests.world import World

from betakd_stages.caching.written_rows import length_text, parse_lengths
from betakd_stages.data.asked import asked, samples_for
from betakd_stages.data.sample import Sample, Turn
from betakd_stages.encoding import IGNORED, EncodedSample
from betakd_stages.encoding.written import WrittenAnswer, answer_spans, with_answers
from betakd_stages.errors import DataError
from betakd_stages.models.loading import load_encoder
from betakd_stages.settings.teacher import GenerationSettings
from betakd_stages.teachers.base import Teacher
from betakd_stages.teachers.writing import AnswerWriter

QUESTIONS = ("which digit is this ?", "is this digit even ?", "is this digit prime ?")


class Scripted:
    """A teacher that says what stands in its script, cut at the limits, and notes what it was asked."""

    def __init__(self, script: dict[str, list[int]]) -> None:
        self.script = script  # of a key that is missing the answer cannot be had
        self.calls: list[list[str]] = []
        self.prompts: dict[str, list[int]] = {}
        self.limits: dict[str, int] = {}

    def write(
        self,
        prompts: Sequence[EncodedSample],
        keys: Sequence[str],
        limits: Sequence[int],
        generation: GenerationSettings,
    ) -> list[list[int] | str]:
        self.calls.append(list(keys))
        for key, prompt, limit in zip(keys, prompts, limits, strict=True):
            assert (prompt.input_ids.shape, prompt.image_inputs) == (prompt.labels.shape, {})
            self.prompts[key], self.limits[key] = prompt.input_ids.tolist(), limit
        return [
            self.script[key][:limit] if key in self.script else f"no answer {key}"
            for key, limit in zip(keys, limits, strict=True)
        ]


def conversation(sample_id: str, num_turns: int) -> Sample:
    return Sample(sample_id, None, tuple(Turn(question, "yes") for question in QUESTIONS[:num_turns]))


@pytest.fixture
def words(world: World) -> dict[str, int]:
    return load_encoder(world.teacher).tokenizer.get_vocab()


def test_each_turn_is_written_behind_the_ids_of_the_earlier_ones_and_the_template(
    world: World, words: dict[str, int]
) -> None:
    encoder = load_encoder(world.teacher)
    end, no, five = words["</s>"], words["no"], words["5"]
    # An answer, one that is cut off at three tokens, and one that ends at once.
    script = {"a#generated/0": [five, end], "a#generated/1": [no, no, no, no], "a#generated/2": [end]}
    script["b#generated/0"] = [no, end]
    teacher = Scripted(script)
    writer = AnswerWriter(cast(Teacher, teacher), encoder, GenerationSettings(max_new_tokens=3))
    data = conversation("c", 1)
    batch = [encoder.encode(s) for s in (asked(conversation("a", 3)), data, asked(conversation("b", 1)))]
    written = writer.fill(batch)
    filled, columns = written.batch, written.columns

    def ids(text: str) -> list[int]:
        return [words[word] for word in text.split()]

    first = [*ids(f"{QUESTIONS[0]} assistant:")]
    second = [*first, five, end, *ids(f"{QUESTIONS[1]} assistant:")]
    third = [*second, no, no, no, end, *ids(f"{QUESTIONS[2]} assistant:")]
    assert teacher.calls == [["a#generated/0", "b#generated/0"], ["a#generated/1"], ["a#generated/2"]]
    assert [teacher.prompts[f"a#generated/{turn}"] for turn in range(3)] == [first, second, third]
    assert filled[0].input_ids.tolist() == [*third, end]
    unlearned = [IGNORED] * len(ids(f"{QUESTIONS[0]} assistant:"))
    expected = [*unlearned, five, end, *unlearned, no, no, no, IGNORED, *unlearned, end]
    assert filled[0].labels.tolist() == expected  # the questions are of one length; nobody learns an end not written
    assert filled[1] is batch[1]
    assert filled[2].answer_ids.tolist() == [no, end]
    assert columns == {
        "a#generated": {"answer_lengths": "2,3+,1"},
        "b#generated": {"answer_lengths": "2"},
    }
    assert parse_lengths("2,3+,1") == [(2, False), (3, True), (1, False)]
    assert length_text(parse_lengths("2,3+,1")) == "2,3+,1"


def test_a_sample_whose_answer_cannot_be_written_is_left_out_with_the_reason_and_harms_no_other(
    world: World, words: dict[str, int]
) -> None:
    encoder, end = load_encoder(world.teacher), words["</s>"]
    teacher = Scripted({"a#generated/0": [end], "b#generated/0": [end], "b#generated/1": [end], "b#generated/2": [end]})
    batch = [encoder.encode(asked(conversation(name, 3))) for name in "ab"]
    filled = AnswerWriter(cast(Teacher, teacher), encoder, GenerationSettings()).fill(batch)
    assert [sample.sample_id for sample in filled.batch] == list(filled.columns) == ["b#generated"]
    assert filled.rejected == {"a#generated": "no answer a#generated/1"}
    assert teacher.calls[2] == ["b#generated/2"]


@pytest.mark.parametrize("max_length", [26, 27, 40])
def test_answers_leave_room_for_the_turns_behind_them_and_fill_the_context_but_for_one_token(
    world: World, words: dict[str, int], max_length: int
) -> None:
    encoder = load_encoder(world.teacher, max_length)
    endless = {f"a#generated/{turn}": [words["no"]] * 99 for turn in range(3)}
    open_sample = encoder.encode(asked(conversation("a", 3)))
    assert len(open_sample.input_ids) == 24
    filled = AnswerWriter(cast(Teacher, Scripted(endless)), encoder, GenerationSettings()).fill([open_sample])
    assert len(filled.batch[0].input_ids) == max_length - 1
    first = max_length - 24
    assert filled.columns["a#generated"]["answer_lengths"] == f"{first}+,1+,1+"


def test_inputs_that_hold_a_number_per_token_stay_with_their_tokens_and_are_zero_in_answers() -> None:
    ids, labels = torch.tensor([9, 9, 5, 1, 8, 5, 1, 7]), torch.tensor([-100, -100, 5, 1, -100, 5, 1, -100])
    types = {"mm_token_type_ids": torch.tensor([1, 2, 0, 0, 3, 0, 0, 4])}
    encoded = EncodedSample("a", ids, labels, {}, types, None)
    assert answer_spans(labels) == [(2, 4), (5, 7)]
    prompt = with_answers(encoded, [WrittenAnswer((6, 6, 6), is_cut=True)])
    assert prompt.input_ids.tolist() == [9, 9, 6, 6, 6, 1, 8]
    assert prompt.token_inputs["mm_token_type_ids"].tolist() == [1, 2, 0, 0, 0, 0, 3]
    whole = with_answers(encoded, [WrittenAnswer((6, 6, 6), is_cut=True), WrittenAnswer((1,), is_cut=False)])
    assert whole.input_ids.tolist() == [9, 9, 6, 6, 6, 1, 8, 1, 7]
    assert whole.labels.tolist() == [-100, -100, 6, 6, 6, -100, -100, 1, -100]
    assert with_answers(encoded, []).input_ids.tolist() == [9, 9]


def test_the_content_of_an_asked_sample_is_its_questions() -> None:
    sample = conversation("a", 2)
    other = Sample("a", None, tuple(Turn(turn.question, "no") for turn in sample.turns))
    assert asked(sample) == asked(other)
    assert asked(sample).content_sha256() != asked(conversation("a", 3)).content_sha256()
    both = samples_for([sample, conversation("b", 1)], ("data", "generate"))
    assert [one.sample_id for one in both] == ["a", "b", "a#generated", "b#generated"]
    assert (both[0].turns[0].answer, both[2].turns[0].answer) == ("yes", ".")


def test_an_id_like_that_of_a_written_answer_is_refused() -> None:
    with pytest.raises(
        DataError, match="sample b#generated: ids that end in #generated are those of answers that the "
    ):
        samples_for([conversation("a", 1), conversation("b#generated", 1)], ("generate",))
