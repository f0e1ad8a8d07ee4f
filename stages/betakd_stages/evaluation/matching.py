"""How far a model is from a teacher on the questions of a benchmark, by the teacher's cache of them.

Nothing is generated: the model is teacher-forced over the answers that the cache holds.
"""

from typing import Any

import numpy as np

from betakd_cache import open_cache
from betakd_stages.caching.written_rows import targets_of
from betakd_stages.data.sample import SampleSet
from betakd_stages.distillation.held_out import HeldOutRecords, LogProbabilities, Measured, measure_batch
from betakd_stages.distillation.matching import match_cache
from betakd_stages.encoding import Encoder
from betakd_stages.matching_distance import matching_distance
from betakd_stages.models.loading import LoadedModel
from betakd_stages.progress import Progress


def records_of(location: str, samples: SampleSet, encoder: Encoder, on_mismatch: str) -> HeldOutRecords:
    """What a cache says of these samples: of the data's answers where it holds them, else of those the teacher wrote.

    Either model may have prompts of its own. Raises CacheError for what is no cache, MismatchError or DataError where
    it is not of these samples and this tokenizer.
    """
    cache = open_cache(location)
    targets = "data" if "data" in targets_of(cache.manifest) else "generated"
    matched = match_cache(cache, samples, encoder, on_mismatch, own_prompts=True, targets=targets)
    return HeldOutRecords(cache, matched, encoder)


def matching(records: HeldOutRecords, model: LoadedModel, batch_size: int, progress: Progress) -> dict[str, Any]:
    """The paper's matching distance (figure 5) over the entries that the cache kept, in nats, and as in `Measured` the
    agreement, in percent and None where it is not known, and the forward KL; of so many samples."""
    progress.start("matching", total=len(records))
    parts: list[tuple[Measured, LogProbabilities]] = []
    try:
        for batch in records.batches(batch_size, 0, 1):
            parts.append(measure_batch(model, records.manifest, batch))
            progress.advance(len(batch["sample_ids"]))
    finally:
        progress.finish()
    measured, seen = zip(*parts, strict=True)
    agreement, forward_kl = Measured.joined(measured).means
    distance = matching_distance(
        np.concatenate([each.teacher for each in seen]), np.concatenate([each.student for each in seen])
    )
    return {
        "difference_of_means": distance.difference_of_means,
        "wasserstein_1": distance.wasserstein_1,
        "agreement": agreement,
        "forward_kl": forward_kl,
        "num_samples": len(records),
    }
