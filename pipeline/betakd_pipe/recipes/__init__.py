"""Settings that come with the package, by name: files beside this one."""

import difflib
from pathlib import Path

from betakd_stages.errors import ConfigError

FOLDER = Path(__file__).parent
OF_COMMANDS = {"demo"}
"""Specifications of other commands, which are no settings of a stage."""


def recipe_names() -> list[str]:
    """The names of all recipes."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem not in OF_COMMANDS)


def recipe_path(name: str) -> Path:
    """The file of a recipe. Raises ConfigError where there is none of that name."""
    names = recipe_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        raise ConfigError(f"--recipe {name}: no such recipe; {hint} (betakd-pipe recipes lists them)")
    return FOLDER / f"{name}.yaml"


def recipe_description(name: str) -> str:
    """The first comment line of a recipe."""
    return recipe_path(name).read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")


def recipe_command(name: str) -> str:
    """The command that a recipe is for."""
    return "cache-teacher" if name.endswith("-teacher") else "distill"
