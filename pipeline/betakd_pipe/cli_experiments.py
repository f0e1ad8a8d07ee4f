"""The demo, which is an ablation with teachers of its own, and the recipes."""

from pathlib import Path
from typing import Annotated

import typer

from betakd_pipe.cli_options import Debug, comma_separated, examples

experiment_commands = typer.Typer()


@experiment_commands.command(
    epilog=examples("betakd-pipe recipes", "betakd-pipe recipes mobilevlm-v2-stage2 > my.yaml")
)
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe; without one, list all.")] = None,
    debug: Debug = False,
) -> None:
    """The recipes that come with the package, for --recipe of cache-teacher, distill and ablate; and its ablations."""
    from betakd_pipe.ablation.paper_tables import spec_path, table_description, table_names
    from betakd_pipe.recipes import recipe_command, recipe_description, recipe_names, recipe_path

    if name is not None:
        path = spec_path(name) if name in table_names() else recipe_path(name)
        print(path.read_text(encoding="utf-8"), end="")
        return
    for each in recipe_names():
        print(f"{each} ({recipe_command(each)}): {recipe_description(each)}")
    for each in table_names():
        print(f"{each} (ablate): {table_description(each)}")


@experiment_commands.command(
    epilog=examples(
        "betakd-pipe demo",
        "betakd-pipe demo --out demo --seeds 0 --quick",
        "betakd-pipe demo --energy rkl --weighting instance  (one more row in the table)",
    )
)
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the report and of all runs.")] = Path("demo"),
    seeds: Annotated[str, typer.Option(help="Comma-separated.")] = "0,1,2",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer steps: a look, not a result.")] = False,
    energy: Annotated[list[str] | None, typer.Option(help="Of one more method; repeat for several.")] = None,
    weighting: Annotated[str | None, typer.Option(help="Of that method, such as task or instance.")] = None,
    debug: Debug = False,
) -> int:
    """Both stages on real handwritten digits, an ablation table and a report, in minutes on two cores."""
    from betakd_pipe.demo import run_demo
    from betakd_pipe.progress import terminal_progress

    numbers = comma_separated("--seeds", seeds, int) or []
    return run_demo(out, numbers, quick, terminal_progress(), energy or (), weighting)
