"""Ray as a place where long work runs: the same functions, given whole tasks, in processes of a cluster.

A task's inputs and outputs are small; what is large lies in the cache and in run folders, which every machine of the
cluster reaches by the same path, as it does the photos. A worker that dies in the middle of a task is replaced and the
task done again: what it had finished lies in the cache or in a checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from unfreeze.core.cache import cache_root
from unfreeze.core.errors import EngineError, MissingExtraError, RecipeError, UnfreezeError, in_a_line
from unfreeze.core.shared_cache import SHARED
from unfreeze.core.work import cores

T = TypeVar("T")
R = TypeVar("R")

_RETRIES = 3
# Seconds between two looks at what the tasks have written meanwhile.
_EVERY = 0.5
_LOCAL, _RAY = "local", "ray"


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster that this process has joined. cpus, gpus: what it had when it was joined."""

    cpus: int
    gpus: int

    def run(
        self,
        function: Callable[[T], R],
        tasks: Sequence[T],
        cpus: int = 1,
        look: Callable[[], None] | None = None,
    ) -> list[R]:
        """Results of `function` for each task, in order; each has `cpus` cores to itself, and a GPU if there are any.

        function: of a module, not a closure, for another process imports it. look: called about twice a second while
        tasks run. Raises what a task raises, once the others are cancelled; EngineError where its worker died again and
        again.
        """
        import ray

        remote = ray.remote(function).options(
            num_cpus=cpus, num_gpus=1 if self.gpus else 0, max_retries=_RETRIES, retry_exceptions=False
        )
        waiting = [remote.remote(task) for task in tasks]
        left = waiting
        try:
            while left:
                ended, left = ray.wait(left, timeout=_EVERY)
                if look:
                    look()
                for one in ended:
                    ray.get(one)  # an error ends the others now, not when their turn comes
            return list(ray.get(waiting))
        except BaseException as error:
            for one in left:  # never one that has ended: Ray 2.60 aborts this process where the two cross
                with contextlib.suppress(Exception):
                    ray.cancel(one, force=True)
            if isinstance(error, ray.exceptions.RayTaskError):
                if isinstance(error.cause, UnfreezeError):
                    raise error.cause from None
                said = f"a task on the cluster failed ({in_a_line(error.cause)})"
            elif isinstance(error, ray.exceptions.RayError):
                said = f"the cluster lost a task {_RETRIES + 1} times ({in_a_line(error)})"
            else:
                raise
            raise EngineError(f"{said}; run the same command to go on.") from None


_joined: list[Cluster] = []


def cluster() -> Cluster | None:
    """The cluster that work goes to now; None where it runs here."""
    return _joined[-1] if _joined else None


def check_engine(name: str) -> None:
    """Raises RecipeError for a name that is none, MissingExtraError where Ray is not installed."""
    if name == _LOCAL:
        return
    if name != _RAY and not name.startswith("ray://"):
        raise RecipeError(f"--engine {name}: known are local, ray and ray://HOST:PORT.")
    if find_spec("ray") is None:
        raise MissingExtraError(f"--engine {name} needs ray: pip install 'unfreeze[ray]'.")


@contextlib.contextmanager
def engine(name: str = _LOCAL) -> Iterator[None]:
    """While the block runs, folds, trials and features are computed there.

    name: 'local': in this process and its own; 'ray': in the cluster that $RAY_ADDRESS names, else in one of this
    machine's cores that is started for the block; 'ray://HOST:PORT': in that cluster. Photos, cache and run folders
    must be reached by the same paths everywhere. Results are those of 'local'.
    Raises RecipeError, MissingExtraError, or EngineError where the cluster cannot be reached.
    """
    check_engine(name)
    if name == _LOCAL:
        yield
        return
    import ray

    address = None if name == _RAY else name
    own = not ray.is_initialized()
    if own:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        joins = address or os.environ.get("RAY_ADDRESS")
        started: dict[str, Any] = {} if joins else {"num_cpus": cores(), "include_dashboard": False}
        try:
            ray.init(
                address,
                runtime_env={"env_vars": _variables()},
                logging_level=logging.ERROR,
                log_to_driver=False,
                **started,
            )
        except Exception as error:  # Ray raises nearly anything, of its own and of gRPC
            raise EngineError(f"--engine {name}: no cluster answers ({in_a_line(error)}).") from None
    have = ray.cluster_resources()
    _joined.append(Cluster(max(1, int(have.get("CPU", 1))), int(have.get("GPU", 0))))
    try:
        yield
    finally:
        _joined.pop()
        if own:
            ray.shutdown()


def _variables() -> dict[str, str]:
    """What workers must know to find the same caches and weights; paths are made whole, for they start elsewhere."""
    found = {"UNFREEZE_CACHE": str(Path(cache_root()).absolute())}
    if weights := os.environ.get("UNFREEZE_WEIGHTS"):
        found["UNFREEZE_WEIGHTS"] = str(Path(weights).absolute())
    if shared := os.environ.get(SHARED):
        found[SHARED] = shared
    return found
