"""The paper's tables as ablations that come with the package, and the figures that the paper reports in them."""

import difflib
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from betakd_stages.errors import ConfigError

FOLDER = Path(__file__).parent
REPORTED = FOLDER / "reported.json"


@dataclass(frozen=True, slots=True)
class Reported:
    """What the paper says of one table: of methods, of their figures, [mean] or [mean, standard deviation]."""

    source: str
    benchmark: str
    figures: Mapping[str, Mapping[str, Sequence[float]]]


def table_names() -> list[str]:
    """The names of the built-in ablations."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def table_description(name: str) -> str:
    """The first comment line of a built-in ablation."""
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")


def spec_path(name: str) -> Path:
    """The file of a built-in ablation, or the file that `name` is the path of.

    Raises ConfigError where there is neither.
    """
    if name in table_names():
        return FOLDER / f"{name}.yaml"
    if not Path(name).is_file():
        near = difflib.get_close_matches(name, table_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"built in are {', '.join(table_names())}"
        raise ConfigError(f"{name}: no such file, and no ablation that comes with the package; {hint}")
    return Path(name)


@functools.cache
def reported(table: str) -> Reported:
    """The figures of a table. Raises ConfigError for one of which the paper's figures are not here."""
    values = json.loads(REPORTED.read_text(encoding="utf-8"))
    if table not in values["tables"]:
        known = ", ".join(values["tables"])
        raise ConfigError(f"table.reported: found {table}, expected one of {known}, or leave it out")
    return Reported(values["source"], values["benchmark"], values["tables"][table])
