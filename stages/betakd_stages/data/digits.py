"""The embedded dataset: scikit-learn's 1,797 real handwritten digits as visual question answering.

Nothing is downloaded. An image is a card of 8 x 8 pixels with one digit; where the specification's types include a
question about two digits, all its cards are of 16 x 16 pixels, with one digit at the top left and, for those questions,
another at the top right. Every question has pixel noise of its own. The splits share no digit.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from betakd_stages.data.sample import LoadedImage, Sample, SampleSet, Turn
from betakd_stages.data.specification import DataSpecification
from betakd_stages.errors import DataError

DIGIT_SIZE = 8
SPLITS = {"teacher": (0, 700), "transfer": (700, 1200), "validation": (1200, 1350), "test": (1350, 1797)}

QUESTIONS = {
    "which": "which digit is this ?",
    "even": "is this digit even ?",
    "greater": "is this digit greater than five ?",
    "prime": "is this digit prime ?",
    "sum": "what is the sum of the two digits ?",
    "larger": "which of the two digits is larger ?",
}
TWO_DIGIT_TYPES = ("sum", "larger")
OPTIONS: dict[str, Any] = {
    "types": ("which", "even", "greater", "prime", "sum"),
    "count": 0,
    "seed": 0,
    "pixel_noise": 0.25,
    "label_noise": 0.0,
    "noisy_types": (),
    "random_labels": 0.0,
    "confused": (),
    "answers": "word",
}
ANSWERS = ("word", "sentence")
PHRASES = {
    "which": ("this digit is {}",) * 2,
    "even": ("{} this digit is even", "{} even digit is this"),
    "greater": ("{} this digit is greater than five", "{} digit greater than five is this"),
    "prime": ("{} this digit is prime", "{} prime digit is this"),
    "sum": ("the sum is {}",) * 2,
    "larger": ("the larger digit is {}",) * 2,
}
"""An answer as a sentence, and as one that denies; in the words of the questions, so that no tokenizer grows."""


@dataclass(frozen=True, slots=True)
class DigitCard:
    """A card drawn when it is needed; `second` is -1 where the card shows one digit."""

    first: int
    second: int
    size: int
    pixel_noise: float
    noise_seed: tuple[int, ...]

    def load(self) -> LoadedImage:
        """The card, RGB, with Gaussian pixel noise of standard deviation `pixel_noise` (1 = white)."""
        images, _ = _digits()
        card = np.zeros((self.size, self.size))
        card[:DIGIT_SIZE, :DIGIT_SIZE] = images[self.first]
        if self.second >= 0:
            card[:DIGIT_SIZE, DIGIT_SIZE:] = images[self.second]
        noise = np.random.default_rng(self.noise_seed).normal(0.0, self.pixel_noise, card.shape)
        gray = np.round(np.clip(card + noise, 0.0, 1.0) * 255).astype(np.uint8)
        return LoadedImage(Image.fromarray(gray).convert("RGB"), hashlib.sha256(gray.tobytes()).hexdigest())

    def sha256(self) -> str:
        """The sha256 of the card's pixels, which have to be drawn for it."""
        return self.load().sha256


@cache
def _digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """All images [1797, 8, 8] in 0..1 and their digits [1797], in the fixed order that the splits cut."""
    from sklearn.datasets import load_digits  # importing scikit-learn takes a second

    images, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(20260321).permutation(len(digits))
    return images[order].reshape(-1, DIGIT_SIZE, DIGIT_SIZE) / 16.0, digits[order].astype(np.int64)


