"""The samples of a batch: the bytes as stored, and the numbers decoded from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from betakd_cache.codec import decode_gaps, decode_groups, join_ids, widened
from betakd_cache.layout import focus_name


@dataclass(frozen=True, slots=True, eq=False)
class DecodedBatch:
    """The teacher's numbers at N tokens of S samples, K the most entries of any of them, M temperatures."""

    token_ids: NDArray[np.int64]
    """[N] gold ids."""
    ids: NDArray[np.int64]
    """[N, K] kept ids, ascending gap; 0 at padding, which follows the kept ones."""
    gaps: NDArray[np.float32]
    """[N, K] nats; +inf at padding."""
    entry_counts: NDArray[np.int64]
    """[N] entries kept."""
    gold_gap: NDArray[np.float32]
    """[N] nats."""
    tail_lse: NDArray[np.float32]
    """[N, M] log of the sum over the ids not kept of exp(-gap / temperature); -inf where everything is kept."""
    tail_energy: NDArray[np.float32] | None
    """[N, M] mean gap of the ids not kept; None where the cache holds none."""
    logit_max: NDArray[np.float32] | None
    """[N], None where the cache holds no moments."""
    logit_mean: NDArray[np.float32] | None
    logit_std: NDArray[np.float32] | None
    features: Mapping[str, NDArray[np.float32]]
    """name -> [S, D], or [S, P, D] at P places; zeros where absent."""
    present: Mapping[str, NDArray[np.bool_]]
    """name -> [S] True where the sample has the feature."""
    focus: Mapping[str, NDArray[np.int64]]
    """name -> [S, J] the places of the feature the teacher attends to most, first the most; zeros where absent."""
    sample_index: NDArray[np.int64]
    """[N] which sample of the batch each token belongs to."""


@dataclass(frozen=True, slots=True, eq=False)
class CompactBatch:
    """The arrays of S samples exactly as stored, concatenated in the order asked for; small, and picklable."""

    arrays: Mapping[str, NDArray[Any]]
    """Every array of docs/cache-format.md but the two pointers, by its name in the shard."""
    token_ptr: NDArray[np.int64]
    """[S + 1] where each sample's tokens start and end."""
    entry_ptr: NDArray[np.int64]
    """[S + 1] where each sample's entries start and end."""

    def decode(self) -> DecodedBatch:
        """The batch as padded arrays."""
        counts = self.arrays["tok_n"]
        kept = np.arange(counts.max(initial=0), dtype=counts.dtype) < counts[:, None]
        ids = np.zeros(kept.shape, np.int64)
        ids[kept] = self.ids()
        gaps = np.full(kept.shape, np.inf, np.float32)
        gaps[kept] = self.gaps()
        return DecodedBatch(
            token_ids=self.token_ids(),
            ids=ids,
            gaps=gaps,
            entry_counts=counts.astype(np.int64),
            gold_gap=self.float32("gold_gap"),
            tail_lse=self.float32("tail_lse"),
            tail_energy=self.optional("tail_energy"),
            logit_max=self.optional("logit_max"),
            logit_mean=self.optional("logit_mean"),
            logit_std=self.optional("logit_std"),
            features={name: self.feature(name) for name in self.feature_names()},
            present={name: self.arrays[f"present/{name}"].astype(bool) for name in self.feature_names()},
            focus={name: self.focus(name) for name in self.focus_names()},
            sample_index=np.repeat(np.arange(len(self.token_ptr) - 1), np.diff(self.token_ptr)),
        )

    def token_ids(self) -> NDArray[np.int64]:
        """The gold ids `[N]`."""
        return join_ids(self.arrays["token_ids"], self.arrays.get("token_ids_high"))

    def ids(self) -> NDArray[np.int64]:
        """The kept ids `[E]`, token after token."""
        return join_ids(self.arrays["ids"], self.arrays.get("ids_high"))

    def gaps(self) -> NDArray[np.float32]:
        """The gaps `[E]` in nats, the gold entry's as exact as it is stored."""
        codes, counts = self.arrays["gap"], self.arrays["tok_n"]
        if codes.dtype.kind == "f":
            return codes.astype(np.float32)
        gaps = decode_gaps(codes, self.arrays["gap_top"], counts)
        gaps[np.flatnonzero(self._is_gold(counts))] = self.arrays["gold_gap"]
        return gaps

    def _is_gold(self, counts: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which entries `[E]` are those of the gold ids, found plane by plane: ids need not be joined for it."""
        is_gold = self.arrays["ids"] == self.arrays["token_ids"].repeat(counts)
        if "ids_high" in self.arrays:
            is_gold &= self.arrays["ids_high"] == self.arrays["token_ids_high"].repeat(counts)
        return is_gold

    def float32(self, name: str) -> NDArray[np.float32]:
        """A stored array in float32."""
        return widened(self.arrays[name])

    def optional(self, name: str) -> NDArray[np.float32] | None:
        """`tail_energy` `[N, M]` or a moment of the logits `[N]`, None where the cache holds none."""
        return self.float32(name) if name in self.arrays else None

    def feature_names(self) -> list[str]:
        """The names of the features stored."""
        return [name.removeprefix("present/") for name in self.arrays if name.startswith("present/")]

    def feature(self, name: str) -> NDArray[np.float32]:
        """A feature `[S, D]` or `[S, P, D]`."""
        stored = self.arrays[f"features/{name}"]
        if stored.dtype.kind == "i":
            return decode_groups(stored, self.arrays[f"scales/{name}"])
        return widened(stored)

    def focus_names(self) -> list[str]:
        """The names of the features whose places in focus are stored."""
        return [name for name in self.feature_names() if focus_name(name) in self.arrays]

    def focus(self, name: str) -> NDArray[np.int64]:
        """The places `[S, J]` of a feature which the teacher attends to most, first the most."""
        return self.arrays[focus_name(name)].astype(np.int64)
