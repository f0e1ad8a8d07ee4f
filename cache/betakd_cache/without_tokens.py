"""Caches of features alone. The format has a token in every sample; here that is one and the same, and says nothing.

So such a cache is like any other to whoever writes, checks or reads it: version 1 needs no exception. The token costs
27 bytes of a sample.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from betakd_cache.layout import CacheRules, FeatureLayout
from betakd_cache.record import RowValue, TeacherRecord
from betakd_cache.token_rule import TokenRule


def rules_without_tokens(
    feature_sizes: Mapping[str, int], feature_layouts: Mapping[str, FeatureLayout], *, exact: bool
) -> CacheRules:
    """The rules of a cache of these features, in float16 or, if exact, in float32."""
    return CacheRules(
        TokenRule(top_k=1, top_p=1.0, temperatures=(1.0,), exact=exact),
        vocabulary_size=2,
        feature_sizes=dict(feature_sizes),
        logit_moments=False,
        feature_layouts=dict(feature_layouts),
        tail_energies=False,
    )


def record_without_tokens(
    sample_id: str, features: Mapping[str, NDArray[np.float32]], row: Mapping[str, RowValue]
) -> TeacherRecord:
    """A record of features: its token is id 0, which is certain."""
    zero, certain = np.zeros(1, np.int64), np.zeros(1, np.float32)
    return TeacherRecord(
        sample_id=sample_id,
        token_ids=zero,
        entry_counts=np.ones(1, np.int64),
        ids=zero,
        gaps=certain,
        gold_gap=certain,
        tail_lse=np.full((1, 1), -np.inf, np.float32),
        tail_energy=None,
        features=features,
        row=row,
    )
