"""Worker process that trains folds: `python -m unfreeze.training.fine_tune.worker THREADS WORKERS [NAMED_OPTIONS]`.

Jobs are read from standard input and results are written to standard output as JSON lines. With the further arguments
RANK SIZE FILE, the process is one of several that train each fold together and meet through the file.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from queue import Queue
from typing import Any

from unfreeze.core.errors import EngineError, UnfreezeError
from unfreeze.core.messages import command_line
from unfreeze.core.progress import Reporter


class _Piped(Reporter):
    """Reporter that sends lines to the parent process."""

    def say(self, text: str) -> None:
        _tell({"say": text})


def _tell(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def main(
    threads: int, workers: int, named_options: int = 0, rank: int = 0, size: int = 1, meeting: Path | None = None
) -> int:
    """Run the jobs given on standard input, one per line, until it is closed.

    A line consists of the job folder, a tab, and the file for the network. If standard input closes during a job,
    because the parent process has ended for whatever reason, this process exits immediately.

    Args:
        threads: Number of threads.
        workers: Number of processes that train at the same time.
        named_options: Whether messages refer to command-line options.
        rank: Rank of this process.
        size: Number of processes that train together.
        meeting: Rendezvous file of the process group.

    Returns:
        Exit code: 0, or 2 after an error.
    """
    # Ctrl-C is delivered to every process of a terminal; the parent process handles it.
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

    from unfreeze.training.fine_tune.distributed import init_process_group
    from unfreeze.training.fine_tune.fold_job import FoldJob, run_fold_job
    from unfreeze.training.fine_tune.memory import share_memory

    torch.set_num_threads(threads)
    share_memory(workers)
    place = "training"
    try:
        with command_line(bool(named_options)), init_process_group(rank, size, meeting) as crew:
            while (folder := jobs.get()) is not None:
                place, _, kept = folder.partition("\t")
                job = FoldJob.read(Path(place))
                run_fold_job(job, Path(place), Path(kept), lambda row: _tell({"row": row}), _Piped(), crew)
                busy.clear()
                _tell({"done": folder})
    except UnfreezeError as error:
        _tell({"error": type(error).__name__, "text": str(error)})
        return 2
    except Exception as error:  # likely to recur, so do not suggest running the same command again
        traceback.print_exc()
        reason = (str(error).strip().splitlines() or ["without a reason"])[0]
        text = f"{Path(place).name}: training failed ({type(error).__name__}: {reason.rstrip('. ')})."
        _tell({"error": EngineError.__name__, "text": text})
        return 2
    return 0


if __name__ == "__main__":
    code = main(*map(int, sys.argv[1:6]), *map(Path, sys.argv[6:]))  # type: ignore[arg-type]
    sys.stdout.flush()
    os._exit(code)  # the reader thread never ends by itself
