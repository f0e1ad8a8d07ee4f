"""Pushing a folder to the Hugging Face Hub, with the token that huggingface_hub finds."""

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from betakd_stages.errors import UserError

STALE = ("*.safetensors", "*.safetensors.index.json")
"""What an earlier push may have left that this one does not replace by name."""
PUSH_ERRORS = (HTTPError, OSError)
"""HTTPError is that of the HTTP client, which is another one in other versions of huggingface_hub."""


class HubError(UserError):
    """The Hub cannot be reached, or refuses."""


def require_login(repository: str) -> None:
    """Nothing; raises HubError for a name that no repository can have, and where there is no token."""
    expected = f"--push-to {repository}: expected owner and name, such as me/my-student"
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise HubError(f"{expected} ({_first_line(error)})") from None
    if "/" not in repository:
        raise HubError(expected)
    if get_token() is None:
        raise HubError(
            f"--push-to {repository}: found no token of the Hugging Face Hub: log in (hf auth login), or set HF_TOKEN"
        )


def push(folder: Path, repository: str, *, private: bool) -> str:
    """The address of the repository, made if need be, that now holds the content of `folder`.

    Raises HubError where the Hub cannot be reached or refuses, and, before anything is uploaded, where a repository
    that should be private is there already and public.
    """
    api = HfApi()
    try:
        made = api.create_repo(repository, private=True if private else None, exist_ok=True)
        if private and not api.repo_info(made.repo_id).private:
            raise HubError(f"{repository} is there already and public: make it private, or leave --private out")
        api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            delete_patterns=list(STALE),
            commit_message="Export by betakd-pipe",
        )
    except PUSH_ERRORS as error:
        raise HubError(
            f"{folder} is written, but not pushed to {repository} ({_first_line(error)}): see to that, then give the "
            "same command with --overwrite"
        ) from None
    return str(made)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
