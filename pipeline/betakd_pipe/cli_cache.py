"""`betakd-pipe cache ...`: looking into caches, checking them and making new ones from them, without the teacher."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from betakd_pipe.cli_options import Debug, comma_separated, examples

BAR_WIDTH = 40
HISTOGRAMS = {
    "entropy": "samples by the teacher's mean entropy, nats",
    "kept_mass": "samples by the mean probability kept",
}

Cache = Annotated[str, typer.Argument(help="Folder or URL of the cache.", metavar="CACHE")]
Out = Annotated[str, typer.Option(help="Folder or URL of the cache written.")]
OutFolder = Annotated[Path, typer.Option(help="Folder of what is written.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete what is in the folder first.")]

cache_app = typer.Typer(
    no_args_is_help=True, help="Look into teacher caches, check them, make new ones from them.", rich_markup_mode="rich"
)


@cache_app.command(epilog=examples("betakd-pipe cache info cache", "betakd-pipe cache info cache --json"))
def info(cache: Cache, as_json: Json = False, debug: Debug = False) -> None:
    """Whose numbers a cache holds, by which rules, how many, and how sure the teacher was."""
    from betakd_cache import info as cache_info

    fields = cache_info(cache).to_json()
    if as_json:
        _show(fields, as_json)
        return
    histograms = {name: fields.pop(name) for name in HISTOGRAMS}
    _show(fields, as_json)
    for name, histogram in histograms.items():
        print("\n".join(_bars(HISTOGRAMS[name], histogram)))


@cache_app.command(epilog=examples("betakd-pipe cache verify cache", "betakd-pipe cache verify cache --json"))
def verify(cache: Cache, as_json: Json = False, debug: Debug = False) -> int:
    """Compare every byte of a cache with the hashes taken when it was written; exit code 1 if one differs."""
    from betakd_cache import verify as verify_cache

    found = verify_cache(cache)
    if as_json:
        _show(found.to_json(), as_json)
    elif found.ok:
        print(f"{cache}: sound; {found.num_files} files, {found.size_bytes / 1e6:.2f} MB read")
    else:
        print("\n".join(f"{cache}: {problem}" for problem in found.problems))
    return 0 if found.ok else 1


@cache_app.command(
    epilog=examples(
        "betakd-pipe cache derive cache --out small --top-k 16",
        "betakd-pipe cache derive cache --out part --temperatures 1 --samples ids.txt",
    )
)
def derive(
    cache: Cache,
    out: Out,
    top_k: Annotated[int | None, typer.Option(help="Entries kept per token at most.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Probability that the kept entries reach.")] = None,
    temperatures: Annotated[str | None, typer.Option(help="Comma-separated, such as 1,2.")] = None,
    samples: Annotated[Path | None, typer.Option(help="Text file of sample ids, one per line.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """A smaller cache: fewer entries, temperatures or samples. What is dropped goes into the tail."""
    from betakd_cache import derive as derive_cache

    derived = derive_cache(
        cache,
        out,
        top_k=top_k,
        top_p=top_p,
        temperatures=comma_separated("--temperatures", temperatures, float),
        sample_ids=None if samples is None else samples.read_text(encoding="utf-8").split("\n")[:-1],
        overwrite=overwrite,
    )
    _show(derived.to_json(), as_json)


@cache_app.command(epilog=examples("betakd-pipe cache merge cache-a cache-b --out both"))
def merge(
    caches: Annotated[list[str], typer.Argument(help="Folders or URLs of caches of one teacher.", metavar="CACHE...")],
    out: Out,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """One cache of several that hold different samples of one teacher."""
    from betakd_cache import merge as merge_caches

    _show(merge_caches(caches, out, overwrite=overwrite).to_json(), as_json)


@cache_app.command(epilog=examples("betakd-pipe cache export cache --out parquet"))
def export(cache: Cache, out: OutFolder, as_json: Json = False, debug: Debug = False) -> None:
    """A plain Parquet copy, one row per sample, that `datasets` and others read."""
    from betakd_cache import export as export_cache

    _show(export_cache(cache, out).to_json(), as_json)


@cache_app.command(epilog=examples("betakd-pipe cache diff cache-a cache-b", "betakd-pipe cache diff a b --json"))
def diff(
    left: Annotated[str, typer.Argument(help="Folder or URL of a cache.")],
    right: Annotated[str, typer.Argument(help="Folder or URL of another.")],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """How far two caches agree on the samples that both hold."""
    from betakd_cache import diff as diff_caches

    _show(diff_caches(left, right).to_json(), as_json)


def _show(fields: Mapping[str, Any], as_json: bool) -> None:
    """Print the fields as JSON, or one line each."""
    from betakd_pipe.config import flatten

    if as_json:
        print(json.dumps(fields, indent=2))
        return
    for name, value in flatten(fields).items():
        print(f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}")


def _bars(title: str, histogram: Mapping[str, Any]) -> list[str]:
    """A histogram as text: a title with the mean, then one bar per bin; null is an open end."""
    counts, edges = histogram["counts"], [float("inf") if edge is None else edge for edge in histogram["edges"]]
    lines = [f"{title} (mean {histogram['mean']:.4g})"]
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        bar = "█" * round(BAR_WIDTH * count / max(*counts, 1))
        lines.append(f"  {low:7.4g} .. {high:7.4g}  {count:9d}  {bar}".rstrip())
    return lines
