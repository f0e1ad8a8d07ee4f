"""The commands that make many runs into one table: ablate, and demo, which is an ablation of its own."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from betakd_pipe.cli_options import EXIT_FAILED, Debug, Set, comma_separated, examples

experiment_commands = typer.Typer()


@experiment_commands.command(
    epilog=examples("betakd-pipe recipes", "betakd-pipe recipes mobilevlm-v2-stage2 > my.yaml")
)
def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe; without one, list all.")] = None,
    debug: Debug = False,
) -> None:
    """The recipes that come with the package, for --recipe of cache-teacher and distill."""
    from betakd_pipe.recipes import recipe_command, recipe_description, recipe_names, recipe_path

    if name is not None:
        print(recipe_path(name).read_text(encoding="utf-8"), end="")
        return
    for each in recipe_names():
        print(f"{each} ({recipe_command(each)}): {recipe_description(each)}")


@experiment_commands.command(
    epilog=examples(
        "betakd-pipe ablate spec.yaml --cache cache --student student --data digits:transfer --out ablation",
        "betakd-pipe ablate spec.yaml --out ablation --jobs 2 --set seeds=[0,1]",
    )
)
def ablate(
    spec: Annotated[Path, typer.Argument(help="YAML: seeds, methods, grid, tuning.")],
    out: Annotated[Path, typer.Option(help="Folder of all runs and of results.csv.")],
    student: Annotated[str | None, typer.Option(help="Folder of the student; {seed} is filled in.")] = None,
    cache: Annotated[str | None, typer.Option(help="Folder of the cache; {seed} is filled in.")] = None,
    data: Annotated[str | None, typer.Option(help="Data specification; {seed} is filled in.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; default: the cores.")] = None,
    set_: Set = None,
    debug: Debug = False,
) -> int:
    """Many runs from one cache, one table. Finished runs are kept, interrupted ones go on, failed ones are named."""
    from betakd_pipe.ablation.run import Ablation, run_ablations
    from betakd_pipe.ablation.spec import AblationSpec
    from betakd_pipe.ablation.table import print_table
    from betakd_pipe.config import load_settings
    from betakd_pipe.progress import terminal_progress

    flags = {"student": student, "cache": cache, "data": data}
    settings = load_settings(AblationSpec, spec, flags, set_ or ())
    (result,) = run_ablations([Ablation(settings, out)], jobs=jobs, progress=terminal_progress())
    print_table(result.rows)
    print(f"{out / 'results.csv'}: {len(result.rows)} rows")
    for run, reason in result.failures.items():
        print(f"betakd-pipe: {run} failed: {reason}", file=sys.stderr)
    return EXIT_FAILED if result.failures else 0


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
