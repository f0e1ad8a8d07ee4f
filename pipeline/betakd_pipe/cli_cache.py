"""`betakd-pipe cache ...`: looking into caches, checking them and making new ones from them, without the teacher."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from betakd_pipe.cli_options import (
    Config,
    Debug,
    FeatureDtype,
    Features,
    Set,
    Targets,
    VisionFocus,
    comma_separated,
    examples,
    feature_flags,
    names_in,
)
from betakd_stages.errors import ConfigError

if TYPE_CHECKING:
    from betakd_stages.settings import CacheTeacherSettings

BAR_WIDTH = 40

Cache = Annotated[str, typer.Argument(help="Folder or URL of the cache.", metavar="CACHE")]
Out = Annotated[str, typer.Option(help="Folder or URL of the cache written.")]
OutFolder = Annotated[Path, typer.Option(help="Folder of what is written.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete what is in the folder first.")]

cache_app = typer.Typer(
    no_args_is_help=True, help="Look into teacher caches, check them, make new ones from them.", rich_markup_mode="rich"
)


@cache_app.command(epilog=examples("betakd-pipe cache info cache", "betakd-pipe cache info cache --png cache.png"))
def info(
    cache: Cache,
    png: Annotated[Path | None, typer.Option(help="Draw the histograms into this PNG file.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Whose numbers a cache holds, by which rules, how many, and how sure the teacher was."""
    from betakd_cache import info as cache_info
    from betakd_pipe.cache_info import HISTOGRAMS, cap_warning, share_at_cap, vision_fields, write_histograms
    from betakd_stages.caching.kinds import is_of_tower
    from betakd_stages.caching.written_rows import count_written

    fields = cache_info(cache).to_json()
    if is_of_tower(fields["identity"]):
        if png is not None:
            raise ConfigError(f"{cache} holds what a vision tower says, which has no histograms: leave --png out")
        _show(vision_fields(fields), as_json)
        return
    fields["counts"] |= asdict(count_written(cache))
    fields["share_at_cap"] = share_at_cap(cache)
    if png is not None:
        write_histograms(png, fields)
    if warning := cap_warning(cache, fields["share_at_cap"], fields["token_rule"]):
        logging.getLogger(__name__).warning(warning)
    if as_json:
        _show(fields, as_json)
        return
    histograms = {name: fields.pop(name) for name in HISTOGRAMS}
    _show(fields, as_json)
    for name, histogram in histograms.items():
        print("\n".join(bars(HISTOGRAMS[name], histogram)))


