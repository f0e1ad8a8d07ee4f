"""`betakd-pipe cache trust`: how far the teacher of a cache can be believed."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from betakd_pipe.cli_cache import Cache, Json, bars
from betakd_pipe.cli_options import Config, Debug, Set, examples

if TYPE_CHECKING:
    from betakd_stages.trust.report import TrustReport

trust_commands = typer.Typer()


@trust_commands.command(
    epilog=examples(
        "betakd-pipe cache trust cache --data digits:transfer",
        "betakd-pipe cache trust cache --data 'llava:train.json?images=photos' --clashes 100 --json",
        "betakd-pipe cache trust s3://bucket/cache --data digits:transfer --out trust.parquet",
    )
)
def trust(
    cache: Cache,
    data: Annotated[str | None, typer.Option(help="NAME:SPLIT[?key=value&...], as for cache-teacher.")] = None,
    out: Annotated[str | None, typer.Option(help="File written; default: CACHE.trust.parquet.")] = None,
    clashes: Annotated[int, typer.Option(min=0, help="Samples shown on which teacher and labels clash.")] = 10,
    config: Config = None,
    set_: Set = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """How far the teacher can be believed, sample by sample, from its cache and the labels; for --weighting robust.

    No teacher and no student runs. Shown are question groups (switched off where the teacher predicts held-out labels
    no better than chance), a histogram, and the samples whose labels contradict the teacher most: label errors or
    teacher errors, worth a look.
    """
    from betakd_pipe.config import load_settings
    from betakd_pipe.progress import terminal_progress
    from betakd_pipe.stage_runs import cache_trust
    from betakd_stages.settings import TrustSettings

    settings = load_settings(TrustSettings, config, {"cache": cache, "data": data, "out": out}, set_ or ())
    report = cache_trust(settings, num_clashes=clashes, progress=terminal_progress())
    if as_json:
        print(json.dumps(report.to_json(), indent=2))
        return
    _show(report)


def _show(report: "TrustReport") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), caption_justify="left")
    table.add_column("question group", overflow="fold")
    for title in ("samples", "agree", "pi", "skill", "error", "trust"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in report.groups:
        shown = f"{row.trust:.2f}" if row.is_trusted else "off"
        figures = (f"{row.agreement:.0%}", f"{row.pi:.2f}", f"{row.skill:+.3f}", f"{row.skill_error:.3f}", shown)
        table.add_row(row.group, str(row.num_samples), *figures)
    table.caption = "  agree: labels that are the teacher's first choice; skill: nats above chance; off: no sure skill"
    console = Console()
    console.print(table)
    print("\n".join(bars("trust in the teacher, samples", report.histogram)))
    if report.clashes:
        print("\nlabels that contradict the teacher most (nats below its own answer; trust in it)")
    for clash in report.clashes:
        print(f"  {clash.sample_id}  {clash.nats:.1f}  {clash.trust:.2f}  {clash.question!r} -> {clash.answer!r}")
    print(f"\n{report.num_samples} samples: {report.path}")
