"""The background against counts by hand: samples left out of their own, longer contexts only where they were seen."""

from collections import Counter

import numpy as np
import pytest

from betakd_stages.trust.background import MAX_CONTEXT, START, Answers, Background

VOCABULARY = 50


def answers_of(listed: list[list[int]], groups: list[int]) -> Answers:
    tokens = np.array([token for answer in listed for token in answer], np.int64)
    return Answers(tokens, np.cumsum([0, *map(len, listed)]), np.array(groups, np.int32))


def counted(answers: Answers) -> np.ndarray:
    background = Background(VOCABULARY)
    background.add(answers)
    return background.log_probabilities(answers)


def by_hand(listed: list[list[int]], groups: list[int]) -> list[float]:
    """The formula of the module, from dictionaries of tuples."""
    found = []
    for own, answer in enumerate(listed):
        contexts: Counter[tuple[int, ...]] = Counter()
        events: Counter[tuple[int, ...]] = Counter()
        for other, others in enumerate(listed):
            if other == own or groups[other] != groups[own]:
                continue
            padded = [START, *others]
            for place in range(1, len(padded)):
                for length in range(1, min(place, MAX_CONTEXT) + 1):
                    contexts[tuple(padded[place - length : place])] += 1
                    events[tuple(padded[place - length : place + 1])] += 1
        padded = [START, *answer]
        for place in range(1, len(padded)):
            probability = 1 / VOCABULARY
            for length in range(1, min(place, MAX_CONTEXT) + 1):
                context = tuple(padded[place - length : place])
                probability = (events[(*context, padded[place])] + probability) / (contexts[context] + 1)
            found.append(float(np.log(probability)))
    return found


def test_long_answers_get_interpolated_counts_of_the_other_samples() -> None:
    generator = np.random.default_rng(0)
    listed = [generator.integers(0, 4, generator.integers(1, 12)).tolist() for _ in range(60)]
    groups = generator.integers(0, 2, 60).tolist()
    np.testing.assert_allclose(counted(answers_of(listed, groups)), by_hand(listed, groups), rtol=1e-12)


def test_an_answer_of_one_token_gets_the_leave_one_out_frequency_of_its_label_in_its_group() -> None:
    labels, groups = [7, 7, 7, 9, 9, 7], [0, 0, 0, 0, 1, 1]
    expected = []
    for own, (label, group) in enumerate(zip(labels, groups, strict=True)):
        others = [labels[other] for other in range(6) if other != own and groups[other] == group]
        expected.append((others.count(label) + 1 / VOCABULARY) / (len(others) + 1))
    np.testing.assert_allclose(np.exp(counted(answers_of([[label] for label in labels], groups))), expected)


def test_what_the_first_word_decides_is_no_news_later_in_the_sentence() -> None:
    """Bigrams would give 1/2 for the last word, and the teacher credit for knowing which half of a phrase it is in."""
    yes, no, this, digit, is_, even = range(6)
    listed = [[yes, this, digit, is_, even], [no, even, digit, is_, this]] * 100
    probability = np.exp(counted(answers_of(listed, [0] * 200))).reshape(200, 5)
    assert probability[:, 0] == pytest.approx(0.5, abs=0.01)
    assert (probability[:, 1:] > 0.98).all()


def test_counts_of_batches_add_up_to_those_of_all() -> None:
    generator = np.random.default_rng(1)
    listed = [generator.integers(0, 5, 4).tolist() for _ in range(40)]
    groups = [0] * 40
    background = Background(VOCABULARY)
    for start in range(0, 40, 7):
        background.add(answers_of(listed[start : start + 7], groups[start : start + 7]))
    parts = [
        background.log_probabilities(answers_of(listed[start : start + 7], groups[start : start + 7]))
        for start in range(0, 40, 7)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), counted(answers_of(listed, groups)))
