"""POST /explain: every kind of run has a map, none holds up predictions for long, and none is drawn without end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import unfreeze as uf
from finetuning import fit_here
from servedruns import Here, served
from unfreeze.core.runs import Run
from unfreeze.inference.ensemble import Ensemble
from unfreeze.inference.in_memory import InMemoryPredictor
from unfreeze.server.serve.limits import Limits


@pytest.fixture(scope="module")
def partial_run(probe_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Of the same photos as `probe_run`."""
    return fit_here(probe_photos, tmp_path_factory.mktemp("partial") / "partial", "partial", train__epochs=1)


@pytest.fixture(scope="module")
def trained(partial_run: Run) -> Iterator[Here]:
    with served(InMemoryPredictor.load(partial_run)) as one:
        yield one


@pytest.fixture(scope="module")
def blend(probe_run: Run, partial_run: Run) -> Ensemble:
    """With a weight for both, whatever their predictions would choose."""
    made = Ensemble.load([probe_run, partial_run])
    return Ensemble(made.classifiers, np.array([0.5, 0.5]), made.out_of_fold)


def explain(one: Here, photo: bytes, method: str | None = None) -> dict:
    answer = one.client.post("/explain", files={"file": ("a.jpg", photo)}, params={"method": method} if method else {})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_a_probes_map_is_that_of_explain(here: Here, probe_run: Run, probe_photos: Path, photo: bytes) -> None:
    found = explain(here, photo)
    told = uf.explain(probe_run, probe_photos / "red" / "g000_0.jpg").photos[0]
    (heat,), (one,) = told.heat, found["maps"]
    assert (found["label"], found["runner_up"]) == (told.label, told.runner_up)
    assert one["method"] == "cells" and one["unit"] == "logits" and "not what caused" in one["meaning"]
    np.testing.assert_allclose(one["cells"], heat.values, atol=1e-2)
    np.testing.assert_allclose(one["cells"], np.sum([told.contrast(block) for block in told.maps], 0), atol=1e-2)
    assert one["margin"] == pytest.approx(told.margin(), abs=1e-2)
    assert one["square"] == pytest.approx(heat.box)


def test_a_trained_run_has_its_own_map_and_occlusion_where_asked(trained: Here, partial_run: Run, photo: bytes) -> None:
    (own,), (covered,) = explain(trained, photo)["maps"], explain(trained, photo, "occlusion")["maps"]
    assert own["method"] == "grad-cam" and own["title"].startswith("3 networks")
    assert covered["method"] == "occlusion" and covered["unit"] == "probability"
    assert np.shape(covered["cells"]) == (8, 8)
    page = trained.client.get("/").text
    assert '"maps": true' in page


def test_a_blend_is_covered_when_asked_and_its_page_does_not_ask_by_itself(blend: Ensemble, photo: bytes) -> None:
    with served(InMemoryPredictor.load(blend)) as one:
        assert explain(one, photo)["maps"][0]["method"] == "occlusion"
        assert '"maps": false' in one.client.get("/").text
        answer = one.client.post("/explain", files={"file": ("a.jpg", photo)}, params={"method": "cells"})
        assert answer.status_code == 422 and answer.json()["kind"] == "no_map" and "occlusion" in answer.json()["error"]
        assert str(blend.run.path) not in answer.text


@pytest.mark.parametrize("method", ["gradcam", "rollout", "../../etc", ""])
def test_an_unknown_method_is_refused_in_one_line(here: Here, photo: bytes, method: str) -> None:
    answer = here.client.post("/explain", files={"file": ("a.jpg", photo)}, params={"method": method})
    assert answer.status_code == 422 and answer.json() == {
        "error": "method: this run has auto, cells, occlusion.",
        "kind": "no_map",
    }


def test_what_is_no_photo_is_refused(here: Here, photo: bytes) -> None:
    answer = here.client.post("/explain", files={"file": ("a.jpg", b"no photo")})
    assert answer.status_code == 415 and "not an image" in answer.json()["error"]
    two = [("file", ("a.jpg", photo)), ("file", ("b.jpg", photo))]
    assert here.client.post("/explain", files=two).json()["kind"] == "too_many_files"


def test_predictions_pass_between_the_pieces_of_a_map_that_is_cut_off_in_time(
    probe_run: Run, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = InMemoryPredictor.load(probe_run)
    slow, asked = InMemoryPredictor.probabilities, []

    def probabilities(self: InMemoryPredictor, photos: list, looks: tuple | None = None) -> np.ndarray:
        if len(photos) > 1:  # a piece of the occlusion; a prediction here is of one photo
            asked.append(len(photos))
            time.sleep(3)
        return slow(self, photos, looks)

    monkeypatch.setattr(InMemoryPredictor, "probabilities", probabilities)
    with served(direct, Limits(seconds=8)) as one:  # a busy machine may be five seconds partial with the prediction
        answers = []

        def ask() -> None:
            answers.append(
                one.client.post("/explain", files={"file": ("a.jpg", photo)}, params={"method": "occlusion"})
            )

        drawing = threading.Thread(target=ask)
        drawing.start()
        while not asked:
            time.sleep(0.01)
        told = one.predict(("b.jpg", photo))
        assert told.status_code == 200 and not answers, f"the prediction waits for the whole map: {told.text}"
        drawing.join(60)
        assert answers[0].status_code == 503 and answers[0].json()["kind"] == "overdue"
        assert max(asked) <= 16 and sum(asked) < 64, "it went on after its time"
        assert explain(one, photo)["maps"][0]["method"] == "cells", "the next map is drawn"
