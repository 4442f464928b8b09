"""The demo does the whole main job, says both scores, and leaves what it names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd

import unfreeze as uf
from commandline import Answer


def test_demo_with_few_people(cli: Callable[..., Answer]) -> None:
    answer = cli("demo", "here", "--people", "20", "--seed", "1")
    assert answer.code == 0, answer.err
    said = answer.out
    honest, careless = (
        re.search(rf"macro F1 {words}: +(0\.\d+) ", said) for words in ("on unseen people", "of an image-level split")
    )
    assert honest and careless
    for word in ("unfreeze check here/photos", "unfreeze fit here/photos --run here/run", "unfreeze predict here/run"):
        assert word in said
    assert re.search(r"accuracy 0\.\d{3}, macro F1 0\.\d{3} on 70 photos of 10 other people", said)
    submission = pd.read_csv("here/submission.csv")
    template = pd.read_csv("here/photos/eval/info.csv")
    assert submission["ImageID"].tolist() == template["ImageID"].tolist()
    assert submission["ans"].between(0, 17).all() and pd.api.types.is_integer_dtype(submission["ans"])
    assert Path("here/run/report.html").stat().st_size > 10_000
    # What the report says to repeat is a command that would do it again.
    said = uf.open_run("here/run").info["command"]
    assert said.startswith("unfreeze fit here/photos --run here/run --strategy probe --random-split-baseline")
