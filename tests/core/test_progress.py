"""Progress is for people: nothing in programs, plain lines where no terminal is."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from unfreeze.core import progress
from unfreeze.core.progress import ConsoleReporter, Reporter


def console(**options) -> Console:
    return Console(file=io.StringIO(), **options)


def test_silent_by_default(capsys):
    reporter = Reporter()
    reporter.say("x")
    with reporter.bar("x", 3) as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")


def test_text_is_not_markup():
    reporter = ConsoleReporter(console(width=200))
    reporter.say("[bold]a[/bold] [/] 3")
    assert reporter.console.file.getvalue() == "[bold]a[/bold] [/] 3\n"


@pytest.mark.parametrize("total", [0, 3])
@pytest.mark.parametrize("terminal", [True, False])
def test_bar(total, terminal):
    reporter = ConsoleReporter(console(force_terminal=terminal, width=40))
    with reporter.bar("Looking [/x] at photos", total) as advance:
        for _ in range(total):
            advance(1)
    shown = reporter.console.file.getvalue()
    assert ("Looking" in shown) == terminal


def test_long_work_leaves_a_line(monkeypatch):
    now = iter([100.0, 102.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(now))
    reporter = ConsoleReporter(console(width=200))
    with reporter.bar("Looking", 1000):
        pass
    assert reporter.console.file.getvalue() == "Looking: 1,000 in 2.0 s (500/s)\n"


def test_an_error_inside_passes():
    reporter = ConsoleReporter(console(force_terminal=True, width=40))
    with pytest.raises(RuntimeError), reporter.bar("x", 3):
        raise RuntimeError
