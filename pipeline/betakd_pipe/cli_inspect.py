"""The command inspect: single samples of a run, end to end."""

from pathlib import Path
from typing import Annotated

import typer

from betakd_pipe.cli_options import Debug, examples

inspect_commands = typer.Typer()


@inspect_commands.command(
    epilog=examples(
        "betakd-pipe inspect run",
        "betakd-pipe inspect run --sample 5312 --sample 977 --top 10",
        "betakd-pipe inspect run --count 20 --html samples.html",
    )
)
def inspect(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.", metavar="RUN")],
    sample: Annotated[list[str] | None, typer.Option(help="Id of a sample of its data; repeat for more.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Without ids: the first so many samples.")] = 1,
    top: Annotated[int, typer.Option(min=1, help="Tokens shown of teacher and of student.")] = 5,
    html: Annotated[Path | None, typer.Option(help="Write a page instead of printing.")] = None,
    cache: Annotated[
        list[str] | None, typer.Option(help="Where the run's cache lies now, if it was moved; repeat for several.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="The run's data, if they were moved.")] = None,
    debug: Debug = False,
) -> None:
    """One sample end to end: image, prompt, supervised tokens, what teacher and student say, energies and weights."""
    from betakd_pipe.config import load_settings
    from betakd_pipe.inspection.page import write_page
    from betakd_pipe.inspection.terminal import print_samples
    from betakd_pipe.run_folder import CONFIG
    from betakd_pipe.stage_runs import inspect_samples
    from betakd_stages.errors import ConfigError
    from betakd_stages.settings import DistillSettings

    if not (run / CONFIG).is_file():
        raise ConfigError(f"{run} holds no {CONFIG}: name the folder of a run of distill")
    settings = load_settings(DistillSettings, run / CONFIG, {"cache": cache, "data": data})
    views = inspect_samples(run, settings, sample_ids=sample or (), count=count, num_guesses=top)
    if html is None:
        print_samples(views)
    else:
        write_page(html, f"{run.resolve().name}: {len(views)} samples", views)
        print(f"{html}: {len(views)} samples")