def load_digits_samples(specification: DataSpecification) -> SampleSet:
    """The questions of one split.

    Options: types (of question, joined by +), count (0: all; else so many, drawn by seed), seed (of pixel noise, pairs,
    labels), pixel_noise, label_noise (share of wrong labels), noisy_types (types with label noise; none: all),
    random_labels (share of labels drawn from all possible ones), confused (digits, each taken for the next of them, the
    last for the first), answers (word, or sentence). Raises DataError for an unknown split, type, digit or share.
    """
    if specification.argument not in SPLITS:
        raise DataError(f"digits has no split {specification.argument!r}: use one of {', '.join(SPLITS)}")
    options = specification.typed_options(OPTIONS)
    for name in (*options["types"], *options["noisy_types"]):
        if name not in QUESTIONS:
            raise DataError(f"digits has no question type {name!r}: use some of {', '.join(QUESTIONS)}, joined by +")
    for name in ("label_noise", "random_labels"):
        if not 0 <= options[name] <= 1:
            raise DataError(f"{name} is {options[name]}: expected a share from 0 to 1")
    for digit in options["confused"]:
        if digit not in tuple("0123456789"):
            raise DataError(f"confused names {digit!r}: expected digits joined by +, such as 2+4+7")
    if options["answers"] not in ANSWERS:
        raise DataError(f"answers is {options['answers']!r}: use one of {', '.join(ANSWERS)}")
    first, last = SPLITS[specification.argument]
    samples = [
        _sample(specification.argument, index, question_type, options)
        for index in range(first, last)
        for question_type in options["types"]
    ]
    if options["count"] > len(samples) or options["count"] < 0:
        raise DataError(f"count is {options['count']}: the split {specification.argument} has {len(samples)} questions")
    if options["count"]:
        order = np.random.default_rng((options["seed"], len(samples))).permutation(len(samples))
        samples = [samples[position] for position in sorted(order[: options["count"]])]
    return SampleSet(specification.canonical(), tuple(samples))


def faults(specification: DataSpecification) -> list[str]:
    """What the options make wrong with the answers on purpose, in words.

    Raises DataError for options that there are not, or of another type.
    """
    options = specification.typed_options(OPTIONS)
    where = f" of the questions {', '.join(options['noisy_types'])}" if options["noisy_types"] else ""
    noise, drawn = (f"{100 * options[name]:g} % of the labels" for name in ("label_noise", "random_labels"))
    texts = {
        "label_noise": f"{noise}{where} are another answer, drawn at random",
        "random_labels": f"{drawn} are drawn at random from all answers",
        "confused": f"of {', '.join(options['confused'])} each digit is taken for the next, the last for the first",
    }
    return [text for name, text in texts.items() if options[name]]


def _sample(split: str, index: int, question_type: str, options: dict[str, Any]) -> Sample:
    first, last = SPLITS[split]
    noise_seed = (options["seed"], index, list(QUESTIONS).index(question_type))
    generator = np.random.default_rng((*noise_seed, 1))
    second = int(generator.integers(first, last)) if question_type in TWO_DIGIT_TYPES else -1
    _, digits = _digits()
    seen = {digit: digit for digit in range(10)} | _confusion(options["confused"])
    answer = true_answer(question_type, seen[int(digits[index])], seen[int(digits[second])])
    noisy = not options["noisy_types"] or question_type in options["noisy_types"]
    if noisy and generator.random() < options["label_noise"]:
        others = [other for other in possible_answers(question_type) if other != answer]
        answer = others[int(generator.integers(len(others)))]
    if generator.random() < options["random_labels"]:
        answer = str(generator.choice(possible_answers(question_type)))
    if options["answers"] == "sentence":
        answer = PHRASES[question_type][answer == "no"].format(answer)
    return Sample(
        sample_id=f"digits-{split}-{index:04d}-{question_type}",
        image=DigitCard(index, second, card_size(options["types"]), options["pixel_noise"], noise_seed),
        turns=(Turn(QUESTIONS[question_type], answer),),
        category=question_type,
    )


def _confusion(names: Sequence[str]) -> dict[int, int]:
    """What each of these digits is taken for."""
    return {int(name): int(names[(place + 1) % len(names)]) for place, name in enumerate(names)}


def card_size(question_types: Sequence[str]) -> int:
    """Pixels on a side of the cards that these question types need."""
    return 2 * DIGIT_SIZE if set(question_types) & set(TWO_DIGIT_TYPES) else DIGIT_SIZE


def true_answer(question_type: str, first: int, second: int) -> str:
    """The right answer about a digit, or about two."""
    yes_no = {"even": first % 2 == 0, "greater": first > 5, "prime": first in (2, 3, 5, 7)}
    if question_type in yes_no:
        return "yes" if yes_no[question_type] else "no"
    return str({"which": first, "sum": first + second, "larger": max(first, second)}[question_type])


def possible_answers(question_type: str) -> list[str]:
    """All answers that questions of this type can have."""
    if question_type in ("even", "greater", "prime"):
        return ["yes", "no"]
    return [str(number) for number in range(19 if question_type == "sum" else 10)]
