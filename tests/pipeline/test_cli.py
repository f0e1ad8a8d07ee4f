"""The command: what it prints, on which stream, and its exit codes."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from betakd_cache import CacheError
from betakd_pipe import __version__
from betakd_pipe.cli import fault, main
from betakd_stages.errors import ConfigError

COMMANDS = ["build-model", "cache-teacher", "distill", "evaluate", "score", "ablate", "demo"]


def fails(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """The message of a call that must end with `code`, without its prefix."""
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("betakd-pipe: ")
    assert "Traceback" not in captured.err
    return captured.err.removeprefix("betakd-pipe: ").removesuffix("\n")


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"betakd-pipe {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    page = capsys.readouterr().out
    assert "Examples" in page
    assert page.count(f"betakd-pipe {command}") >= 2
    assert "--debug" in page


def test_help_imports_neither_torch_nor_anything_else_slow() -> None:
    script = (
        "import sys\nfrom betakd_pipe.cli import main\nassert main(['distill', '--help']) == 0\n"
        "found = {'torch', 'transformers', 'numpy', 'zarr', 'pyarrow'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_help_of_the_installed_command_is_quick() -> None:
    """In processor time, which other processes on the machine lengthen far less than they do the wait."""
    command = Path(sys.executable).with_name("betakd-pipe")
    spent_s = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([str(command), "--help"], capture_output=True, text=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.returncode == 0
        assert "cache-teacher" in done.stdout
    assert min(spent_s) < 0.5


def test_the_installed_command_exits_with_2_and_one_line() -> None:
    command = Path(sys.executable).with_name("betakd-pipe")
    done = subprocess.run([str(command), "distill", "--out", "x"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[0].startswith("betakd-pipe: student is missing; expected folder of the student")
    assert not Path("x").exists()


def test_an_unknown_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(capsys, "distil").startswith("No such command 'distil'. Did you mean 'distill'?")


def test_an_unknown_key_of_set_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = ["--student", "s", "--cache", "c", "--data", "digits:transfer", "--out", str(tmp_path / "run")]
    message = fails(capsys, "distill", *flags, "--set", "trainng.steps=3")
    assert message == "--set trainng.steps=3: unknown key trainng; did you mean training?"
    assert not (tmp_path / "run").exists()


def test_an_unknown_key_of_the_file_names_the_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text("student: s\ndata: d\ncache: c\nsed: 3\n", encoding="utf-8")
    message = fails(capsys, "distill", "--config", str(config), "--out", str(tmp_path / "run"))
    assert message == f"{config}, line 4: unknown key sed; did you mean seed?"


def test_ce_beside_another_energy_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "distill", "--out", "x", "--energy", "ce", "--energy", "fkl")
    assert message == "--energy ce means the labels alone; found ce, fkl: leave out ce"


def test_temperatures_that_are_no_numbers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "cache-teacher", "--out", "x", "--temperatures", "1,warm")
    assert message == "--temperatures 1,warm: expected numbers separated by commas, such as 1,2"


def test_a_run_of_other_settings_is_refused_before_torch_is_imported(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text("student: other\n", encoding="utf-8")
    flags = ["--student", "s", "--cache", "c", "--data", "digits:transfer", "--out", str(tmp_path)]
    message = fails(capsys, "distill", *flags)
    assert message.startswith(f"{tmp_path}: was started with student = 'other', now it is 's': choose another --out")


def test_a_finished_run_says_so_and_does_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from betakd_pipe.run_folder import run_folder
    from betakd_stages.settings import DistillSettings

    out = tmp_path / "run"
    with run_folder(out, DistillSettings(student="s", cache="c", data="d", seed=4)):
        (out / "model").mkdir()
        (out / "README.md").touch()
    before = sorted((path.name, path.stat().st_mtime_ns) for path in out.iterdir())
    assert main(["distill", "--student", "s", "--cache", "c", "--data", "d", "--seed", "4", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: already finished; nothing to do\n"
    assert sorted((path.name, path.stat().st_mtime_ns) for path in out.iterdir()) == before


def test_a_missing_spec_of_an_ablation_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "absent.yaml"
    message = fails(capsys, "ablate", str(path), "--out", str(tmp_path / "out"))
    assert message.startswith(f"{path}: no such file, and no ablation that comes with the package; built in are paper-")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("found a, expected b: do c"), 2, "found a, expected b: do c"),
        (CacheError("shard 3 is damaged; write it again"), 2, "shard 3 is damaged; write it again"),
        (FileNotFoundError(2, "No such file", "x.json"), 2, "x.json: No such file; check the path"),
        (
            ZeroDivisionError("division\nby zero"),
            1,
            "bug or broken installation: ZeroDivisionError: division by zero; "
            "--debug shows the traceback, log.txt of a run folder holds it too",
        ),
    ],
)
def test_an_error_is_the_users_or_a_bug(error: Exception, code: int, message: str) -> None:
    assert fault(error, debug=False) == (code, message)


def test_debug_shows_the_traceback_before_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", "--out", "x", "--debug"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1].startswith("betakd-pipe: ")
