"""`unfreeze models` and `unfreeze inspect`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from unfreeze.models.architectures import build
from unfreeze.models.registry import MEET_FIRST
from unfreeze.models.weight_sources import is_noncommercial


def test_the_short_list_comes_first_and_the_second_time_without_torch(cli):
    answer = cli("models", "--json")
    rows = {row["name"]: row for row in json.loads(answer.out)}
    assert list(rows)[:3] == [f"timm/tf_efficientnet_lite{i}" for i in range(3)]
    assert set(MEET_FIRST) <= set(rows)
    assert rows["torchvision/densenet161"]["parameters"] == 28_681_000
    assert rows["torchvision/densenet161"]["gmacs"] == pytest.approx(7.728, abs=0.01)  # torchvision's own count
    assert all(row["commercial"] and row["licence"] and not row["note"] for row in rows.values())
    code = (
        "import sys; sys.argv = ['unfreeze', 'models', '--json']; from unfreeze.cli.main import app\n"
        "app(standalone_mode=False); sys.exit(bool({'torch', 'timm', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(answer.out)
    shown = cli("models")
    assert "unfreeze models --all" in shown.out
    assert shown.out.splitlines()[-1] == "Next: unfreeze inspect NAME"


def test_a_pattern_looks_at_its_matches(cli):
    rows = json.loads(cli("models", "torchvision/squeezenet*", "--json").out)
    assert [(row["name"], row["parameters"]) for row in rows] == [
        ("torchvision/squeezenet1_0", 1_248_424),
        ("torchvision/squeezenet1_1", 1_235_496),
    ]
    assert "cannot be used here" in cli("models", "coat_tiny").out
    assert json.loads(cli("models", "no_such_network", "--json").out) == []


def test_all_lists_both_libraries(cli):
    rows = json.loads(cli("models", "--all", "--json").out)
    names = {row["name"] for row in rows}
    assert {"timm/resnet18", "torchvision/resnet18"} <= names
    assert len(names) == len(rows) > 1000
    assert any(not row["commercial"] for row in rows)


def test_available_finds_weights_in_the_users_folder(cli, tmp_path, monkeypatch):
    torch.save(build("timm/test_resnet").state_dict(), tmp_path / "test_resnet.r160_in1k.pth")
    monkeypatch.setenv("UNFREEZE_WEIGHTS", str(tmp_path))
    rows = json.loads(cli("models", "--available", "--json").out)
    assert "timm/test_resnet" in {row["name"] for row in rows}
    assert all(row["available"] for row in rows)


@pytest.mark.parametrize(
    ("licence", "closed"),
    [("apache-2.0", False), ("mit", False), ("cc-by-nc-4.0", True), ("cc-by-4.0", False), ("apple-amlr", True)],
)
def test_licences_that_forbid_selling_are_known(licence, closed):
    assert is_noncommercial(licence) is closed


def test_inspect_shows_the_tree_and_holds_a_file_against_it(cli, tmp_path):
    answer = cli("inspect", "torchvision/squeezenet1_1", "--unfreeze", "last:1", "--depth", "1", "--size", "64")
    assert "1,235,496" in answer.out
    assert "Classifier, new for your classes: classifier.1.weight" in answer.out
    assert answer.out.splitlines()[-1] == "Next: unfreeze fit SOURCE --backbone torchvision/squeezenet1_1"
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "w.pth")
    told = cli("inspect", "torchvision/squeezenet1_1", "--weights", tmp_path / "w.pth", "--size", "64")
    assert told.code == 0
    assert "1 tensors fit; missing: features.0.bias" in told.out
    assert "missing: features.12.expand3x3.bias" in told.out
    assert "Next" not in told.out
    assert json.loads(cli("inspect", "timm/test_vit", "--json").out)["entries"]["pos_embed"] == "parameter"


def test_bad_weights_are_one_line(cli, tmp_path):
    (tmp_path / "w.pth").write_text("no weights")
    answer = cli("inspect", "timm/test_resnet", "--weights", tmp_path / "w.pth")
    assert answer.code == 2
    assert "not a weights file saved by torch" in answer.complaint
    assert "no backbone" in cli("inspect", "resnet5000").complaint
