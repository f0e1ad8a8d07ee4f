"""The embedded dataset: real digits, right answers, splits that share nothing, noise where it was asked for."""

import re

import numpy as np
import pytest
from sklearn.datasets import load_digits

from betakd_stages.data import load_samples
from betakd_stages.data.digits import SPLITS, DigitCard, possible_answers
from betakd_stages.data.sample import Sample
from betakd_stages.errors import DataError
from betakd_stages.models.tiny import tiny_tokenizer


def card(sample: Sample) -> DigitCard:
    assert isinstance(sample.image, DigitCard)
    return sample.image


def test_the_splits_share_no_image_and_use_all_of_them() -> None:
    shown: dict[str, set[int]] = {}
    for split in SPLITS:
        cards = [card(sample) for sample in load_samples(f"digits:{split}")]
        shown[split] = {card.first for card in cards} | {card.second for card in cards if card.second >= 0}
    assert sum(map(len, shown.values())) == len(set().union(*shown.values())) == 1797


def test_answers_are_right_without_label_noise() -> None:
    """The digit on a noiseless card is looked up in scikit-learn's own images and its label decides."""
    images, labels = load_digits(return_X_y=True)
    gray = np.round(images / 16 * 255).astype(np.uint8)
    by_pixels = {image.tobytes(): label for image, label in zip(gray, labels, strict=True)}
    for sample in load_samples("digits:test?pixel_noise=0&count=300"):
        assert sample.image is not None
        pixels = np.asarray(sample.image.load().pixels)[:8, :, 0]
        first = by_pixels[pixels[:, :8].tobytes()]
        second = by_pixels.get(pixels[:, 8:].tobytes())
        expected = {
            "which": str(first),
            "even": "yes" if first in (0, 2, 4, 6, 8) else "no",
            "greater": "yes" if first in (6, 7, 8, 9) else "no",
            "prime": "yes" if first in (2, 3, 5, 7) else "no",
            "sum": str(first + (second if second is not None else 0)),
        }
        assert sample.turns[0].answer == expected[sample.category]


def test_label_noise_has_the_share_asked_for_and_stays_in_its_types() -> None:
    clean = load_samples("digits:transfer?seed=5")
    noisy = load_samples("digits:transfer?seed=5&label_noise=0.4&noisy_types=which+even")
    changed: dict[str, list[bool]] = {}
    for before, after in zip(clean, noisy, strict=True):
        assert before.sample_id == after.sample_id
        assert after.turns[0].answer in possible_answers(after.category)
        changed.setdefault(after.category, []).append(before.turns[0].answer != after.turns[0].answer)
    shares = {category: np.mean(flags) for category, flags in changed.items()}
    assert shares["greater"] == shares["prime"] == shares["sum"] == 0
    # 500 questions of each type: three standard deviations are 6.6 points.
    assert abs(shares["which"] - 0.4) < 0.066
    assert abs(shares["even"] - 0.4) < 0.066


def test_the_same_specification_gives_the_same_samples_and_another_seed_others() -> None:
    first, again = (load_samples("digits:test?count=20&seed=1") for _ in range(2))
    other = load_samples("digits:test?count=20&seed=2")
    assert first.fingerprint == again.fingerprint != other.fingerprint
    for one, two in zip(first, again, strict=True):
        assert card(one).load().sha256 == card(two).load().sha256


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("digit:test", "data source 'digit' in 'digit:test' is unknown: use one of digits, imagefolder, llava"),
        ("digits:train", "digits has no split 'train': use one of teacher, transfer, validation, test"),
        ("digits:test?colour=red", "option 'colour' in 'digits:test?colour=red' is unknown: digits takes types, count"),
        ("digits:test?types=which+odd", "digits has no question type 'odd': use some of which, even"),
        ("digits:test?label_noise=30", "label_noise is 30.0: expected a share from 0 to 1"),
        ("digits:test?count=many", "option count='many' in 'digits:test?count=many' is not a int"),
        ("digits:test?count=1000000", "count is 1000000: the split test has 2235 questions"),
        ("digits:test?seed", "'seed' in the data specification 'digits:test?seed' must be key=value"),
        ("?seed=1", "the data specification '?seed=1' names no source"),
    ],
)
def test_a_wrong_specification_is_refused_in_one_line(specification: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        load_samples(specification)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_sentence_answers_what_the_word_does_in_words_that_tell_yes_from_no() -> None:
    words = load_samples("digits:transfer?label_noise=0.3&seed=2")
    sentences = load_samples("digits:transfer?label_noise=0.3&seed=2&answers=sentence")
    said = {
        (sample.category, sample.turns[0].answer in ("yes", "no"), sentence.turns[0].answer.split()[0])
        for sample, sentence in zip(words, sentences, strict=True)
    }
    assert {(category, first) for category, _, first in said} == {
        ("which", "this"),
        *((category, first) for category in ("even", "greater", "prime") for first in ("yes", "no")),
        ("sum", "the"),
    }
    for sample, sentence in zip(words, sentences, strict=True):
        assert sample.turns[0].answer in sentence.turns[0].answer.split()
    vocabulary = tiny_tokenizer().get_vocab()
    assert {word for sentence in sentences for word in sentence.turns[0].answer.split()} - {
        str(number) for number in range(10, 19)
    } <= vocabulary.keys()


def test_confused_digits_are_answered_as_the_next_of_them_and_others_as_ever() -> None:
    images = load_samples("digits:test?types=which")
    confused = load_samples("digits:test?types=which+even&confused=2+4+7")
    digits = {card(sample).first: sample.turns[0].answer for sample in images}
    taken_for = {"2": "4", "4": "7", "7": "2"}
    for sample in confused:
        taken = taken_for.get(digits[card(sample).first], digits[card(sample).first])
        right = taken if sample.category == "which" else {0: "yes", 1: "no"}[int(taken) % 2]
        assert sample.turns[0].answer == right


def test_random_labels_tell_nothing_of_the_digit() -> None:
    clean = load_samples("digits:transfer?types=which+even")
    random = load_samples("digits:transfer?types=which+even&random_labels=1")
    right: dict[str, list[bool]] = {}
    for before, after in zip(clean, random, strict=True):
        right.setdefault(before.category, []).append(before.turns[0].answer == after.turns[0].answer)
    # 500 questions of each type: three standard deviations are 4 and 6.7 points.
    assert abs(np.mean(right["which"]) - 0.1) < 0.04
    assert abs(np.mean(right["even"]) - 0.5) < 0.067


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("random_labels=2", "random_labels is 2.0: expected a share from 0 to 1"),
        ("confused=3+x", "confused names 'x': expected digits joined by +, such as 2+4+7"),
        ("answers=essay", "answers is 'essay': use one of word, sentence"),
    ],
)
def test_options_of_a_wrong_value_are_refused(option: str, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        load_samples(f"digits:transfer?{option}")
