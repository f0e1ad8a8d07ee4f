"""The command that shows ablations and runs as one page."""

from pathlib import Path
from typing import Annotated

import typer

from betakd_pipe.cli_options import Debug, examples

report_commands = typer.Typer()


@report_commands.command(
    epilog=examples(
        "betakd-pipe report ablation --out report/index.html",
        "betakd-pipe report demo/D1 demo/D2 --out both.html --baseline ce",
        "betakd-pipe report run --out run.html  (a run that was evaluated into run/evaluation)",
    )
)
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of ablations or runs; each is a section.")],
    out: Annotated[Path, typer.Option(help="The page; tables/ and figures/ are written beside it.")],
    title: Annotated[str | None, typer.Option(help="Default: the folders' names.")] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="METHOD", help="Compare with this method; default: manual weights, or the first."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Which method won, by how much, is it significant, what did beta do: one page that needs no network.

    Works while an ablation is still running, with what is done so far.
    """
    from betakd_pipe.report import read_scenario, write_report

    scenarios = [read_scenario(folder, baseline) for folder in folders]
    names = ", ".join(scenario.name for scenario in scenarios)
    page = write_report(out, title or f"Distillation report: {names}", [], scenarios)
    print(f"{page}: {len(scenarios)} section{'' if len(scenarios) == 1 else 's'}, tables/ and figures/ beside it")
