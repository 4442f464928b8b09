"""The command line run in this process."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from unfreeze.cli.main import main


@dataclass(frozen=True)
class Answer:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The error's one line; fails if there is more than that line, or a traceback, or an escape code."""
        lines = self.err.splitlines()
        assert "Traceback" not in self.err, self.err
        assert "\x1b" not in self.err
        assert len([line for line in lines if line.startswith("unfreeze: ")]) == 1, self.err
        assert lines[-1].startswith("unfreeze: "), self.err
        return lines[-1]


def run_cli(*arguments: object) -> Answer:
    """`unfreeze ARGUMENTS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["unfreeze", *map(str, arguments)])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
    code = ended.value.code
    return Answer(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())


def leftovers(folder: Path) -> list[str]:
    """Half-written files anywhere below a folder."""
    return [str(path) for path in folder.rglob("*") if ".tmp" in path.name]
