"""Parallel execution: threads of this process, and tasks on a Ray cluster.

`map_threads` runs a function in a thread pool. `use_backend` selects where long work (folds, trials, features) runs: in
this process, or as tasks on a Ray cluster (`RayBackend`).

The inputs and outputs of a task are small. Large data is in the cache and in run folders, which every machine of the
cluster has to reach under the same path, like the images. If a worker dies, its task is retried on another one and
continues from the cache or from a checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from unfreeze.core.cache import cache_root
from unfreeze.core.errors import EngineError, MissingExtraError, RecipeError, UnfreezeError, one_line
from unfreeze.core.messages import command_line, from_command_line, wording
from unfreeze.core.processes import safe_python, variables
from unfreeze.core.remote_cache import SHARED
from unfreeze.core.telemetry import SWITCHES

T = TypeVar("T")
R = TypeVar("R")


def cores() -> int:
    """Number of CPU cores that this process may use, respecting the CPU affinity set by containers and job queues."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def map_threads(
    function: Callable[[T], R], tasks: Iterable[T], workers: int | None = None, ahead: int = 64
) -> Iterator[R]:
    """Apply a function to tasks in a thread pool and yield the results in order.

    Threads suffice because the work (decoding, reading, inference) releases the GIL. The limit on pending tasks keeps
    memory independent of the number of tasks.

    Args:
        function: Function of one task.
        tasks: Tasks, consumed lazily.
        workers: Number of threads; the number of cores by default.
        ahead: Maximum number of tasks submitted ahead of the consumer.

    Yields:
        The result of each task. An exception of a task is raised in its place.
    """
    with ThreadPoolExecutor(workers or cores()) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(function, task))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class Budget:
    """Limit on a resource that threads share, for example bytes of memory.

    A request that would exceed the limit waits. A request larger than the limit is granted once nothing else is held.

    Args:
        units: Number of units available.
    """

    def __init__(self, units: int) -> None:
        self.units = units
        self._held, self._change = 0, threading.Condition()

    @contextlib.contextmanager
    def held(self, units: int) -> Iterator[None]:
        """Hold `units` while the block runs, after waiting until they are available."""
        with self._change:
            self._change.wait_for(lambda: not self._held or self._held + units <= self.units)
            self._held += units
        try:
            yield
        finally:
            with self._change:
                self._held -= units
                self._change.notify_all()


_RETRIES = 3
# Seconds between two calls of `look`.
_EVERY = 0.5
_ROOM = 24  # maximum length in bytes of a temporary folder's path
_LOCAL, _RAY = "local", "ray"


@dataclass(frozen=True)
class RayBackend:
    """A Ray cluster that this process has joined.

    Attributes:
        cpus: Number of CPU cores when it was joined.
        gpus: Number of GPUs when it was joined.
    """

    cpus: int
    gpus: int

    def run(
        self,
        function: Callable[[T], R],
        tasks: Sequence[T],
        cpus: int = 1,
        look: Callable[[], None] | None = None,
    ) -> list[R]:
        """Run tasks on the cluster. Each gets `cpus` cores, and one GPU if the cluster has any.

        Args:
            function: Module-level function of one task; workers import it by name.
            tasks: Tasks, which have to be picklable.
            cpus: Number of cores per task.
            look: Called about twice a second while tasks run, for example to report progress.

        Returns:
            The results in the order of the tasks.

        Raises:
            UnfreezeError: A task raised it; the other tasks are canceled.
            EngineError: A task raised another exception, or its worker died on every attempt.
        """
        import ray

        remote: Any = ray.remote(_run_task).options(
            num_cpus=cpus, num_gpus=1 if self.gpus else 0, max_retries=_RETRIES, retry_exceptions=False
        )
        waiting = [remote.remote(function, task, from_command_line()) for task in tasks]
        left = waiting
        try:
            while left:
                ended, left = ray.wait(left, timeout=_EVERY)
                if look:
                    look()
                for one in ended:
                    ray.get(one)  # raises the error of a task as soon as it has ended
            return list(ray.get(waiting))
        except BaseException as error:
            for one in left:  # only unfinished tasks: canceling an ended one can abort the process (Ray 2.60)
                with contextlib.suppress(Exception):
                    ray.cancel(one, force=True)
            if isinstance(error, ray.exceptions.RayTaskError):
                if isinstance(error.cause, UnfreezeError):
                    raise error.cause from None
                raise EngineError(f"a task on the cluster failed ({one_line(error.cause)}).") from None
            if isinstance(error, ray.exceptions.RayError):
                said = f"the cluster lost a task {_RETRIES + 1} times ({one_line(error)})"
            else:
                raise
            raise EngineError(f"{said}; run the same command to go on.") from None


def _run_task(function: Callable[[T], R], task: T, named_options: bool) -> R:
    """Run a task in a worker process, with messages worded as in the calling process."""
    with command_line(named_options):
        return function(task)


_joined: list[RayBackend] = []


