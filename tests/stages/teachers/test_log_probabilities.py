"""A teacher known by the log probabilities of its K most likely tokens, against the full distribution in float64."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from betakd_stages.targets import TeacherTargets

VOCABULARY = 50


def given(
    logits: NDArray[np.float64], gold: NDArray[np.int64], num_entries: int, top_p: float | None, vocabulary: int
) -> TeacherTargets:
    """The targets of what an engine hands out: the K most likely of all rows, and the gold ones."""
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    ids = np.argsort(-log_p, axis=1)[:, :num_entries]
    return TeacherTargets.from_log_probabilities(
        torch.from_numpy(ids.copy()),
        torch.from_numpy(np.take_along_axis(log_p, ids, 1)),
        torch.from_numpy(gold),
        torch.from_numpy(log_p[np.arange(len(gold)), gold]),
        top_p=top_p,
        vocabulary_size=vocabulary,
    )


@pytest.mark.parametrize(("num_entries", "top_p"), [(8, 0.9), (8, None), (1, None), (3, 0.5), (VOCABULARY, None)])
def test_the_entries_are_those_of_the_logits_and_the_tail_is_the_rest(num_entries: int, top_p: float | None) -> None:
    generator = np.random.default_rng(3)
    logits = 3 * generator.normal(size=(40, VOCABULARY))
    gold = np.where(generator.random(40) < 0.5, logits.argmax(axis=1), generator.integers(0, VOCABULARY, 40))
    found = given(logits, gold, num_entries, top_p, VOCABULARY)
    for token in range(40):
        relative = logits[token] - logits[token].max()
        order = np.argsort(-relative)
        p = np.exp(relative) / np.exp(relative).sum()
        wanted = list(order[:num_entries])
        if gold[token] not in wanted:
            wanted[-1] = gold[token]
        before = np.concatenate([[0], np.cumsum(p[wanted])[:-1]])
        kept = [
            id for id, mass in zip(wanted, before, strict=True) if top_p is None or mass < top_p or id == gold[token]
        ]
        mask = found.kept[token].numpy()
        assert found.ids[token].numpy()[mask].tolist() == kept
        np.testing.assert_allclose(found.logits[token].numpy()[mask], relative[kept], atol=1e-5)
        rest = np.delete(relative, kept)
        expected = np.log(np.exp(rest).sum()) if len(rest) else -np.inf
        np.testing.assert_allclose(found.tail_lse[token, 0].item(), expected, atol=1e-4)
        assert found.gold_logit[token].item() == pytest.approx(relative[gold[token]], abs=1e-5)
        probabilities = np.append(np.exp(relative[kept]), np.exp(expected)) / np.exp(relative).sum()
        bucket_entropy = -(probabilities[probabilities > 0] * np.log(probabilities[probabilities > 0])).sum()
        assert found.entropy()[token].item() == pytest.approx(bucket_entropy, abs=1e-4)


def test_padding_rows_of_the_head_are_left_out_with_their_mass() -> None:
    generator = np.random.default_rng(4)
    logits = 2 * generator.normal(size=(20, VOCABULARY + 6))
    logits[:, VOCABULARY:] -= 20
    logits[:, VOCABULARY + 2] += 26  # a padding row that is likely
    gold = generator.integers(0, VOCABULARY, 20)
    everything = given(logits, gold, VOCABULARY + 6, None, VOCABULARY)
    own = torch.from_numpy(logits[:, :VOCABULARY])
    expected = TeacherTargets.from_logits(own, torch.from_numpy(gold))
    torch.testing.assert_close(everything.entropy(), expected.entropy(), atol=1e-4, rtol=0, check_dtype=False)
    assert (everything.ids < VOCABULARY).all()
    some = given(logits, gold, 12, 0.8, VOCABULARY)
    same = TeacherTargets.from_logits(own, torch.from_numpy(gold), top_k=12, top_p=0.8)
    for token in range(20):
        kept = [targets.ids[token][targets.kept[token]].tolist() for targets in (some, same)]
        fewer, more = sorted(([id for id in ids if id != gold[token]] for ids in kept), key=len)
        assert fewer == more[: len(fewer)]
        assert len(more) - len(fewer) <= 1  # the padding row takes a place among the K


def test_a_tail_that_is_lost_in_rounding_is_not_empty() -> None:
    logits = np.zeros((1, VOCABULARY))
    logits[0, 7] = 40.0
    found = given(logits, np.array([7]), 2, None, VOCABULARY)
    assert found.tail_lse[0, 0].item() == pytest.approx(np.log(2.0**-24))
