"""Kill -9 at any moment: the same command goes on, ends with the same bytes, and never reads what is half-written.

`make test` kills a few times, `make soak` 200 times (UNFREEZE_SOAK=200).
"""

from __future__ import annotations

import contextlib
import html
import http.client
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from killing import KILLS, SEED, TOLD, Command, killed_until_finished, opened_whole, times_of, undisturbed, unfreeze
from smallruns import fit_words, same_found

from unfreeze.core.corrections import Correction, append_correction, read_corrections
from wronglabels import wrong_set

# How many of 200 kills each part makes, and of the few in `make test`.
SHARES = {
    "probe": 40,
    "partial": 25,
    "full": 25,
    "scratch": 20,
    "cache": 30,
    "corrections": 25,
    "review": 15,
    "tune": 20,
}
QUICK = {"probe": 3, "corrections": 1}


def kills_of(part: str) -> int:
    few = {name: QUICK.get(name, 0) for name in SHARES}
    shares = SHARES if KILLS >= 50 else few
    return max(1, round(KILLS * shares[part] / sum(shares.values())))


# Runs the command line with segments of the cache so small that a few photos make many.
SMALL_SEGMENTS = """
import sys
from unfreeze.data import scan
from unfreeze.features import extract
scan._FLUSH = extract._FLUSH = 8
from unfreeze.cli.main import main
main()
"""


@pytest.mark.parametrize(
    "part",
    ["probe", *(pytest.param(part, marks=pytest.mark.soak) for part in ("partial", "full", "scratch", "cache"))],
)
def test_a_fit_that_is_killed_again_and_again(part: str, photos: Path, tmp_path: Path, request: Any) -> None:
    """Each round has a new run folder and a new cache; a round's kills are all in them."""
    strategy = "probe" if part == "cache" else part
    more = {} if strategy == "probe" else {"train__epochs": 4}
    words = unfreeze(*fit_words(strategy, photos, "run", **more))
    if part == "cache":
        words[1:3] = ["-c", SMALL_SEGMENTS]
    engines = request.getfixturevalue("engines") if part == "probe" else None

    def started(place: Path) -> Command:
        place.mkdir()
        if engines:
            shutil.copytree(engines, place / "cache")
        return Command(words, place, place / "cache", [place / "run"])

    first = tmp_path / "undisturbed"
    kills = undisturbed(started(first), part)
    wanted = kills_of(part)
    number = 0
    while kills.killed < wanted:
        place = tmp_path / str(number)
        command, kept = started(place), dict[Path, int]()

        def after_each(place: Path = place, kept: dict[Path, int] = kept) -> None:
            opened_whole(place / "run")
            opened_whole(place / "cache")
            now = times_of(place / "run")
            assert kept.items() <= now.items(), "a finished fold was written again, or is gone"
            kept |= now

        killed_until_finished(command, kills, wanted - kills.killed, after_each)
        after_each()
        same_found(place / "run", first / "run")
        assert opened_whole(place / "run") == opened_whole(first / "run")
        number += 1
        shutil.rmtree(place)
    TOLD[part] = kills.killed
    assert kills.killed == wanted and kills.finished == number


# --- corrections
# --------------------------------------------------------------------------------------------------------

# Writes corrections, takes every third one back, and says so after each, as the page's server does.
WRITER = """
import sys
from pathlib import Path
from unfreeze.core.corrections import Correction, append_correction, withdraw_correction
file, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for i in range(first, last):
    append_correction(file, Correction(f"{i}.jpg", "", "relabel", 'red, "or" green', "t"))
    print(f"+{i}", flush=True)
    if i % 3 == 2:
        withdraw_correction(file, f"{i}.jpg")
        print(f"-{i}", flush=True)
"""


def test_corrections_that_were_answered_survive(tmp_path: Path) -> None:
    file, said = tmp_path / "run" / "corrections.csv", tmp_path / "said"
    draw, wanted, killed, first = random.Random(f"corrections{SEED}"), kills_of("corrections"), 0, 0
    there: set[int] = set()
    while killed < wanted:
        with said.open("w") as stream:
            words = [sys.executable, "-c", WRITER, str(file), str(first), str(first + 100_000)]
            process = subprocess.Popen(words, stdout=stream, start_new_session=True)
        at_work = not killed or draw.random() < 0.9
        while at_work and not said.stat().st_size and process.poll() is None:
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.2 if at_work else 1))
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed += 1
        # A line that was cut off was not said.
        for line in said.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                number = int(line[1:])
                (there.add if line[0] == "+" else there.discard)(number)
                first = number + 1
        found = {int(v.path.removesuffix(".jpg")) for v in read_corrections(file)[0]} if file.exists() else set()
        # The one that was being written when the kill came may be there, or gone, unsaid.
        assert found ^ there <= {first - 1, first}, sorted(found ^ there)
        assert all(v.label == 'red, "or" green' for v in (read_corrections(file)[0] if found else []))
        there = found
        first = max([first, *(n + 1 for n in found)])
    append_correction(file, Correction("last.jpg", "", "keep", "", "t"))
    assert {v.path for v in read_corrections(file)[0]} == {f"{n}.jpg" for n in there} | {"last.jpg"}
    TOLD["corrections"] = killed
    assert len(there) > killed


