"""How fast one core writes a cache, with every check, hash, checksum and sync: tokens and bytes per second.

    python benchmarks/cache_write.py [--quick] [--json FILE] [--out DIR]

Records are simulated beforehand (mean 28 entries a token) and given in batches of 32, as a teacher does. The processor
time is reported beside the wall clock, because a busy machine and a slow disk lengthen only the latter.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from betakd_cache import CacheWriter, TokenRule, open_cache
from betakd_cache.record import TeacherRecord
from betakd_cache.simulation import simulated_records

SETTINGS: dict[str, dict[str, Any]] = {
    "V = 32,000, short answers": {"vocabulary_size": 32_000, "mean_tokens": 30},
    "V = 32,000": {"vocabulary_size": 32_000, "mean_tokens": 120},
    "V = 32,000, features of 1024": {
        "vocabulary_size": 32_000,
        "mean_tokens": 120,
        "feature_sizes": {"vision": 1024, "prompt": 1024},
    },
    "V = 151,936": {"vocabulary_size": 151_936, "mean_tokens": 120},
    "V = 32,000, exact": {"vocabulary_size": 32_000, "mean_tokens": 120, "token_rule": TokenRule(exact=True)},
}
BATCH_SAMPLES = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer tokens and repetitions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--out", type=Path, help="where to write the caches (default: a temporary folder)")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    num_tokens, repetitions = (60_000, 3) if arguments.quick else (500_000, 7)
    rows = [measure(name, settings, num_tokens, repetitions, arguments.out) for name, settings in SETTINGS.items()]
    table = Table(title="Writing a cache on one core, median of repetitions")
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "setting" else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:,.0f}" for value in row.values()))
    Console(width=120).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def measure(name: str, settings: dict[str, Any], num_tokens: int, repetitions: int, out: Path | None) -> dict[str, Any]:
    """One row: the median rates of writing the same records again and again."""
    records = list(simulated_records(num_tokens // settings["mean_tokens"], **settings))
    total = sum(len(record.token_ids) for record in records)
    walls_s, processors_s = [], []
    for _ in range(repetitions):
        with tempfile.TemporaryDirectory(dir=out) as folder:
            wall_s, processor_s = time.perf_counter(), time.process_time()
            write(Path(folder) / "cache", records, settings)
            walls_s.append(time.perf_counter() - wall_s)
            processors_s.append(time.process_time() - processor_s)
            size_bytes = open_cache(Path(folder) / "cache").manifest.counts.size_bytes
    return {
        "setting": name,
        "tokens": total,
        "bytes_per_token": size_bytes / total,
        "tokens_per_s": total / statistics.median(walls_s),
        "tokens_per_processor_s": total / statistics.median(processors_s),
        "best_tokens_per_s": total / min(walls_s),
    }


def write(path: Path, records: list[TeacherRecord], settings: dict[str, Any]) -> None:
    """The complete cache of these records."""
    with CacheWriter.open(
        path,
        identity={"teacher": "simulated"},
        token_rule=settings.get("token_rule", TokenRule()),
        vocabulary_size=settings["vocabulary_size"],
        feature_sizes=settings.get("feature_sizes", {}),
    ) as writer:
        for start in range(0, len(records), BATCH_SAMPLES):
            writer.extend(records[start : start + BATCH_SAMPLES])
        writer.complete()


if __name__ == "__main__":
    main()
