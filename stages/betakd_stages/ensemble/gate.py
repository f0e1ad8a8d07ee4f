"""Learned weights of several teachers: how likely each label came from each of them, fitted before any student exists.

    w_t = pi_t / (pi_1 + ... + pi_T),  pi as in `trust.mixture`

Not learned with the student: cross-entropy plus beta energy is least where the teacher is easiest to match, so a
gradient through it would choose the flattest teacher. Here the labels choose.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from betakd_cache import TeacherCache
from betakd_stages.data.asked import is_asked
from betakd_stages.data.sample import Sample
from betakd_stages.errors import ConfigError
from betakd_stages.progress import Progress
from betakd_stages.settings import FitSettings
from betakd_stages.trust.evidence import Floats, order_by_hash, read_evidence
from betakd_stages.trust.groups import group_name, make_groups
from betakd_stages.trust.mixture import fitted_shares


def fitted_weights(
    caches: Sequence[TeacherCache],
    indices: NDArray[np.int64],
    samples: Sequence[Sample],
    settings: FitSettings,
    progress: Progress,
) -> Floats:
    """The weights `[S, T]` of T teachers at S samples, of which each cache has an index `[S, T]`, or -1.

    Rows sum to 1; a teacher that lacks a sample has 0 there. The caches have one tokenizer, and the same answer tokens
    of a sample; every sample is in one of them. Another order of the samples gives the same weights, bit for bit.
    Raises ConfigError where the answers are not the data's.
    """
    if len(caches) == 1:
        return np.ones((len(samples), 1), np.float32)
    named = [(sample.sample_id, group_name(sample, settings.group_words)) for sample in samples]
    if any(is_asked(sample_id) for sample_id, _ in named):
        raise ConfigError(
            "learned weights of several teachers are judged by the data's answers, asked for are those that the "
            "teachers wrote: distil with --targets data, or weigh the teachers by another rule"
        )
    reading = np.lexsort(indices.T)  # an order of the caches' own
    groups = make_groups((name for _, name in named), settings.smallest_group).taken(reading)
    evidence = read_evidence(caches, indices[reading], groups, settings.seed, progress)
    order, hashes = order_by_hash([named[place][0] for place in reading])
    pi = fitted_shares(evidence.taken(order), groups.taken(order), hashes, settings).astype(np.float64)
    weights = np.empty(indices.shape, np.float32)
    weights[reading[order]] = pi / pi.sum(axis=1, keepdims=True)
    return weights