class Page:
    """What a browser does with the review page."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        assert server.stdout is not None
        address = next(match[0] for line in server.stdout if (match := re.search(r"http://\S+", line)))
        self.at = urlsplit(address)
        answer = self._ask("GET", f"/?{self.at.query}")
        self.headers = {"Cookie": answer.headers["set-cookie"].split(";")[0]}
        page = self._ask("GET", "/", self.headers).text
        self.deck: dict[str, Any] = json.loads(
            html.unescape(page.split('id="deck"')[1].split(">", 1)[1].split("</script>")[0])
        )
        token = re.search(r'data-token="([^"]+)"', page)
        assert token
        self.headers |= {"X-Unfreeze-Token": token[1], "Content-Type": "application/json"}

    def _ask(self, method: str, path: str, headers: dict[str, str] | None = None, **more: Any) -> Answered:
        line = http.client.HTTPConnection(self.at.hostname or "", self.at.port or 0, timeout=30)
        try:
            line.request(method, path, headers=headers or {}, **more)
            answer = line.getresponse()
            return Answered(answer.status, answer.headers, answer.read().decode())
        finally:
            line.close()

    def send(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The deck's state as the server tells it; what is saved, once this has returned."""
        answer = self._ask("POST", path, self.headers, body=json.dumps(body))
        assert answer.status == 200, answer.text
        return dict(json.loads(answer.text))


class Answered(NamedTuple):
    status: int
    headers: Any
    text: str


@pytest.mark.soak
def test_what_a_person_judged_in_the_page_survives(tmp_path: Path) -> None:
    """Over HTTP: what the page was told is saved is in the file, and the next page shows it."""
    table, _ = wrong_set(tmp_path / "photos")
    run, file, cache = tmp_path / "run", tmp_path / "corrections.csv", tmp_path / "cache"
    more = {"source__group": "group", "source__group_regex": ""}
    code, *_, err = Command(unfreeze(*fit_words("probe", table, run, **more)), tmp_path, cache, [run]).run()
    assert code == 0, err
    draw, wanted, killed = random.Random(f"review{SEED}"), kills_of("review"), 0
    saved: dict[str, Any] = {}  # as the last answer told
    while killed < wanted:
        server = subprocess.Popen(
            unfreeze("review", run, "--no-open", "--corrections", file, "--limit", 20),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            env={**os.environ, "UNFREEZE_CACHE": str(cache)},
        )
        judged = 0
        if draw.random() < 0.2:
            time.sleep(draw.uniform(0, 2))
            os.killpg(server.pid, signal.SIGKILL)
        else:
            page = Page(server)
            changed = {
                row
                for row in {*saved, *page.deck["corrections"]}
                if saved.get(row) != page.deck["corrections"].get(row)
            }
            assert len(changed) <= 1, "more than the one correction that was on its way when the kill came"
            saved = page.deck["corrections"]
            timer = threading.Timer(draw.uniform(0.02, 0.5), os.killpg, (server.pid, signal.SIGKILL))
            timer.start()
            with contextlib.suppress(OSError, http.client.HTTPException):
                while True:
                    if saved and draw.random() < 0.2:
                        saved = page.send("/corrections/undo", {})["corrections"]
                    else:
                        card, correction = draw.choice(page.deck["cards"]), draw.choice(["keep", "exclude"])
                        saved = page.send("/corrections", {"id": card["id"], "action": correction})["corrections"]
                    judged += 1
            timer.join()
        assert server.wait(30) == -signal.SIGKILL
        assert server.stdout is not None
        server.stdout.close()
        killed += 1
        opened_whole(run)
        found, _ = read_corrections(file) if file.exists() else ([], [])
        assert len(found) >= len(saved) - 1
    TOLD["review"] = killed
    assert saved


# --- tune ------------------------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_a_search_that_is_killed_again_and_again(photos: Path, tmp_path: Path, engines: Path) -> None:
    """It ends with the trials, recipes and runs of a search that nobody disturbed."""
    options = fit_words("probe", photos, "search", image__color="gray", probe__Cs=[1.0])[2:]
    space = ["--space", "image.color=gray,rgb", "--space", "balance.class_weight_power=0.0..1.0", "--trials", "3"]
    words = unfreeze("tune", photos, *options, *space)

    def started(place: Path) -> Command:
        place.mkdir()
        shutil.copytree(engines, place / "cache")
        return Command(words, place, place / "cache", [place / "search"])

    def found(place: Path) -> Any:
        told = json.loads((place / "search" / "tune.json").read_text())
        for side in told["searches"].values():
            for row in side["trials"]:
                del row["seconds"]
        return {key: value for key, value in told.items() if key != "seconds"}

    first = tmp_path / "undisturbed"
    kills = undisturbed(started(first), "tune")
    wanted, number = kills_of("tune"), 0
    while kills.killed < wanted:
        place = tmp_path / str(number)
        command = started(place)

        def after_each(place: Path = place) -> None:
            opened_whole(place / "search")
            opened_whole(place / "cache")

        killed_until_finished(command, kills, wanted - kills.killed, after_each)
        after_each()
        assert found(place) == found(first)
        for run in ("base", "best"):
            assert (place / "search" / run).exists() == (first / "search" / run).exists()
            if (first / "search" / run).exists():
                same_found(place / "search" / run, first / "search" / run)
        number += 1
        shutil.rmtree(place)
    TOLD["tune"] = kills.killed
