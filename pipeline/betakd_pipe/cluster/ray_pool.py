"""Tasks on a Ray cluster, as an executor like those of `concurrent.futures`; the only module that imports ray.

Ray chooses where and when a task runs, gives it its GPUs, and runs it again where its worker or node was lost. Tasks
must therefore be such that a second run goes on where the first one ended, as stage one and runs do. Each has a process
of its own. All nodes share the folder of the command and the folder of the results.
"""

import importlib.util
import os
import platform
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from betakd_stages.errors import ConfigError, UserError
from betakd_stages.settings import RaySettings

if TYPE_CHECKING:
    import ray

CONNECTING_S = 10.0
STOPPING_S = 60.0
"""What the tasks of a command that is interrupted may take for their last shard or checkpoint."""
WATCHING_EVERY_S = 5.0
REPORTING_EVERY_S = 1.0
"""How often tasks say how far they are."""


class ClusterError(UserError):
    """The cluster cannot do what is asked, or lost a task too often."""


@contextmanager
def ray_pool(address: str, settings: RaySettings, *, shared: Path | None, default_gpus: int = 1) -> Iterator["RayPool"]:
    """An executor of tasks on the cluster at `address`: `auto`, `local` or HOST:PORT, as Ray understands them.

    Each task has the resources that `settings` name (`default_gpus` where they leave that open and the cluster has
    any), runs in the folder of the caller, and has made sure that it sees `shared`, the folder of the results. Left by
    an exception the tasks are interrupted, as by Ctrl-C, and have a minute to end. Raises ConfigError where ray, the
    cluster, or a node for such a task is missing.
    """
    _connect(address)
    import ray

    try:
        with tempfile.NamedTemporaryFile(dir=_existing(shared), prefix=".betakd-pipe-") as marker:
            pool = RayPool(
                _resources(address, settings, default_gpus),
                settings.max_retries,
                Path.cwd(),
                shared and Path(marker.name),
            )
            try:
                yield pool
            finally:
                pool.shutdown(cancel_futures=True)
    finally:
        ray.shutdown()


def _existing(folder: Path | None) -> Path | None:
    """The folder, or the nearest one above it that exists."""
    return None if folder is None else next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


def _connect(address: str) -> None:
    """Make this process a driver of the cluster. Raises ConfigError."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(f"--ray {address}: Ray is not installed: pip install 'betakd-pipe[ray]'")
    if address not in ("auto", "local"):
        _check_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster started here: nothing is reported anywhere
    import ray

    started_here = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, logging_level="error", **started_here)
    except ConnectionError as error:
        raise ConfigError(
            f"--ray {address}: no cluster answers ({_one_line(error)}): start one with `ray start --head`, or give "
            "--ray local for one on this machine"
        ) from None


def _check_reachable(address: str) -> None:
    """Raises ConfigError; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in address or not port.isdecimal():
        raise ConfigError(
            f"--ray {address}: expected auto, local, or HOST:PORT of the cluster's head, port 6379 as a rule"
        )
    try:
        socket.create_connection((host, int(port)), CONNECTING_S).close()
    except OSError as error:
        raise ConfigError(
            f"--ray {address}: nobody answers there ({error}): check the address that `ray start --head` printed"
        ) from None


def _resources(address: str, settings: RaySettings, default_gpus: int) -> Mapping[str, float]:
    """What a task asks for, in Ray's words. Raises ConfigError where no node has so much: Ray would wait for ever."""
    nodes = _nodes()
    num_gpus = settings.num_gpus
    if num_gpus is None:
        num_gpus = default_gpus if any(node.get("GPU", 0) for node in nodes) else 0
    asked = {"num_cpus": settings.num_cpus, "num_gpus": num_gpus}
    if not _fits(asked, nodes):
        kinds = sorted({f"{node.get('GPU', 0):g} and {node.get('CPU', 0):g}" for node in nodes})
        raise ConfigError(
            f"a task asks for {num_gpus:g} GPUs and {settings.num_cpus:g} CPUs, and no node of the cluster {address} "
            f"has both (nodes have {', '.join(kinds)}): lower ray.num_gpus or ray.num_cpus, or start a larger node"
        )
    return asked


