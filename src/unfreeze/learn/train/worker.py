"""A process that trains folds, answering in lines of JSON: `python -m unfreeze.learn.train.worker THREADS WORKERS`.

With RANK SIZE PORT behind, it is one of several that train each fold together.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from queue import Queue
from typing import Any

from unfreeze.core.errors import UnfreezeError
from unfreeze.core.progress import Reporter


class _Piped(Reporter):
    """Lines go to the process that started this one."""

    def say(self, text: str) -> None:
        _tell({"say": text})


def _tell(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def main(threads: int, workers: int, rank: int = 0, size: int = 1, port: int = 0) -> int:
    """Does the jobs that are told on standard input, a line each, until it closes; 2 after an error.

    A line: the job's folder, a tab, and the file that the network goes to.

    Nothing must train on for nobody: standard input closes when the parent ends, however it ends.
    """
    # Ctrl-C reaches every process of a terminal; what it means is for the parent to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    jobs: Queue[str | None] = Queue()
    busy = threading.Event()

    def read() -> None:
        rest = b""
        while part := os.read(0, 65_536):
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                busy.set()
                jobs.put(os.fsdecode(line))
        if busy.is_set():
            os._exit(1)
        jobs.put(None)

    threading.Thread(target=read, daemon=True).start()
    import torch

    from unfreeze.learn.train.jobs import Job, do
    from unfreeze.learn.train.memory import share_memory
    from unfreeze.learn.train.together import joined

    torch.set_num_threads(threads)
    share_memory(workers)
    try:
        with joined(rank, size, port) as crew:
            while (folder := jobs.get()) is not None:
                place, _, kept = folder.partition("\t")
                job = Job.read(Path(place))
                do(job, Path(place), Path(kept), lambda row: _tell({"row": row}), _Piped(), crew)
                busy.clear()
                _tell({"done": folder})
    except UnfreezeError as error:
        _tell({"error": type(error).__name__, "text": str(error)})
        return 2
    return 0


if __name__ == "__main__":
    code = main(*map(int, sys.argv[1:]))
    sys.stdout.flush()
    os._exit(code)  # the reading thread never ends by itself
