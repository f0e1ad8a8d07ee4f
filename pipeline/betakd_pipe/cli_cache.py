"""`betakd-pipe cache ...`: looking into caches and checking them."""

import json
from pathlib import Path
from typing import Annotated

import typer

from betakd_pipe.cli_options import Debug, examples

Cache = Annotated[Path, typer.Argument(help="Folder of the cache.", metavar="CACHE")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

cache_app = typer.Typer(no_args_is_help=True, help="Look into a teacher cache and check it.", rich_markup_mode="rich")


@cache_app.command(epilog=examples("betakd-pipe cache info cache", "betakd-pipe cache info cache --json"))
def info(cache: Cache, as_json: Json = False, debug: Debug = False) -> None:
    """Whose numbers a cache holds, by which rules, how many, and how sure the teacher was."""
    from betakd_pipe.cache_info import describe_cache, histogram_lines
    from betakd_pipe.config import flatten

    description = describe_cache(cache)
    if as_json:
        print(json.dumps(description, indent=2))
        return
    histograms = description.pop("histograms")
    for name, value in flatten(description).items():
        print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")
    for name, histogram in histograms.items():
        print("\n".join(histogram_lines(name, histogram)))


@cache_app.command(epilog=examples("betakd-pipe cache verify cache", "betakd-pipe cache verify cache --json"))
def verify(cache: Cache, as_json: Json = False, debug: Debug = False) -> int:
    """Compare every byte of a cache with the hashes taken when it was written; exit code 1 if one differs."""
    from betakd_cache import verify as verify_cache

    found = verify_cache(cache)
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
    elif found.ok:
        print(f"{cache}: sound; {found.num_files} files, {found.size_bytes / 1e6:.2f} MB read")
    else:
        print("\n".join(f"{cache}: {problem}" for problem in found.problems))
    return 0 if found.ok else 1
