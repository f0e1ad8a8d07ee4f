"""The command that makes many runs from one cache into one table."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from betakd_pipe.cli_options import EXIT_FAILED, Debug, Ray, Set, comma_separated, examples
from betakd_stages.errors import ConfigError

ablation_commands = typer.Typer()


@ablation_commands.command(
    epilog=examples(
        "betakd-pipe ablate spec.yaml --cache cache --student student --data digits:transfer --out ablation",
        "betakd-pipe ablate paper-table-2 --recipe mobilevlm-v2-scienceqa --student MobileVLM_V2-1.7B --cache cache "
        "--data scienceqa:DIR?split=train --benchmark scienceqa=DIR?split=test --seeds 0,1,2 --out table-2",
        "betakd-pipe ablate spec.yaml --out ablation --jobs 2 --set base.training.steps=100 --dry-run",
        "betakd-pipe ablate spec.yaml --out ablation --ray auto",
        "betakd-pipe recipes paper-table-2 > mine.yaml",
    )
)
def ablate(
    spec: Annotated[str, typer.Argument(help="YAML file, or one that is built in: paper-table-1 to paper-table-6.")],
    out: Annotated[Path, typer.Option(help="Folder of all runs and of the tables.")],
    student: Annotated[str | None, typer.Option(help="Folder of the student; {seed} is filled in.")] = None,
    cache: Annotated[
        list[str] | None, typer.Option(help="Folder of the cache; {seed} is filled in; repeat for several teachers.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Data specification; {seed} is filled in.")] = None,
    benchmark: Annotated[
        list[str] | None, typer.Option(help="What every student is evaluated on, such as digits; repeat for several.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Settings of stage two by name (betakd-pipe recipes), below the spec's.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Comma-separated.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at a time; default: the GPUs, or the cores where there is none.")
    ] = None,
    retries: Annotated[int, typer.Option(min=0, help="How often a run is tried again that died or met a bug.")] = 1,
    ray: Ray = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and what they will cost, and write nothing.")
    ] = False,
    set_: Set = None,
    debug: Debug = False,
) -> int:
    """Many runs from one cache, one table. Finished runs are kept, interrupted ones go on, failed ones are named."""
    from betakd_pipe.ablation.paper_tables import spec_path
    from betakd_pipe.ablation.run import Ablation
    from betakd_pipe.ablation.spec import AblationSpec
    from betakd_pipe.config import load_settings

    flags: dict[str, Any] = {"student": student, "cache": cache, "data": data, "recipe": recipe}
    flags |= {"evaluate.benchmark": benchmark, "seeds": comma_separated("--seeds", seeds, int)}
    settings = load_settings(AblationSpec, spec_path(spec), flags, set_ or ())
    ablation = Ablation(settings, out)
    if dry_run:
        return _show_plan(ablation, jobs)
    if ray is not None and jobs is not None:
        raise ConfigError(
            f"--ray {ray} and --jobs {jobs}: a cluster runs as many at a time as fit, by ray.num_gpus and "
            "ray.num_cpus: leave out --jobs"
        )
    return _run(ablation, jobs, retries, ray)


def _run(ablation: Any, jobs: int | None, retries: int, ray: str | None) -> int:
    from betakd_pipe.ablation.execution import Slots
    from betakd_pipe.ablation.live import terminal_display
    from betakd_pipe.ablation.rows import RESULTS
    from betakd_pipe.ablation.run import run_ablations
    from betakd_pipe.ablation.shaped import TABLE_MARKDOWN, print_shaped, shaped_table
    from betakd_pipe.ablation.table import print_table
    from betakd_pipe.cluster.ablation import ray_slots

    display = terminal_display()
    opened = Slots if ray is None else partial(ray_slots, ray, ablation.spec.ray, ablation.out)
    (result,) = run_ablations(
        [ablation], jobs=jobs, retries=retries, progress=display, watch=display, open_executor=opened
    )
    if ablation.spec.table is None:
        print_table(result.rows)
    else:
        print_shaped(shaped_table(ablation.spec, result.rows))
    print(f"{ablation.out / RESULTS}: {len(result.rows)} rows; the table: {ablation.out / TABLE_MARKDOWN}")
    for run, reason in result.failures.items():
        print(f"betakd-pipe: {run} failed: {reason}", file=sys.stderr)
    return EXIT_FAILED if result.failures else 0


def _show_plan(ablation: Any, jobs: int | None) -> int:
    from betakd_pipe.ablation.dry_run import describe_plan, measured_cost, plan
    from betakd_pipe.ablation.execution import num_slots
    from betakd_pipe.progress import terminal_progress
    from betakd_pipe.stage_runs import load_stages

    slots = num_slots(jobs, load_stages().visible_gpus())
    for line in describe_plan(plan(ablation, slots, terminal_progress(), measured_cost)):
        print(line)
    return 0
