"""The teacher cache: what a teacher said about every sample, on disk. Needs numpy, pyarrow and zarr, never torch."""

from betakd_cache.batch import CompactBatch, DecodedBatch
from betakd_cache.comparison import Difference, diff
from betakd_cache.derivation import Derivation, derive
from betakd_cache.errors import CacheError
from betakd_cache.exporting import Export, export
from betakd_cache.feature_statistics import FeatureStatistics
from betakd_cache.information import CacheInfo, Histogram, info
from betakd_cache.layout import FORMAT_VERSION, CacheRules, FeatureLayout
from betakd_cache.manifest import Manifest, read_manifest
from betakd_cache.merging import Merger, merge
from betakd_cache.reader import TeacherCache, open_cache
from betakd_cache.record import TeacherRecord
from betakd_cache.token_rule import TokenRule
from betakd_cache.verification import Verification, verify
from betakd_cache.without_tokens import record_without_tokens, rules_without_tokens
from betakd_cache.writer import CacheWriter

__all__ = [
    "FORMAT_VERSION",
    "CacheError",
    "CacheInfo",
    "CacheRules",
    "CacheWriter",
    "CompactBatch",
    "DecodedBatch",
    "Derivation",
    "Difference",
    "Export",
    "FeatureLayout",
    "FeatureStatistics",
    "Histogram",
    "Manifest",
    "Merger",
    "TeacherCache",
    "TeacherRecord",
    "TokenRule",
    "Verification",
    "derive",
    "diff",
    "export",
    "info",
    "merge",
    "open_cache",
    "read_manifest",
    "record_without_tokens",
    "rules_without_tokens",
    "verify",
]