def _nodes() -> list[Mapping[str, float]]:
    """What each node that is alive has, whether or not it is in use."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _fits(asked: Mapping[str, float], nodes: list[Mapping[str, float]]) -> bool:
    return any(node.get("CPU", 0) >= asked["num_cpus"] and node.get("GPU", 0) >= asked["num_gpus"] for node in nodes)


class RayPool(Executor):
    """The executor; made by `ray_pool`."""

    def __init__(self, asked: Mapping[str, float], max_retries: int, folder: Path, marker: Path | None) -> None:
        import ray

        self._asked, self._max_retries = asked, max_retries
        self._place = (folder, marker)
        self._task = ray.remote(**asked, max_retries=max_retries, max_calls=1)(_in_place)
        self._pending: dict[ray.ObjectRef[Any], Future[Any]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """The future of one task. Its exception is the task's own, or ClusterError where Ray gave it up."""
        name = function.__name__
        reference = self._task.options(name=name).remote(*self._place, function, arguments, named)
        future: Future[Any] = Future()
        with self._lock:
            self._pending[reference] = future
        reference.future().add_done_callback(lambda done: self._hand_over(done, reference))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End; tasks that are not done are interrupted if `cancel_futures`, else waited for."""
        import ray

        with self._lock:
            pending = list(self._pending)
        if cancel_futures:
            for reference in pending:
                ray.cancel(reference, force=False)
        if wait and pending:
            ray.wait(pending, num_returns=len(pending), timeout=STOPPING_S if cancel_futures else None)
        self._ended.set()
        self._watcher.join()

    def board(self) -> "Board":
        """A board on this machine, where tasks write how far they are."""
        return Board()

    def _hand_over(self, done: Future[Any], reference: "ray.ObjectRef[Any]") -> None:
        from ray.exceptions import RayTaskError

        with self._lock:
            future = self._pending.pop(reference, None)
        if future is None:  # given up by the watcher
            return
        error = done.exception()
        if error is None:
            future.set_result(done.result())
        elif isinstance(error, RayTaskError):
            future.set_exception(error.cause)
        else:
            future.set_exception(
                ClusterError(
                    f"its worker or node was lost {self._max_retries + 1} times, perhaps for want of memory: the same "
                    f"command again goes on ({_one_line(error)})"
                )
            )

    def _watch(self) -> None:
        """Give up what is pending when two looks in a row find no node left that could ever run it."""
        num_misses = 0
        while not self._ended.wait(WATCHING_EVERY_S):
            num_misses = 0 if _fits(self._asked, _nodes()) else num_misses + 1
            if num_misses < 2:
                continue
            with self._lock:
                lost, self._pending = list(self._pending.values()), {}
            for future in lost:
                future.set_exception(
                    ClusterError(
                        f"no node is left with {self._asked['num_gpus']:g} GPUs and {self._asked['num_cpus']:g} CPUs: "
                        "start one, and the same command again goes on"
                    )
                )


class Board:
    """What tasks report, by key: the last value of each. It may be sent to tasks."""

    def __init__(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._actor = ray.remote(num_cpus=0)(_Values).options(scheduling_strategy=here).remote()

    def report(self, key: str, value: Any) -> None:
        """Tell; nobody waits."""
        self._actor.report.remote(key, value)

    def values(self) -> dict[str, Any]:
        """What was told last, by key."""
        import ray

        values: dict[str, Any] = ray.get(self._actor.values.remote())
        return values


class Reporter:
    """A task's way to write one value on a board, now and then."""

    def __init__(self, board: Board, key: str) -> None:
        self._board, self._key, self._reported_s = board, key, 0.0

    def report(self, value: Any, *, now: bool = False) -> None:
        """Write the value, if `now` or if the last one is old enough."""
        if now or time.monotonic() - self._reported_s >= REPORTING_EVERY_S:
            self._reported_s = time.monotonic()
            self._board.report(self._key, value)


class _Values:
    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def report(self, key: str, value: Any) -> None:
        self._values[key] = value

    def values(self) -> dict[str, Any]:
        return self._values


def _in_place(
    folder: Path,
    marker: Path | None,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    named: Mapping[str, Any],
) -> Any:
    """What a task does: the function, in the caller's folder."""
    for needed in (folder, marker):
        if needed is not None and not needed.exists():
            shared = needed if needed is folder else needed.parent
            raise ClusterError(
                f"node {platform.node()} does not see {shared} of the machine that asks: the folder of the command and "
                "that of the results must be shared by all nodes, at the same path"
            )
    os.chdir(folder)
    return function(*arguments, **named)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