@cache_app.command(
    epilog=examples(
        "betakd-pipe cache verify cache",
        "betakd-pipe cache verify cache --rescore 32 --teacher teacher --data digits:transfer",
    )
)
def verify(
    cache: Cache,
    rescore: Annotated[int | None, typer.Option(metavar="N", help="Run the teacher again on N samples.")] = None,
    teacher: Annotated[str | None, typer.Option(help="Folder of the teacher, for --rescore.")] = None,
    data: Annotated[str | None, typer.Option(help="NAME:SPLIT[?key=value&...], for --rescore.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of samples, for --rescore.")] = 0,
    tolerance: Annotated[
        float | None, typer.Option(help="Nats beyond the format's precision; default: noise of the teacher's type.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Compare every byte of a cache with the hashes taken when it was written; exit code 1 if one differs.

    With --rescore also its numbers with those of the teacher, run again on some samples; exit code 1 if ids disagree
    other than in ties, or log probabilities differ by more than the format's precision and the tolerance.
    """
    from betakd_cache import verify as verify_cache

    if rescore is not None and (teacher is None or data is None):
        raise ConfigError("--rescore runs the teacher again: give --teacher DIR and --data NAME:SPLIT as well")
    found = verify_cache(cache)
    fields = found.to_json()
    if rescore is not None and teacher is not None and data is not None and found.ok:
        from betakd_stages.caching.rescoring import rescore as rescore_cache

        rescored = rescore_cache(cache, teacher, data, rescore, seed=seed, tolerance=tolerance)
        fields["rescoring"] = rescored.to_json()
        fields["ok"] = rescored.ok
    if as_json:
        _show(fields, as_json)
        return 0 if fields["ok"] else 1
    if found.ok:
        print(f"{cache}: sound; {found.num_files} files, {found.size_bytes / 1e6:.2f} MB read")
    else:
        print("\n".join(f"{cache}: {problem}" for problem in found.problems))
    if "rescoring" in fields:
        _show(fields["rescoring"], as_json)
    return 0 if fields["ok"] else 1


@cache_app.command(
    epilog=examples(
        "betakd-pipe cache estimate --teacher teacher --data digits:transfer",
        "betakd-pipe cache estimate --config cache.yaml --top-k 16 --samples 100",
        "betakd-pipe cache estimate --config cache.yaml --workers 64",
        "betakd-pipe cache estimate --config cache.yaml --features vision:tokens,prompt --feature-dtype int8",
    )
)
def estimate(
    teacher: Annotated[str | None, typer.Option(help="Folder of the teacher.")] = None,
    data: Annotated[str | None, typer.Option(help="NAME:SPLIT[?key=value&...], such as digits:transfer.")] = None,
    samples: Annotated[int, typer.Option(help="How many to score.")] = 32,
    limit: Annotated[int | None, typer.Option(help="Only the first so many samples.")] = None,
    targets: Targets = None,
    top_k: Annotated[int | None, typer.Option(help="Entries kept per token at most.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Probability that the kept entries reach.")] = None,
    temperatures: Annotated[str | None, typer.Option(help="Comma-separated, such as 0.5,1,2.")] = None,
    features: Features = None,
    feature_dtype: FeatureDtype = None,
    vision_focus: VisionFocus = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with a GPU, that will share the work.")] = 1,
    config: Config = None,
    set_: Set = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Bytes, hours and memory that `cache-teacher` with the same flags will need, from scoring a few samples."""
    from betakd_pipe.config import load_settings
    from betakd_stages.settings import CacheTeacherSettings

    flags: dict[str, Any] = {"teacher": teacher, "data": data, "limit": limit, "top_k": top_k, "top_p": top_p}
    flags["temperatures"] = comma_separated("--temperatures", temperatures, float)
    flags |= feature_flags(features, feature_dtype, vision_focus) | {"targets": names_in(targets)}
    settings = load_settings(CacheTeacherSettings, config, flags, set_ or ())
    show_estimate(settings, num_scored=samples, num_parts=workers, as_json=as_json)


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


@cache_app.command(
    epilog=examples(
        "betakd-pipe cache merge cache-a cache-b --out both",
        "betakd-pipe cache merge --mixture a b --out mixed --teacher-weighting confidence",
        "betakd-pipe cache merge --mixture a b --out mixed --teacher-weighting learned --data digits:transfer",
    )
)
def merge(
    caches: Annotated[list[str], typer.Argument(help="Folders or URLs of caches.", metavar="CACHE...")],
    out: Out,
    mixture: Annotated[bool, typer.Option("--mixture", help="Several teachers of the same samples.")] = False,
    teacher_weighting: Annotated[
        str | None, typer.Option(help="uniform, entropy, confidence, trust or learned; for --mixture.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="NAME:SPLIT[?key=value&...], for learned weights.")] = None,
    config: Config = None,
    set_: Set = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """One cache of several: of one teacher and different samples or, with --mixture, of several teachers and the same.

    A mixture is that of the teachers' distributions at temperature 1. A sample that one teacher lacks is carried by the
    others.
    """
    flags = {"ensemble.weighting": teacher_weighting, "data": data}
    if mixture:
        from betakd_pipe.config import load_settings
        from betakd_pipe.progress import terminal_progress
        from betakd_pipe.stage_runs import cache_mixture
        from betakd_stages.settings import MixtureSettings

        settings = load_settings(MixtureSettings, config, {"caches": caches, **flags}, set_ or ())
        merged = cache_mixture(settings, out, overwrite=overwrite, progress=terminal_progress())
        _show(merged.to_json(), as_json)
        return
    if config or set_ or any(flags.values()):
        raise ConfigError("--teacher-weighting, --data, --config and --set are for several teachers: add --mixture")
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


def show_estimate(
    settings: "CacheTeacherSettings", *, num_scored: int = 32, num_parts: int = 1, as_json: bool = False
) -> None:
    """Print what stage one will cost."""
    from betakd_pipe.progress import terminal_progress
    from betakd_stages.caching.estimation import estimate as estimate_cost

    found = estimate_cost(settings, num_scored=num_scored, num_parts=num_parts, progress=terminal_progress())
    _show(found.to_json(), as_json)
    if found.features_dominate and not as_json:
        share = found.bytes_per_sample["features"] / found.bytes_per_sample["all"]
        print(
            f"features take {share:.0%} of the cache, answers being {found.tokens_per_sample:.3g} tokens long: "
            "a smaller top_k would save little"
        )


def bars(title: str, histogram: Mapping[str, Any]) -> list[str]:
    """A histogram as text: a title with the mean, then one bar per bin; null is an open end."""
    counts, edges = histogram["counts"], [float("inf") if edge is None else edge for edge in histogram["edges"]]
    lines = [f"{title} (mean {histogram['mean']:.4g})"]
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        bar = "█" * round(BAR_WIDTH * count / max(*counts, 1))
        lines.append(f"  {low:7.4g} .. {high:7.4g}  {count:9d}  {bar}".rstrip())
    return lines
