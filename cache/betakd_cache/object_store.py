"""What this package needs of an object store; every failure is a CacheError that names the URL and says what to do.

A store is found anew on every call: fsspec keeps one per process, and one from before a fork does not work after it.
"""

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from betakd_cache import files
from betakd_cache.errors import CacheError

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}
"""What can be read, and the package that reads it."""
WRITABLE_SCHEME = "s3"  # the one whose conditional writes are tested here
NUM_TRANSFERS = 16  # at a time; they wait and do not compute
CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile in AWS_PROFILE, that may use it",
    "gs": "log in with `gcloud auth application-default login` as somebody who may use it",
    "hf": "log in with `hf auth login` as somebody who may use it",
}
REMEDY = "check the network and the endpoint and run the same command again, what was committed is kept"


def is_url(location: Path | str) -> TypeGuard[str]:
    """Whether a cache is in an object store and not in a folder."""
    return isinstance(location, str) and "://" in location


@dataclass(frozen=True, slots=True)
class ObjectStore:
    """The objects whose names begin with one URL, such as s3://bucket/prefix; names are relative to it."""

    url: str

    def __post_init__(self) -> None:
        """Raises CacheError where nothing here can read such an URL."""
        scheme, _, rest = self.url.partition("://")
        if scheme not in PACKAGES or not rest.strip("/"):
            known = ", ".join(f"{name}://" for name in PACKAGES)
            raise CacheError(f"{self.url} cannot be read; give a folder, or an URL with a bucket under {known}")
        object.__setattr__(self, "url", f"{scheme}://{rest.strip('/')}")

    @property
    def scheme(self) -> str:
        """The part of the URL that says which kind of store this is."""
        return self.url.partition("://")[0]

    def check_writable(self) -> None:
        """Nothing; raises CacheError unless caches can be written to this kind of store."""
        if self.scheme != WRITABLE_SCHEME:
            raise CacheError(
                f"{self.url} can be read but not written; write to a folder or to {WRITABLE_SCHEME}://, then copy it"
            )

    def find(self, name: str) -> bytes | None:
        """The content of an object, or None where there is none; raises CacheError where the bucket is missing."""
        with self._naming(name) as (system, path):
            try:
                content: bytes = system.cat_file(path)
            except FileNotFoundError as error:
                if _code(error) == "NoSuchBucket":
                    raise
                return None
        return content

    def read(self, name: str) -> bytes:
        """The content of an object; raises CacheError where there is none."""
        content = self.find(name)
        if content is None:
            raise CacheError(f"{self.url}/{name} is missing; restore it from a copy or write the cache again")
        return content

    def read_all(self, names: Sequence[str]) -> list[bytes]:
        """The contents of objects, several at a time."""
        with ThreadPoolExecutor(NUM_TRANSFERS) as threads:
            return list(threads.map(self.read, names))

    def sizes(self, under: str = "") -> dict[str, int]:
        """The sizes in bytes of all objects below `under`, by name."""
        with self._naming(under) as (system, path):
            found: dict[str, dict[str, Any]] = system.find(path, detail=True)
            root = system._strip_protocol(self.url)
        return {name.removeprefix(root).strip("/"): item["size"] for name, item in found.items()}

    def sha256(self, name: str) -> str:
        """The sha256 of an object."""
        return hashlib.sha256(self.read(name)).hexdigest()

    def create(self, name: str, content: bytes) -> bool:
        """True if the object was created with this content, False if there was another one before."""
        with self._naming(name) as (system, path):
            try:
                system.pipe_file(path, content, mode="create")  # If-None-Match: *
            except FileExistsError:
                # Ours, if the store had answered a first attempt and the answer was lost on its way.
                return self.find(name) == content
        return True

    def write(self, name: str, content: bytes) -> None:
        """Create or replace an object in one step."""
        with self._naming(name) as (system, path):
            system.pipe_file(path, content)

    def upload(self, folder: Path, names: Sequence[str]) -> None:
        """Write files of a folder under the same names, several at a time."""
        self._each(lambda name: self.write(name, (folder / name).read_bytes()), names)

    def download(self, names: Sequence[str], folder: Path, check: Callable[[str, bytes], None]) -> None:
        """Write objects to files of a folder, several at a time, each after `check` has seen its content."""

        def fetch(name: str) -> None:
            content = self.read(name)
            check(name, content)
            files.make_directory((folder / name).parent)
            files.write(folder / name, content)

        self._each(fetch, names)

    def remove(self, names: Sequence[str]) -> None:
        """Delete objects."""
        if names:
            with self._naming("") as (system, path):
                system.rm([f"{path}/{name}" for name in names])

    def _each(self, transfer: Callable[[str], None], names: Sequence[str]) -> None:
        with ThreadPoolExecutor(NUM_TRANSFERS) as threads:
            list(threads.map(transfer, names))

    @contextlib.contextmanager
    def _naming(self, name: str) -> Iterator[tuple[Any, str]]:
        """The file system and the path of an object; turns its errors into CacheErrors that name it."""
        from fsspec.core import url_to_fs

        shown = f"{self.url}/{name}".rstrip("/")
        try:
            yield url_to_fs(shown, use_listings_cache=False)
        except ImportError as error:
            package = PACKAGES[self.scheme]
            raise CacheError(f"{shown} needs the package {package}; run `pip install {package}`") from error
        except FileNotFoundError as error:
            raise CacheError(f"{shown}: the bucket does not exist; create it or give another URL") from error
        except PermissionError as error:
            raise CacheError(f"{shown}: access is refused ({_line(error)}); {CREDENTIALS[self.scheme]}") from error
        except _failures() as error:
            remedy = CREDENTIALS[self.scheme] if "credential" in str(error).lower() else REMEDY
            raise CacheError(f"{shown} cannot be reached ({_line(error)}); {remedy}") from error


def _failures() -> tuple[type[Exception], ...]:
    """What the clients in use raise beside OSError, without importing those that are not in use."""
    roots = {"botocore.exceptions": "BotoCoreError", "aiohttp": "ClientError", "httpx": "HTTPError"}
    loaded = [getattr(sys.modules[module], name) for module, name in roots.items() if module in sys.modules]
    return (OSError, *loaded)


def _code(error: Exception) -> str:
    """What S3 calls an error that s3fs has turned into an OSError."""
    response: dict[str, Any] = getattr(error.__cause__, "response", {})
    return str(response.get("Error", {}).get("Code", ""))


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
