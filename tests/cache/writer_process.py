"""`python writer_process.py CACHE`: writes the records of the kill tests, slowly enough to be killed at any point."""

import sys
from pathlib import Path

from tests.cache.records import make_records, writer_for

from betakd_cache import TokenRule

RULE = TokenRule(top_k=8, top_p=0.99)
RECORDS = make_records(24, 64, RULE)


def write_what_is_missing(path: Path) -> None:
    """Complete the cache at `path`, from wherever it stands."""
    with writer_for(path, RULE, 64, shard_samples=2) as writer:
        for record in RECORDS:
            if record.sample_id not in writer.stored:
                writer.append(record)
        writer.complete()


if __name__ == "__main__":
    print("ready", flush=True)
    write_what_is_missing(Path(sys.argv[1]))