def cluster() -> RayBackend | None:
    """Active Ray cluster, or None if work runs locally."""
    return _joined[-1] if _joined else None


def validate_backend(name: str) -> None:
    """Check the name of a backend.

    Raises:
        RecipeError: The name is unknown.
        MissingExtraError: Ray is not installed.
    """
    if name == _LOCAL:
        return
    if name != _RAY and not name.startswith("ray://"):
        raise RecipeError(
            f"{wording(f'--backend {name}', f'engine({name!r})')}: known are local, ray and ray://HOST:PORT."
        )
    if find_spec("ray") is None:
        raise MissingExtraError(
            f"{wording(f'--backend {name}', f'engine({name!r})')} needs ray: pip install 'unfreeze[ray]'."
        )


@contextlib.contextmanager
def use_backend(name: str = _LOCAL) -> Iterator[None]:
    """Compute folds, trials and features on a backend while the block runs.

    Images, cache and run folders must have the same paths on all machines. Results are those of `local`.

    Args:
        name: `local`: this process and its own child processes. `ray`: the cluster at `$RAY_ADDRESS`, or else a cluster
            of this machine's cores that is started for the block. `ray://HOST:PORT`: that cluster.

    Raises:
        RecipeError: The name is unknown.
        MissingExtraError: Ray is not installed.
        EngineError: The cluster cannot be reached.
    """
    validate_backend(name)
    if name == _LOCAL:
        yield
        return
    address = None if name == _RAY else name
    joins = address or os.environ.get("RAY_ADDRESS")
    if not joins:
        # A local cluster does not contact another host to find its address. Ray reads the variable on import.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        _ask_for_a_token()
    import ray

    own, private = not ray.is_initialized(), None
    if own:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        private = None if joins else _private_folder()
        # A local cluster listens on the loopback interface only, and its folders are private to this user.
        started: dict[str, Any] = (
            {"num_cpus": cores(), "include_dashboard": False, "_temp_dir": f"{private}/ray"} if private else {}
        )
        if not address:  # a ray:// client does not send the working directory
            started["job_config"] = _job_config()
        try:
            with safe_python(), _on_loopback() if private else contextlib.nullcontext():
                ray.init(
                    "local" if private else address,  # without it, Ray would join any cluster of this machine
                    runtime_env={"env_vars": _variables()},
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    **started,
                )
        except Exception as error:  # Ray and gRPC raise many exception types
            if private:
                shutil.rmtree(private, ignore_errors=True)
            raise EngineError(
                f"{wording(f'--backend {name}', f'engine({name!r})')}: no cluster answers ({one_line(error)})."
            ) from None
    have = ray.cluster_resources()
    _joined.append(RayBackend(max(1, int(have.get("CPU", 1))), int(have.get("GPU", 0))))
    try:
        yield
    finally:
        _joined.pop()
        if own:
            ray.shutdown()
            if private:
                shutil.rmtree(private, ignore_errors=True)


def _ask_for_a_token() -> None:
    """Require an authentication token for a local cluster: other users of the machine can reach the loopback too.

    Ray (since 2.52) reads these variables once, on import. If it was imported before, no token is required.
    """
    if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Make Ray start clusters that listen only on the loopback interface, as it does by default on macOS.

    On Linux, Ray replaces 127.0.0.1 by the machine's own address and listens on all interfaces.
    """
    from ray._private import ray_constants

    name, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        with variables({name: "0"}):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


class _SearchPath(list[str]):
    """Folders that Ray prepends to `sys.path` of its workers, without the working directory, which Ray adds itself."""

    def extend(self, folders: Iterable[str]) -> None:
        here = Path.cwd()
        super().extend(folder for folder in folders if Path(folder) != here)


def _job_config() -> Any:
    from ray.job_config import JobConfig

    made = JobConfig()
    made._py_driver_sys_path = _SearchPath()
    return made


def _private_folder() -> str:
    """Create a temporary folder that only this user can access: Ray makes its own folders accessible to all users."""
    place = tempfile.gettempdir()
    # Ray's socket paths are about 70 bytes longer, and a socket path is limited to 107 bytes.
    return tempfile.mkdtemp(prefix="uf-ray-", dir=place if len(os.fsencode(place)) <= _ROOM else "/tmp")


def _variables() -> dict[str, str]:
    """Environment variables of workers: locations of cache and weights, and switches that disable telemetry.

    Paths are absolute because workers start in another folder. Telemetry is disabled here as well, because a worker may
    import a package before it imports unfreeze.
    """
    found = {name: os.environ.get(name, value) for name, value in SWITCHES.items()}
    found |= {"UNFREEZE_CACHE": str(Path(cache_root()).absolute())}
    found["PYTHONSAFEPATH"] = "1"
    if weights := os.environ.get("UNFREEZE_WEIGHTS"):
        found["UNFREEZE_WEIGHTS"] = str(Path(weights).absolute())
    if shared := os.environ.get(SHARED):
        found[SHARED] = shared
    return found
