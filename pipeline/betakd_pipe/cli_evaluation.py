"""The commands that measure: evaluate, which asks a model, and score, for answers that are there already."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from betakd_pipe.cli_options import Config, Debug, Ray, Set, examples

evaluation_commands = typer.Typer()

OFFICIAL = "official."
NOT_SHOWN = ("benchmarks", "intervals", "credible_intervals", "reliability")


@evaluation_commands.command(
    epilog=examples(
        "betakd-pipe evaluate run --benchmark digits --out scores",
        "betakd-pipe evaluate run --benchmark digits --out scores --reference teacher-scores",
        "betakd-pipe evaluate run --benchmark 'scienceqa=ScienceQA?split=test' --out scores",
        "betakd-pipe evaluate run --benchmark mmbench=dev.tsv --out scores --backend vllm --set precision=bf16",
        "betakd-pipe evaluate run --benchmark pope=coco?images=val2014 --benchmark mme=MME --out scores",
        "betakd-pipe evaluate run --benchmark gqa=GQA --benchmark pope=POPE --out /shared/scores --ray auto",
        "betakd-pipe evaluate run --benchmark digits --calibrate-on digits:validation --out scores",
        "betakd-pipe evaluate run --benchmark digits --draws 50 --out scores  (of a run with posterior.count)",
    )
)
def evaluate(
    model: Annotated[str, typer.Argument(help="Model folder or run folder.")],
    out: Annotated[Path, typer.Option(help="Folder of the scores and predictions.")],
    benchmark: Annotated[
        list[str] | None, typer.Option(help="NAME=PATH[?key=value&...]; repeat for several; or digits[:SPLIT].")
    ] = None,
    reference: Annotated[str | None, typer.Option(help="The teacher's evaluation: adds agreement with it.")] = None,
    backend: Annotated[str | None, typer.Option(help="What runs the model: hf, or vllm where it is installed.")] = None,
    draws: Annotated[
        int | None, typer.Option(help="Students drawn from the run's posterior: adds credible intervals.")
    ] = None,
    calibrate_on: Annotated[
        list[str] | None, typer.Option(help="Held-out part of a benchmark: adds temperature scaling fitted there.")
    ] = None,
    ray: Ray = None,
    config: Config = None,
    set_: Set = None,
    debug: Debug = False,
) -> None:
    """Answer benchmarks greedily and score the answers by their official rules.

    A finished evaluation is left alone; an interrupted one goes on in the middle of a benchmark.
    """
    from betakd_pipe import stage_runs
    from betakd_pipe.config import load_settings
    from betakd_pipe.progress import terminal_progress
    from betakd_stages.settings import EvaluateSettings

    flags: dict[str, Any] = {"model": model, "benchmark": benchmark, "reference": reference, "backend": backend}
    flags |= {"draws": draws, "calibrate_on": calibrate_on}
    settings = load_settings(EvaluateSettings, config, flags, set_ or ())
    stages = stage_runs.load_stages()
    scores = stage_runs.evaluate(settings, out, ray=ray, progress=terminal_progress(), stages=stages)
    for name, one in scores.get("benchmarks", {}).items():
        print("\n".join(f"{name}.{line}" for line in _lines(one)))
    print("\n".join(_lines(scores)))


@evaluation_commands.command(
    epilog=examples(
        "betakd-pipe score --benchmark gqa=testdev_balanced_questions.json --predictions answers.jsonl",
        "betakd-pipe score --benchmark mme=MME --predictions scores/mme/predictions.jsonl --json mme.json",
        "betakd-pipe score --benchmark mmbench=dev.tsv --predictions student.jsonl --against teacher.jsonl",
    )
)
def score(
    benchmark: Annotated[str, typer.Option(help="NAME=PATH[?key=value&...], as for evaluate; no images are needed.")],
    predictions: Annotated[Path, typer.Option(help="JSONL of question_id, prompt and text, made anywhere.")],
    against: Annotated[Path | None, typer.Option(help="Other predictions: adds how far these are above them.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the scores there, too.")] = None,
    debug: Debug = False,
) -> None:
    """Score predictions by a benchmark's official rule, whoever made them."""
    import json

    from betakd_stages.evaluation.scoring import score_file
    from betakd_stages.files import write_atomically

    scores = score_file(benchmark, predictions, against)
    if json_ is not None:
        write_atomically(json_, json.dumps(scores, indent=2) + "\n")
    print("\n".join(_lines(scores)))


def _lines(scores: Mapping[str, Any]) -> Iterator[str]:
    """A line per number; official numbers with their intervals, those of drawn students last."""
    from betakd_pipe.config import flatten

    for name, value in flatten({key: value for key, value in scores.items() if key not in NOT_SHOWN}).items():
        interval = scores.get("intervals", {}).get(name.removeprefix(OFFICIAL)) if name.startswith(OFFICIAL) else None
        sure = f" (95 %: {interval[0]:.5g} to {interval[1]:.5g})" if interval else ""
        yield f"{name}: {value:.5g}{sure}" if isinstance(value, float) else f"{name}: {value}"
    for name, (low, high) in scores.get("credible_intervals", {}).items():
        yield f"credible_intervals.{name}: {low:.5g} to {high:.5g}"
