"""What the commands share: options, and how examples look in --help."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from betakd_stages.errors import ConfigError

EXIT_FAILED = 1
Number = TypeVar("Number", int, float)

Config = Annotated[Path | None, typer.Option("--config", help="YAML file of settings; flags and --set win over it.")]
Recipe = Annotated[
    str | None, typer.Option("--recipe", help="Settings by name (betakd-pipe recipes); a file and flags win over them.")
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray", metavar="ADDRESS", help="As tasks on a Ray cluster: auto (the one running here), local, or HOST:PORT."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, say what it will cost, and write nothing.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting; repeat for more.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

Features = Annotated[
    str | None, typer.Option(help="Comma-separated: vision, vision:grid:4x4 or vision:tokens; prompt.")
]
FeatureDtype = Annotated[str | None, typer.Option(help="float16, or int8 in groups of 64, half the size.")]
VisionFocus = Annotated[
    int | None, typer.Option(help="Visual tokens noted per sample that the teacher attends to most; for Align-KD 16.")
]
Targets = Annotated[
    str | None, typer.Option(help="Answers scored: data, generate (the teacher writes them), or data,generate.")
]


def names_in(text: str | None) -> list[str] | None:
    """The names of `a,b`; None where the flag was not given, and none at all for an empty text."""
    return None if text is None else [name for name in text.split(",") if name]


def feature_flags(features: str | None, feature_dtype: str | None, vision_focus: int | None) -> dict[str, Any]:
    """The settings of these three options, None where one was not given; no feature at all for an empty text."""
    return {"features": names_in(features), "feature_dtype": feature_dtype, "vision_focus": vision_focus}


def examples(*lines: str) -> str:
    """An epilog with one example per line, as the help renderer wants it."""
    escaped = [line.replace("[", r"\[") for line in lines]
    return "\n\n".join(["[bold]Examples[/bold]", *(f"  {line}" for line in escaped)])


def part_of_work(text: str) -> tuple[int, int]:
    """(i, n) of `i/n`. Raises ConfigError unless 0 <= i < n."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and int(number) < int(of)):
        raise ConfigError(f"--part {text}: expected I/N with I from 0 to N - 1, such as 0/2 and 1/2 for two processes")
    return int(number), int(of)


def comma_separated(flag: str, text: str | None, number: Callable[[str], Number]) -> list[Number] | None:
    """The numbers of `1,2,3`; None where the flag was not given. Raises ConfigError."""
    if text is None:
        return None
    try:
        return [number(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{flag} {text}: expected numbers separated by commas, such as 1,2") from None
