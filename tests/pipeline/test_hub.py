"""Pushing an export to the Hub: what is asked of it, and what is refused."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import huggingface_hub
import pytest
from huggingface_hub import HfApi, RepoUrl

from betakd_pipe import hub
from betakd_pipe.cli import main
from betakd_stages.models.tiny import STUDENT_SIZE, save_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "student", STUDENT_SIZE, seed=0)


def pushed(model: Path, out: Path, *more: str, repository: str = "me/tiny") -> int:
    """The exit code."""
    return main(["export", str(model), "--out", str(out), "--push-to", repository, *more])


def refused(capsys: pytest.CaptureFixture[str], model: Path, out: Path, *more: str, repository: str = "me/tiny") -> str:
    """The one line of a push that must have ended with 2."""
    capsys.readouterr()
    assert pushed(model, out, *more, repository=repository) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1, errors
    return errors.removeprefix("betakd-pipe: ").rstrip("\n")


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The Hub's client at its boundary: calls that it would not take fail here too."""
    monkeypatch.setattr(hub, "get_token", lambda: "a token")
    made = create_autospec(HfApi, instance=True)
    made.create_repo.side_effect = lambda name, **_: RepoUrl(f"https://huggingface.co/{name}")
    made.repo_info.return_value.private = True
    monkeypatch.setattr(hub, "HfApi", lambda: made)
    return made


def test_an_export_is_pushed_to_the_repository(
    model: Path, tmp_path: Path, api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pushed(model, tmp_path / "a") == 0
    assert capsys.readouterr().out.endswith(f"{tmp_path / 'a'}: pushed to https://huggingface.co/me/tiny\n")
    api.create_repo.assert_called_once_with("me/tiny", private=None, exist_ok=True)
    (call,) = api.upload_folder.call_args_list
    assert (call.kwargs["repo_id"], call.kwargs["folder_path"]) == ("me/tiny", tmp_path / "a")
    assert pushed(model, tmp_path / "b", "--private") == 0
    assert api.create_repo.call_args.kwargs["private"] is True
    assert api.upload_folder.call_count == 2


def test_what_should_be_private_is_not_uploaded_to_a_public_repository(
    model: Path, tmp_path: Path, api: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    api.repo_info.return_value.private = False
    message = refused(capsys, model, tmp_path / "out", "--private")
    assert message == "me/tiny is there already and public: make it private, or leave --private out"
    api.upload_folder.assert_not_called()


def test_without_a_token_nothing_is_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "get_token", lambda: None)
    assert refused(capsys, model, tmp_path / "out") == (
        "--push-to me/tiny: found no token of the Hugging Face Hub: log in (hf auth login), or set HF_TOKEN"
    )
    for name in ("tiny", "me/ti ny", "a/b/c"):
        message = refused(capsys, model, tmp_path / "out", repository=name)
        assert message.startswith(f"--push-to {name}: expected owner and name, such as me/my-student")
    assert list(tmp_path.iterdir()) == []


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with HF_HUB_OFFLINE=1, which is read when the package is imported."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens where the Hub should be."""
    monkeypatch.setattr(hub, "HfApi", lambda: HfApi(endpoint="http://127.0.0.1:9", token="a token"))


@pytest.mark.parametrize("trouble", [offline, no_server])
def test_a_hub_that_cannot_be_reached_is_one_line_and_the_export_stays(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trouble: Callable[[pytest.MonkeyPatch], None],
) -> None:
    monkeypatch.setattr(hub, "get_token", lambda: "a token")
    trouble(monkeypatch)
    message = refused(capsys, model, tmp_path / "out")
    assert re.fullmatch(
        rf"{tmp_path / 'out'} is written, but not pushed to me/tiny \(.+\): see to that, then give the same command "
        "with --overwrite",
        message,
    )
    assert (tmp_path / "out" / "model.safetensors").is_file()
