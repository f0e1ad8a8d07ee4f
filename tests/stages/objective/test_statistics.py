"""The student's statistics against the full logits, in value and gradient."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.stages.objective import oracles
from tests.stages.objective.batches import VOCABULARY, Batch, kept_ids

from betakd_stages.errors import MismatchError
from betakd_stages.statistics import Head, Needs, student_statistics

EVERYTHING = Needs(temperatures=(0.5, 1.0, 2.0), tail_means=True, moments=True)
KEEPING: list[dict[str, Any]] = [{}, {"top_k": 8}, {"top_p": 0.8}]


@pytest.mark.parametrize("keeping", KEEPING, ids=str)
def test_every_statistic_agrees_with_the_full_logits(batch: Batch, keeping: dict[str, Any]) -> None:
    targets = batch.targets(**keeping)
    statistics = batch.statistics(targets, EVERYTHING)
    assert statistics.logit_mean is not None
    assert statistics.logit_variance is not None
    for token, logits in enumerate(batch.student_logits):
        kept = kept_ids(targets, token)
        tail = np.setdiff1d(np.arange(VOCABULARY), kept)
        np.testing.assert_allclose(statistics.kept_logits[token][targets.kept[token]], logits[kept])
        np.testing.assert_allclose(statistics.gold_logit[token], logits[batch.gold_ids[token]])
        np.testing.assert_allclose(statistics.logit_mean[token], logits.mean())
        np.testing.assert_allclose(statistics.logit_variance[token], logits.var())
        np.testing.assert_allclose(statistics.entropy()[token], oracles.entropy(logits))
        cross_entropy = -oracles.log_softmax(logits)[batch.gold_ids[token]]
        np.testing.assert_allclose(statistics.cross_entropy()[token], cross_entropy)
        for temperature in EVERYTHING.temperatures:
            tail_lse = oracles.logsumexp(logits[tail] / temperature)
            np.testing.assert_allclose(statistics.tail_lse_at(temperature)[token], tail_lse)
            mean = oracles.softmax(logits[tail], temperature) @ logits[tail] if len(tail) else 0.0
            np.testing.assert_allclose(statistics.tail_mean_at(temperature)[token], mean)


def test_the_label_need_not_be_among_the_kept_ids(batch: Batch) -> None:
    targets = batch.targets(top_k=4)
    elsewhere = (targets.ids[:, 0] + 1) % VOCABULARY
    shuffled = type(targets)(**{**{name: getattr(targets, name) for name in targets.__slots__}, "gold_ids": elsewhere})
    for token, logits in enumerate(batch.student_logits):
        expected = -oracles.log_softmax(logits)[elsewhere[token]]
        np.testing.assert_allclose(batch.statistics(shuffled).cross_entropy()[token], expected)


def test_a_head_smaller_than_the_vocabulary_is_an_error(batch: Batch) -> None:
    with pytest.raises(MismatchError, match=r"head has 39 rows but the teacher's vocabulary has 40 tokens: use"):
        student_statistics(batch.hidden, Head(batch.weight[:39]), batch.targets())


def test_the_union_of_needs_holds_each_temperature_once() -> None:
    learned = torch.ones(3)
    union = Needs(temperatures=(2.0,), moments=True) | Needs(temperatures=(2.0, 0.5), learned={"a": learned})
    assert union.temperatures == (2.0, 1.0, 0.5)
    assert union.columns[-1] is learned
    assert union.moments
    assert not union.tail_means
