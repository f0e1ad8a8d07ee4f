"""Which samples a student can learn from several caches, and where each cache holds them."""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from betakd_cache import TeacherCache
from betakd_stages.caching.kinds import require_of_teacher
from betakd_stages.data.sample import SampleSet, chosen_samples
from betakd_stages.distillation.matching import MatchedSamples, match_cache
from betakd_stages.encoding import Encoder
from betakd_stages.ensemble.mixing import shared_temperatures
from betakd_stages.errors import MismatchError

logger = logging.getLogger(__name__)


def match_caches(
    caches: Sequence[TeacherCache],
    samples: SampleSet,
    encoder: Encoder,
    on_mismatch: str,
    *,
    own_prompts: bool = False,
) -> tuple[MatchedSamples, NDArray[np.int64]]:
    """The samples that the student and one cache at least agree on, and where each of T caches holds them, int64
    `[S, T]`, -1 where it does not.

    Every cache is held to what `match_cache` asks, for the samples that it has. Raises MismatchError for that, for a
    sample that no cache has (unless `on_mismatch` is "drop") and for one of which two teachers saw different images.
    """
    places = {sample.sample_id: place for place, sample in enumerate(samples)}
    for cache in caches:
        require_of_teacher(cache)
    shared_temperatures({str(cache.location): cache.manifest.token_rule.temperatures for cache in caches})
    indices = np.full((len(samples), len(caches)), -1)
    images: list[str | None] = [None] * len(samples)
    for number, cache in enumerate(caches):
        known = set(cache.sample_ids.to_pylist())
        own = [place for name, place in places.items() if name in known]
        if not own:
            continue
        part = SampleSet(samples.specification, chosen_samples(samples, own))
        matched = match_cache(cache, part, encoder, on_mismatch, own_prompts=own_prompts)
        at = [places[sample.sample_id] for sample in matched.samples]
        for place, image in zip(at, matched.image_sha256 or (), strict=True):
            if (indices[place] >= 0).any() and images[place] != image:
                raise MismatchError(
                    f"sample {samples[place].sample_id!r}: {cache.location} was made from another image, sha256 "
                    f"{image}, than the caches named before it ({images[place]}): name caches of the same images"
                )
            images[place] = image
        indices[at, number] = matched.cache_indices
        logger.info("%s holds %d of %d samples", cache.location, len(at), len(samples))
    held = np.flatnonzero((indices >= 0).any(axis=1))
    if len(held) < len(samples) and on_mismatch == "stop":
        missing = np.flatnonzero((indices < 0).all(axis=1))
        raise MismatchError(
            f"sample {samples[int(missing[0])].sample_id!r} is in none of {len(caches)} caches ({len(missing)} of "
            f"{len(samples)} samples are not): give the data they were made from, or drop them with --on-mismatch drop"
        )
    matched = MatchedSamples(
        chosen_samples(samples, held.tolist()),
        np.arange(len(held)),
        [images[place] for place in held],
        len(samples) - len(held),
    )
    return matched, indices[held]
