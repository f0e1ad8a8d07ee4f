"""The command `betakd-pipe`. Whatever is slow to import is imported inside the commands, so that --help is instant."""

import logging
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from betakd_pipe import __version__
from betakd_pipe.cli_ablation import ablation_commands
from betakd_pipe.cli_cache import cache_app
from betakd_pipe.cli_evaluation import evaluation_commands
from betakd_pipe.cli_experiments import experiment_commands
from betakd_pipe.cli_export import export_commands
from betakd_pipe.cli_inspect import inspect_commands
from betakd_pipe.cli_options import EXIT_FAILED, examples
from betakd_pipe.cli_report import report_commands
from betakd_pipe.cli_stages import stage_commands
from betakd_pipe.cli_trust import trust_commands
from betakd_pipe.cli_vision import vision_commands

EXIT_USER_ERROR, EXIT_INTERRUPTED = 2, 130

app = typer.Typer(
    name="betakd-pipe",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(stage_commands)
app.add_typer(vision_commands)
app.add_typer(ablation_commands)
app.add_typer(evaluation_commands)
app.add_typer(experiment_commands)
app.add_typer(report_commands)
app.add_typer(export_commands)
app.add_typer(inspect_commands)
cache_app.add_typer(trust_commands)
app.add_typer(cache_app, name="cache")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code of one call: 0, 1 (failed), 2 (something the user can mend), 130 (Ctrl-C) or 143 (SIGTERM).

    Every error is printed as `betakd-pipe: ...` on stderr, without a traceback unless --debug is given.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    _show_warnings()
    try:
        code = app(given, prog_name="betakd-pipe", standalone_mode=False) or 0
    except Exception as error:  # the outermost edge of the program: every error ends as one line and an exit code
        if debug:
            traceback.print_exc()
        code, message = fault(error, debug)
        for line in message.splitlines():
            print(f"betakd-pipe: {line}", file=sys.stderr)
    else:
        if code == EXIT_INTERRUPTED:
            print("betakd-pipe: interrupted; the same command again goes on from the last checkpoint", file=sys.stderr)
    return int(code)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"betakd-pipe {__version__}")
        raise typer.Exit


@app.callback(epilog=examples("betakd-pipe demo --quick", "betakd-pipe distill --help"))
def betakd_pipe(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Run a vision-language teacher once, then distil as many students as you like from its cache (Beta-KD)."""


def fault(error: Exception, debug: bool) -> tuple[int, str]:
    """Exit code and message of an error: the user's to mend, or a bug."""
    from betakd_cache import CacheError
    from betakd_stages.errors import Interrupted, UserError

    if isinstance(error, Interrupted):
        return error.exit_code, str(error)
    if isinstance(error, typer.TyperException):
        return EXIT_USER_ERROR, f"{error.format_message()} (betakd-pipe COMMAND --help shows the options)"
    if isinstance(error, UserError | CacheError):
        return EXIT_USER_ERROR, str(error)
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        return EXIT_USER_ERROR, f"{error.filename}: {error.strerror}; check the path"
    hint = "" if debug else "; --debug shows the traceback, log.txt of a run folder holds it too"
    message = " ".join(str(error).split())
    return EXIT_FAILED, f"bug or broken installation: {type(error).__name__}: {message}{hint}"


class _WarningLines(logging.Handler):
    """One line on stderr per warning."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"betakd-pipe: {record.levelname.lower()}: {record.getMessage()}", file=sys.stderr)


def _show_warnings() -> None:
    root = logging.getLogger()
    if not any(isinstance(handler, _WarningLines) for handler in root.handlers):
        root.addHandler(_WarningLines(logging.WARNING))
