"""Every strategy becomes one file: folds blended or one alone, a shared front once, faces with a note."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from finetuning import Says, colours, fit_here
from unfreeze.core.dataset import probability_columns
from unfreeze.core.runs import Run
from unfreeze.data.decode import load_crop
from unfreeze.exporters.export import Exported, export
from unfreeze.exporters.formats import open_exported
from unfreeze.exporters.graph import ExportPlan, build_export_module
from unfreeze.inference.predictor import Classifier

NEAR = 1e-4


@pytest.fixture(scope="module", autouse=True)
def _timed_briefly() -> Iterator[None]:
    """Images per second are no question here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unfreeze.exporters.export._SPEED_SECONDS", 0.01)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 photos of 18 groups, 3 classes."""
    return colours(tmp_path_factory.mktemp("strategies") / "colours")


@pytest.fixture(scope="module")
def runs(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A tiny run of each way to learn."""
    folder = tmp_path_factory.mktemp("runs")
    made = {name: fit_here(photos, folder / name, name, train__epochs=1) for name in ("partial", "full")}
    whole = fit_here(photos, folder / "beside", "partial", train__epochs=1, train__average_with_probe=True)
    return {**made, "beside its probe": whole, "scratch": fit_here(photos, folder / "s", "scratch", train__epochs=1)}


@pytest.fixture(scope="module")
def partial(runs: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The run of partial as a TorchScript file. Not to be changed."""
    return export(runs["partial"], "torchscript", tmp_path_factory.mktemp("partial") / "partial.pt")


def answers(file: Path, files: list[Path], plan: ExportPlan) -> np.ndarray:
    """What a file says of photos, by its own runtime."""
    (p,) = plan.frames()
    pixels = np.stack([load_crop(f.read_bytes(), p.size, p.crop, resample=p.resample, squash=p.squash) for f in files])
    return open_exported(file)[1]([pixels])


@pytest.mark.parametrize(("name", "networks"), [("partial", 4), ("full", 3), ("beside its probe", 4), ("scratch", 3)])
def test_a_trained_run_is_one_file_that_answers_as_it_does(
    runs: dict[str, Run], partial: Exported, name: str, networks: int, photos: Path, tmp_path: Path
) -> None:
    says = Says()
    found = partial if name == "partial" else export(runs[name], "torchscript", tmp_path / "a.pt", reporter=says)
    # A blend says that it holds many networks, and how to have one.
    assert name == "partial" or any("fold=K writes the small file of one" in line for line in says.lines)
    assert found.difference < NEAR and found.same == found.photos == 36
    assert (
        found.networks == networks
    )  # partial: a front and three folds' later stages, its probe reading the same front
    classifier = Classifier.load(runs[name])
    files = sorted(photos.rglob("*.jpg"))[::7]
    want = classifier.predict(files)[probability_columns(runs[name].classes)].to_numpy()
    np.testing.assert_allclose(answers(found.path, files, ExportPlan.of(classifier, None)), want, atol=NEAR)
    if name != "scratch":  # an epoch from nothing tells nothing apart
        assert np.ptp(want, axis=0).max() > 0.1


def test_a_front_that_folds_share_stands_in_the_file_once(
    runs: dict[str, Run], partial: Exported, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnx")
    (models,) = Classifier.load(runs["partial"]).tuned
    network = models.setting.backbone.build()
    unused = {f"network.{name}" for name in models.setting.backbone.anatomy().classifier}  # the probe's head answers
    state = models.network(models.files[0]).trained_state()
    trained = sum(t.numel() for name, t in state.items() if name not in unused and t.is_floating_point())
    names = {f"network.{name}" for name, _ in network.named_parameters()} - unused - set(state)
    front = sum(p.numel() for name, p in network.named_parameters() if f"network.{name}" in names)
    assert 3 * trained > front > 50_000
    file = export(runs["partial"], "onnx", tmp_path / "partial.onnx")
    assert file.difference < NEAR and file.same == 36
    held = sum(int(np.prod(i.dims)) for i in onnx.load(file.path).graph.initializer)
    assert held == pytest.approx(3 * trained + front, abs=0.2 * front)
    # In a TorchScript file too: a second front would be 4 bytes a weight more.
    assert partial.bytes == pytest.approx(4 * (3 * trained + front), abs=4 * 0.5 * front)


def test_later_stages_run_in_openvino(runs: dict[str, Run], tmp_path: Path) -> None:
    found = export(runs["partial"], "openvino", tmp_path / "partial.xml")
    assert found.difference < NEAR and found.same == 36


def test_one_fold_answers_as_that_fold(runs: dict[str, Run], photos: Path, tmp_path: Path) -> None:
    say = Says()
    found = export(runs["partial"], "torchscript", tmp_path / "a.pt", fold=2, reporter=say)
    assert found.fold == 2 and found.networks == 2 and found.difference < NEAR
    assert not any("fold=K" in line for line in say.lines)
    alone = Classifier.load(runs["partial"], folds=(2,))
    files = sorted(photos.rglob("*.jpg"))[:5]
    columns = probability_columns(runs["partial"].classes)
    want = alone.predict(files)[columns].to_numpy()
    got = answers(found.path, files, ExportPlan.of(alone, None))
    np.testing.assert_allclose(got, want, atol=NEAR)
    other = Classifier.load(runs["partial"], folds=(0,)).predict(files)[columns].to_numpy()
    assert np.abs(got - other).max() > 10 * NEAR
    assert json.loads(found.about.read_text())["folds"] == [2]


def test_the_speakers_of_a_file_are_its_folds(runs: dict[str, Run]) -> None:
    import torch

    for run in runs.values():
        apart = [Classifier.load(run, folds=(k,)) for k in range(3)]
        plan = ExportPlan.of(apart, None)
        pixels = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            together, *each = build_export_module(plan, apart=True)(pixels)
            whole = build_export_module(ExportPlan.of(Classifier.load(run), None))(pixels)
        np.testing.assert_allclose(together, whole, atol=1e-6)
        np.testing.assert_allclose(torch.stack(each).mean(0), whole, atol=1e-6)


def test_a_torchscript_file_needs_torch_and_nothing_of_ours(
    partial: Exported, runs: dict[str, Run], tmp_path: Path
) -> None:
    found = partial
    content = found.path.read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in content  # nor where our source lies
    code = (
        "import sys, json; sys.modules['unfreeze'] = sys.modules['timm'] = sys.modules['torchvision'] = None\n"
        "import torch\n"
        "about = {'unfreeze.json': ''}\n"
        f"net = torch.jit.load({str(found.path)!r}, _extra_files=about)\n"
        "told = json.loads(about['unfreeze.json'])\n"
        "for n in (1, 3):\n"
        "    p = net(torch.randint(0, 256, (n, 64, 64, 3), dtype=torch.uint8))\n"
        "    assert p.shape == (n, 3) and torch.allclose(p.sum(1), torch.ones(n), atol=1e-5)\n"
        "print(told['classes'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == list(runs["partial"].classes)
