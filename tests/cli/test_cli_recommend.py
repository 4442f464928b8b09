"""recommend, and fit without a strategy, at the command line: table or JSON, the next command, one line for an
error.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from commandline import Answer
from finetuning import SETTINGS, colours, options
from racing import trained_here
from unfreeze.models.registry import find_backbone

Cli = Callable[..., Answer]
# A race of the tiny network, quick.
WORDS = options({**SETTINGS, "train.epochs": 1, "probe.Cs": [1.0], "recommend.candidates": ["partial"]})


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 photos of 18 groups in three colors."""
    return colours(tmp_path_factory.mktemp("cli recommend") / "photos", groups=6, each=2)


def test_recommend_json_is_json_and_nothing_else(photos: Path, cli: Cli) -> None:
    with trained_here():
        answer = cli("recommend", photos, *WORDS, "--json")
    assert (answer.code, answer.err) == (0, "")
    found = json.loads(answer.out)
    assert {row["name"] for row in found["table"]} == {"probe", "partial"}
    assert found["recommended"] in ("probe", "partial") and found["changes"] == {"strategy": found["recommended"]}
    assert found["photos"] == 36 and found["groups"] == 18 and found["blocks"][0]["recommended"]
    assert found["similar"]["measures"] and found["enough"]["sentence"]
    assert not list(Path().iterdir())  # recommendation leaves nothing where it is asked for


def test_recommend_prints_both_axes_a_table_and_the_next_command(photos: Path, cli: Cli) -> None:
    with trained_here():
        answer = cli("recommend", photos, *WORDS, "--report", "recommendation.html")
        page = Path("recommendation.html").read_text("utf-8")
    assert answer.code == 0, answer.err
    lines = answer.out.splitlines()
    assert any(line.startswith("Raced on 36 photos, 18 groups") for line in lines)
    for name in ("probe", "partial"):
        assert any(line.split()[:1] == [name] for line in lines), name
    assert any("table" in line for line in lines)
    recommended = next(line for line in lines if line.startswith("Recommended: ")).split()[1].strip(".:")
    assert any(line.startswith("Runner-up: ") for line in lines) and "Written: recommendation.html" in answer.out
    assert lines[-1].startswith(f"Next: unfreeze fit '{photos}'") and f"--strategy {recommended}" in lines[-1]
    assert "<html" in page and "partial" in page and "http://" not in page


def test_fit_follows_the_race_by_default(photos: Path, cli: Cli) -> None:
    with trained_here():
        answer = cli("fit", photos, *WORDS, "--json")
        assert answer.code == 0, answer.err
        found = json.loads(answer.out)
    run = Path(found["run"])
    assert run.name.startswith("photos-auto-") and (run / "recommendation.json").is_file()
    assert json.loads((run / "run.json").read_text())["strategy"] in (
        "probe",
        "partial",
        "probe and partial",
        "partial and probe",
    )
    assert {fold["strategy"] for fold in found["folds"]} <= {"probe", "partial"}
    listing = cli("runs", "runs", "--json")
    assert listing.code == 0 and json.loads(listing.out)[0]["strategy"]


def test_backbones_are_compared_at_equal_cost(
    photos: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    names = ("timm/test_resnet", "timm/test_efficientnet")
    for name in names:  # weights of their own: only what is here takes part
        file = tmp_path / "weights" / f"{name.removeprefix('timm/')}.r160_in1k.safetensors"
        file.parent.mkdir(exist_ok=True)
        save_file(find_backbone(name, "none").build().state_dict(), file)
    monkeypatch.setenv("UNFREEZE_WEIGHTS", str(tmp_path / "weights"))
    # No network is trained here: what races afterwards is the probe alone.
    words = options({**SETTINGS, "weights": "", "recommend.candidates": ["probe"], "probe.Cs": [1.0]})
    answer = cli("recommend", photos, *words, "--backbones", ", ".join(names), "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    ranked = found["backbones"]
    assert {row["name"] for row in ranked} == set(names)
    scores = [row["macro_f1"]["value"] for row in ranked]
    assert scores == sorted(scores, reverse=True) and all(row["gmacs"] > 0 for row in ranked)
    assert found["table"][0]["name"] == "probe" and found["changes"]["strategy"] == "probe"
    assert found["changes"].get("backbone", SETTINGS["backbone"]) == ranked[0]["name"]


WRONG = [
    (["--backbones", "tf_efficientnet_lite9"], ["no backbone 'tf_efficientnet_lite9'", "Did you mean"]),
    (["--backbones", "timm/test_resnet"], ["--backbones", "not on this machine"]),
    (["--budget", "soon"], ["recommend.budget = 'soon'", "90s, 10m or 1h30m"]),
    (["--budget", "-3m"], ["recommend.budget = '-3m'"]),
    (["--folds", "1"], ["folds.n_splits"]),
    (["--set", 'recommend.candidates=["lates"]'], ["recommend.candidates", "'partial'"]),
    (
        ["--set", "recommend.candidate=[]"],
        ["unknown key 'recommend.candidate'", "Did you mean 'recommend.candidates'?"],
    ),
    (["--set", "balance.loss=soft-f1"], ["balance.loss = 'soft-f1'", "partial, full or scratch"]),
    (["--backend", "dask"], ["--backend dask: known are local, ray"]),
    (["--strategy", "partial"], ["--strategy", "unfreeze recommend --help"]),
]


@pytest.mark.parametrize(("words", "said"), WRONG, ids=lambda value: " ".join(value)[:30])
def test_what_is_wrong_is_one_line(words: list[str], said: list[str], photos: Path, cli: Cli) -> None:
    answer = cli("recommend", photos, *WORDS, *words)
    assert (answer.code, answer.out) == (2, "")
    for word in said:
        assert word in answer.complaint
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--set", "recommend.budget=soon"], "recommend.budget"), (["--set", "balance.loss=soft-f1"], "balance.loss")],
)
def test_a_default_fit_that_cannot_race_is_one_line(words: list[str], said: str, photos: Path, cli: Cli) -> None:
    answer = cli("fit", photos, *WORDS, *words)
    assert (answer.code, answer.out) == (2, "") and said in answer.complaint
    assert not list(Path().iterdir())
