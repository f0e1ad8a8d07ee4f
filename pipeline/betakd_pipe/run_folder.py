"""Run folders: what was asked for, written first; what ran it; its log; and a refusal to mix two configurations.

    config.yaml         the resolved settings
    environment.json    versions, platform and threads at the first start
    log.txt             every log record of every session
    README.md           the model card, written last

The stage owns everything else in the folder, and the entry that marks it as finished is the stage's last act.
"""

import fcntl
import importlib.metadata
import json
import logging
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import yaml
from pydantic import BaseModel, ValidationError

from betakd_cache import CacheError
from betakd_pipe import __version__
from betakd_pipe.config import flatten, read_layer
from betakd_stages.errors import ConfigError, UserError
from betakd_stages.files import write_atomically

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
LOG = "log.txt"
CARD = "README.md"
MODEL = "model"

_PACKAGES = ("torch", "transformers", "accelerate", "numpy", "pyarrow", "zarr", "safetensors", "pillow", "scikit-learn")
_ABSENT = "nothing"
_TEMPORARY = ".tmp-"

logger = logging.getLogger(__name__)


@contextmanager
def run_folder(folder: Path, settings: BaseModel) -> Iterator[Path]:
    """The folder of a run with exactly these settings, made if need be, with its log open and locked to this process.

    A run that stops on a user's error before its stage wrote anything leaves no folder behind.
    Raises ConfigError where the folder holds other settings or is no run folder, or another process is writing there.
    """
    check_configuration(folder, settings)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with _locked_log(folder):
        check_configuration(
            folder, settings
        )  # again: another process may have used the folder before the lock was ours
        fresh = not (folder / CONFIG).exists()
        if fresh:
            write_atomically(folder / CONFIG, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
            write_atomically(folder / ENVIRONMENT, json.dumps(describe_environment(), indent=2) + "\n")
        logger.info("%s by betakd-pipe %s", "started" if fresh else "continued", __version__)
        try:
            yield folder
        except (UserError, CacheError) as error:
            logger.info("stopped: %s", error)
            if fresh:
                _remove_unused(folder, made)
            raise
        except BaseException as error:
            logger.info("stopped by %s", type(error).__name__, exc_info=isinstance(error, Exception))
            raise


def check_configuration(folder: Path, settings: BaseModel) -> None:
    """Raise ConfigError unless `folder` is absent, empty, or the folder of a run with exactly these settings.

    Settings that came into being after the folder was begun count as their defaults there.
    """
    if folder.is_file():
        raise ConfigError(f"{folder}: is a file; expected a folder for the run: choose another --out")
    if not (folder / CONFIG).is_file():
        if not folder.is_dir() or not _entries_of_stage(folder):
            return
        raise ConfigError(f"{folder}: holds files but no {CONFIG}, so it is no run folder: choose another --out")
    before = flatten(_with_defaults(read_layer(folder / CONFIG).values, type(settings)))
    now = flatten(settings.model_dump(mode="json"))
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key, _ABSENT), now.get(key, _ABSENT)
        if not _same(old, new):
            raise ConfigError(
                f"{folder}: was started with {key} = {_show(old)}, now it is {_show(new)}: "
                "choose another --out, or delete that folder to start again"
            )


def describe_environment() -> dict[str, Any]:
    """Versions, platform and threads; read from package metadata, so that torch need not be imported."""
    return {
        "betakd_pipe": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "num_cores": os.cpu_count(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def read_environment(folder: Path) -> Mapping[str, Any]:
    """What `describe_environment` gave when the run was started."""
    environment: Mapping[str, Any] = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
    return environment


@contextmanager
def _locked_log(folder: Path) -> Iterator[TextIO]:
    """The log, receiving every record at INFO and above; its lock is the run's lock and ends with the process."""
    with (folder / LOG).open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{folder}: another process is writing this run: wait for it, or end it") from None
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root = logging.getLogger()
        level = root.level
        root.addHandler(handler)
        root.setLevel(min(level, logging.INFO) if level else logging.INFO)
        try:
            yield file
        finally:
            root.setLevel(level)
            root.removeHandler(handler)


def _entries_of_stage(folder: Path) -> set[str]:
    """Everything in a run folder that this module did not put there."""
    names = {entry.name for entry in folder.iterdir()} - {CONFIG, ENVIRONMENT, LOG}
    return {name for name in names if not name.startswith(_TEMPORARY)}


def _remove_unused(folder: Path, made: list[Path]) -> None:
    """Take a new run folder, and the folders `made` for it, away again if the stage wrote nothing into it."""
    if _entries_of_stage(folder):
        return
    for name in (CONFIG, ENVIRONMENT, LOG):
        (folder / name).unlink(missing_ok=True)
    for path in made:
        if not any(path.iterdir()):
            path.rmdir()


def _same(old: Any, new: Any) -> bool:
    """Whether two values of a setting are equal, or name one existing file or folder in two ways."""
    if isinstance(old, str) and isinstance(new, str) and os.path.exists(old) and os.path.exists(new):
        return os.path.samefile(old, new)
    return type(old) is type(new) and bool(old == new)


def _with_defaults(stored: Mapping[str, Any], model: type[BaseModel]) -> Mapping[str, Any]:
    """The stored settings with the defaults of those they lack; as they are where they are no settings any more."""
    try:
        return model.model_validate(stored).model_dump(mode="json")
    except ValidationError:
        return stored


def _show(value: Any) -> str:
    return value if value is _ABSENT else repr(value)
