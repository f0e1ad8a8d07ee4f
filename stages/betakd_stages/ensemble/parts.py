"""Caches of several teachers over the same samples: whether they belong together, and what a mixture of them holds."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from betakd_cache import CacheRules, TeacherCache, TokenRule
from betakd_cache.manifest import differences
from betakd_cache.token_rule import MAX_COMPACT_ENTRIES
from betakd_stages.caching.kinds import require_of_teacher
from betakd_stages.caching.written_rows import targets_of
from betakd_stages.ensemble.mixing import shared_temperatures
from betakd_stages.ensemble.names import numbered, stored
from betakd_stages.errors import ConfigError, MismatchError
from betakd_stages.trust.file import cache_fingerprint

SHARED = ("tokenizer", "prompt", "data")
"""What the identities of all parts have in common; of the data the fingerprint, which may lie elsewhere."""
CHUNK_SAMPLES = 4096
SAME_ROWS = {"content_sha256": "question or answer", "image_sha256": "image", "num_tokens": "number of answer tokens"}
"""Columns of the rows in which all caches agree on a sample, in words."""


@dataclass(frozen=True, slots=True, eq=False)
class JoinedSamples:
    """The S samples that at least one of T caches holds: those of the first cache in its order, then the others."""

    sample_ids: list[str]
    indices: NDArray[np.int64]
    """[S, T] in each cache, -1 where it lacks the sample."""
    num_tokens: NDArray[np.int64]
    """[S]"""
    rejected: dict[str, str]
    """Samples that no cache holds and some teacher rejected, with all reasons."""

    @property
    def num_carried(self) -> int:
        """How many samples some of the caches lack, so that the others carry them."""
        return int((self.indices < 0).any(axis=1).sum())


def require_parts(caches: Sequence[TeacherCache]) -> None:
    """Nothing; raises ConfigError or MismatchError where these caches cannot be one mixture."""
    if len(caches) < 2:
        raise ConfigError(f"a mixture is of two caches or more, given are {len(caches)}: name them all")
    first = caches[0]
    for cache in caches:
        require_of_teacher(cache)
        if targets_of(cache.manifest) != ["data"]:
            raise MismatchError(
                f"{cache.location} holds answers that its teacher wrote, which no other teacher has: mix caches of "
                "cache-teacher with --targets data"
            )
        if cache.manifest.token_rule.top_k < 2:
            raise MismatchError(
                f"{cache.location} keeps one id per token, which need not be its teacher's first: mix caches that "
                "keep two or more (--top-k)"
            )
    for cache in caches[1:]:
        for key, left, right in differences(_shared(first), _shared(cache)):
            raise MismatchError(
                f"{first.location} has {key} = {left}, {cache.location} has {right}: mix only caches of one "
                "tokenizer, prompt template and data"
            )
    _shared_temperatures(caches)


def join_samples(caches: Sequence[TeacherCache]) -> JoinedSamples:
    """The samples of all caches. Raises MismatchError where two disagree on the text, image or tokens of one."""
    sample_ids = list(dict.fromkeys(name for cache in caches for name in cache.sample_ids.to_pylist()))
    listed = pa.array(sample_ids, pa.string())
    places = [pc.index_in(listed, value_set=cache.sample_ids).fill_null(-1) for cache in caches]
    indices = np.column_stack([column.to_numpy() for column in places]).astype(np.int64)
    columns = {name: _same_values(caches, sample_ids, indices, name) for name in SAME_ROWS}
    num_tokens = np.array(columns["num_tokens"], np.int64)
    _require_same_tokens(caches, sample_ids, indices, num_tokens)
    reasons: dict[str, list[str]] = {}
    held = set(sample_ids)
    for cache in caches:
        for name, reason in cache.rejected.items():
            if name not in held:
                reasons.setdefault(name, []).append(reason)
    rejected = {name: "; ".join(dict.fromkeys(found)) for name, found in reasons.items()}
    return JoinedSamples(sample_ids, indices, num_tokens, rejected)


def mixture_rules(caches: Sequence[TeacherCache]) -> CacheRules:
    """What the cache of the mixture holds.

    As many entries as all parts together, at the temperatures of all, with a mean energy of the tail if all have one,
    and every teacher's features as NAME_1, NAME_2, ... in the order of the caches. A mixture has no
    logits, and so no moments of them.
    """
    rules = [cache.manifest.rules for cache in caches]
    exact = all(part.token_rule.exact for part in rules)
    top_k = min(sum(part.token_rule.top_k for part in rules), rules[0].vocabulary_size)
    loosest = min((part.token_rule for part in rules), key=lambda rule: rule.top_p)
    names = [
        (stored(numbered(name, number)), name, part) for number, part in enumerate(rules) for name in part.feature_sizes
    ]
    layouts = {named: part.layout(name) for named, name, part in names}
    is_int8 = not exact and all(part.feature_dtype == "int8" for part in rules)
    return CacheRules(
        TokenRule(
            top_k=top_k if exact else min(top_k, MAX_COMPACT_ENTRIES),
            top_p=loosest.top_p,
            top_p_temperature=loosest.top_p_temperature,
            temperatures=_shared_temperatures(caches),
            exact=exact,
        ),
        rules[0].vocabulary_size,
        {named: part.feature_sizes[name] for named, name, part in names},
        logit_moments=False,
        feature_layouts={named: layout for named, layout in layouts.items() if not layout.is_pooled},
        feature_dtype="int8" if is_int8 else "float16",
        tail_energies=all(part.tail_energies for part in rules),
    )


def mixture_identity(caches: Sequence[TeacherCache], weighting: dict[str, Any]) -> dict[str, Any]:
    """Whose numbers a mixture holds: of every part what is its own and its fingerprint; the weighting; what all share.

    `weights_sha256` is that of the parts' own, so that caches of one mixture of teachers are known as those of one.
    """
    identities = [cache.manifest.identity for cache in caches]
    parts = [
        {**{key: value for key, value in identity.items() if key not in SHARED}, "cache": cache_fingerprint(cache)}
        for identity, cache in zip(identities, caches, strict=True)
    ]
    weights = json.dumps([identity["teacher"].get("weights_sha256") for identity in identities])
    teacher = {
        "weights_sha256": hashlib.sha256(weights.encode()).hexdigest(),
        "weighting": weighting,
        "mixture": parts,
    }
    return {"teacher": teacher, **{key: identities[0][key] for key in SHARED}}


def _shared(cache: TeacherCache) -> dict[str, Any]:
    identity, size = cache.manifest.identity, cache.manifest.vocabulary_size
    shared = {key: identity[key] for key in SHARED}
    return {**shared, "data": {"fingerprint": identity["data"]["fingerprint"]}, "vocabulary_size": size}


def _shared_temperatures(caches: Sequence[TeacherCache]) -> tuple[float, ...]:
    return shared_temperatures({str(cache.location): cache.manifest.token_rule.temperatures for cache in caches})


def _same_values(
    caches: Sequence[TeacherCache], sample_ids: Sequence[str], indices: NDArray[np.int64], column: str
) -> list[Any]:
    """The values `[S]` of a column of the rows; raises MismatchError where two caches have different ones."""
    found: list[Any] = [None] * len(sample_ids)
    owners: list[TeacherCache | None] = [None] * len(sample_ids)
    for cache, of_cache in zip(caches, indices.T, strict=True):
        places = np.flatnonzero(of_cache >= 0)
        values = cache.rows([column])[column].take(pa.array(of_cache[places])).to_pylist()
        for place, value in zip(places.tolist(), values, strict=True):
            owner = owners[place]
            if owner is not None and found[place] != value:
                raise MismatchError(
                    f"sample {sample_ids[place]!r}: its {SAME_ROWS[column]} is another in {owner.location} "
                    f"({found[place]}) than in {cache.location} ({value}): mix only caches of the same samples"
                )
            found[place], owners[place] = value, cache
    return found


def _require_same_tokens(
    caches: Sequence[TeacherCache],
    sample_ids: Sequence[str],
    indices: NDArray[np.int64],
    num_tokens: NDArray[np.int64],
) -> None:
    for start in range(0, len(indices), CHUNK_SAMPLES):
        chunk = indices[start : start + CHUNK_SAMPLES]
        sample_index = np.repeat(np.arange(len(chunk)), num_tokens[start : start + CHUNK_SAMPLES])
        tokens = np.full(len(sample_index), -1)
        for cache, of_cache in zip(caches, chunk.T, strict=True):
            at = np.flatnonzero(of_cache[sample_index] >= 0)
            own = cache.batch(of_cache[of_cache >= 0]).token_ids()
            differs = (tokens[at] >= 0) & (tokens[at] != own)
            if differs.any():
                name = sample_ids[start + int(sample_index[at[differs.argmax()]])]
                raise MismatchError(
                    f"sample {name!r}: its answer is other tokens in {cache.location} than in a cache before it: mix "
                    "only caches of the same samples"
                )
            tokens[at] = own
