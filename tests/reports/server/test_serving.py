"""A served run: the same numbers as predict, a reason for every refusal, requests that take turns."""

from __future__ import annotations

import asyncio
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

import unfreeze as uf
from servedruns import BOUNDARY, Here, form, head, picture, served, until
from unfreeze.core.dataset import probability_columns
from unfreeze.core.errors import RunError
from unfreeze.core.runs import Run
from unfreeze.data.decode_process import pixels_of
from unfreeze.data.image_structure import SCANS, count_jpeg_scans
from unfreeze.inference.confidence import ConfidenceTable
from unfreeze.inference.in_memory import InMemoryPredictor
from unfreeze.inference.predictor import Classifier
from unfreeze.server.serve.batching import Batcher
from unfreeze.server.serve.launch import serve, token_for
from unfreeze.server.serve.limits import KINDS, Limits
from unfreeze.server.serve.metrics import Metrics
from unfreeze.server.serve.schemas import Prediction, predicted

TOKEN = "a-token-of-a-test"


def told(answer: httpx2.Response) -> list[dict[str, Any]]:
    return list(answer.json()["photos"])


def complaint(answer: httpx2.Response, kind: str) -> str:
    """The reason of a refusal, which must be of this kind."""
    found = answer.json()
    assert (answer.status_code, found["kind"]) == (KINDS[kind], kind), answer.text
    assert found["error"] and "\n" not in found["error"]
    return str(found["error"])


def many_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes so often again."""
    data = picture((64, 64), "JPEG", progressive=True)
    last = data[data.rfind(b"\xff\xda") : -2]
    return data[:-2] + last * count + data[-2:]


def measured(here: Here) -> dict[str, float]:
    """The samples of /metrics by name and labels."""
    text = here.client.get("/metrics").text
    return {
        " ".join((sample.name, *sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


# What it answers


@pytest.mark.parametrize("tta", [None, "plain", "flip"])
def test_probabilities_are_those_of_predict(here: Here, probe_run: Run, probe_photos: Path, tta: str | None) -> None:
    files = sorted(probe_photos.rglob("*.jpg"))
    expected = uf.load(probe_run).predict(files, tta=tta)
    answer = here.predict(*((file.name, file.read_bytes()) for file in files), params={"tta": tta} if tta else {})
    assert answer.status_code == 200
    found = told(answer)
    assert [one["name"] for one in found] == [file.name for file in files]
    assert [one["label"] for one in found] == list(expected["label"])
    assert all(tuple(one["probabilities"]) == probe_run.classes for one in found), "the run's order of classes"
    ours = np.array([list(one["probabilities"].values()) for one in found])
    np.testing.assert_allclose(ours, expected[probability_columns(probe_run.classes)], atol=1e-4)
    np.testing.assert_allclose(ours.sum(1), 1)
    for one, row in zip(found, ours, strict=True):
        assert one["error"] is None and one["certainty"]["probability"] == pytest.approx(row.max())
        certainty = one["certainty"]
        if certainty["word"] == "unknown":
            assert certainty["right"] is certainty["low"] is certainty["high"] is None and certainty["photos"] == 0
        else:
            assert 0 <= certainty["low"] <= certainty["right"] <= certainty["high"] <= 1


def test_a_probability_that_was_never_seen_has_no_share(probe_run: Run) -> None:
    """Whatever the run, the answer fits its own schema and claims nothing below its least certain prediction."""
    certainty = ConfidenceTable.of(Classifier.load(probe_run))
    classes = probe_run.classes
    low = certainty.steps[0].low - 0.01
    rest = (1 - low) / (len(classes) - 1)
    answer = predicted("a.jpg", np.array([low, *[rest] * (len(classes) - 1)]), classes, certainty)
    assert Prediction.model_validate(answer).certainty is not None
    assert answer["certainty"]["word"] == "unknown" and answer["certainty"]["photos"] == 0
    assert "%" not in answer["certainty"]["meaning"] and answer["certainty"]["right"] is None


def test_two_runs_answer_as_their_blend_does(
    probe_run: Run, probe_photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    recipe = probe_run.recipe.replace(**{"probe.Cs": [0.03]})
    other = uf.fit(uf.read(probe_photos, recipe.source), recipe, tmp_path_factory.mktemp("blend") / "other")
    files = sorted(probe_photos.rglob("*.jpg"))[::5]
    blend = uf.load(f"{probe_run.path}+{other.path}")
    expected = blend.predict(files)[probability_columns(probe_run.classes)].to_numpy()
    with served(InMemoryPredictor.load(f"{probe_run.path}+{other.path}")) as here:
        found = told(here.predict(*((file.name, file.read_bytes()) for file in files)))
        assert len(here.client.get("/healthz").json()["runs"]) == 2
    np.testing.assert_allclose([list(one["probabilities"].values()) for one in found], expected, atol=1e-4)


def test_bad_photos_among_good_ones_have_an_error_each(here: Here, photo: bytes) -> None:
    sent = [b"no photo", photo, b"", photo[: len(photo) // 2], photo, picture((9000, 9000), "PNG"), many_scans(SCANS)]
    before = here.count("damaged")
    answer = here.predict(*((f"{i}", one) for i, one in enumerate(sent)))
    assert answer.status_code == 200
    found = told(answer)
    assert [one["label"] is not None for one in found] == [False, True, False, False, True, False, False]
    assert found[1]["probabilities"] == found[4]["probabilities"]
    for one, reason in zip(
        (found[0], *found[2:4], *found[5:]),
        (
            "not an image",
            "the file is empty",
            "damaged",
            "more than the limit of 50,000,000",
            f"more than {SCANS} scans",
        ),
        strict=True,
    ):
        assert reason in one["error"] and one["probabilities"] is None and one["certainty"] is None
    assert here.count("damaged") == before + 2


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"no photo", "not_an_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image"),
        (b"", "empty"),
        (picture((64, 64), "JPEG")[:400], "damaged"),
        (picture((8000, 8000), "PNG"), "too_many_pixels"),
    ],
    ids=["text", "svg", "eps", "empty", "cut off", "large"],
)
def test_what_is_no_photo_is_refused_with_a_reason(here: Here, data: bytes, kind: str) -> None:
    before = here.count(kind)
    answer = here.predict(("one.jpg", data))
    assert answer.status_code == KINDS[kind] and told(answer)[0]["error"]
    assert here.count(kind) == before + 1


def test_scans_are_counted_in_the_first_image_alone() -> None:
    plain = picture((64, 64), "JPEG")
    assert count_jpeg_scans(plain) == 1 and pixels_of(plain) == 64 * 64
    assert count_jpeg_scans(many_scans(90)) > 90
    assert pixels_of(plain + b"\xff\xda" * 90) == 64 * 64, "what follows the end of a photo, as a film does, is its own"
    assert pixels_of(b"\xff\xd8" + b"\xff\xda" * 90) == 0 == pixels_of(b"no photo")


# What it refuses


@pytest.mark.parametrize(
    ("body", "headers", "kind"),
    [
        (b"\xff\xd8", {"Content-Type": "image/jpeg"}, "not_multipart"),
        (b"{}", {}, "not_multipart"),
        (b"", {"Content-Type": "multipart/form-data"}, "malformed"),
        (b"", {"Content-Type": f"multipart/form-data; boundary={'b' * 300}"}, "malformed"),
        (b"rubbish", {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}, "malformed"),
        (form(b"x", ended=False), {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}, "malformed"),
        (form(), {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}, "no_photo"),
        (form(*[b""] * 65), {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}, "too_many_files"),
        (
            f"--{BOUNDARY}\r\nA: b\r\n\r\n\r\n".encode() * 65,
            {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"},
            "malformed",
        ),
        (bytes(33_000_000), {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}, "too_large"),
        (
            f"--{BOUNDARY}\r\n{'x' * 9000}: y\r\n\r\n".encode(),
            {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"},
            "malformed",
        ),
    ],
    ids=[
        "bare",
        "json",
        "no boundary",
        "long boundary",
        "rubbish",
        "cut off",
        "no file",
        "many files",
        "many fields",
        "large",
        "long header",
    ],
)
def test_other_requests_are_refused_with_a_reason(here: Here, body: bytes, headers: dict[str, str], kind: str) -> None:
    before = here.count(kind)
    complaint(here.client.post("/predict", content=body, headers=headers), kind)
    assert here.count(kind) == before + 1
    assert here.served.held.photos == here.served.held.bytes == 0, "nothing is held of what was refused"


def test_form_fields_and_unknown_options(here: Here, photo: bytes) -> None:
    answer = here.client.post("/predict", data={"note": "x"}, files={"any": ("ä.jpg", photo)})
    assert [one["name"] for one in told(answer)] == ["ä.jpg"]
    assert "tta" in complaint(here.predict(("a.jpg", photo), params={"tta": "rotate"}), "wrong_option")
    complaint(here.client.get("/predict"), "wrong_method")
    complaint(here.client.get("/elsewhere"), "not_found")
    complaint(here.client.get("/static/../serving.py"), "not_found")


def test_a_body_without_a_length_is_refused(here: Here, photo: bytes) -> None:
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    assert "Content-Length" in complaint(
        here.client.post("/predict", content=iter([form(photo)]), headers=headers), "no_length"
    )


def test_pages_elsewhere_cannot_ask(here: Here, photo: bytes) -> None:
    assert here.client.get("/", headers={"Host": "evil.example"}).status_code == 421
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
        complaint(here.predict(("a.jpg", photo), headers=headers), "foreign_page")
    same = {"Origin": f"http://127.0.0.1:{here.port}"}
    assert here.predict(("a.jpg", photo), headers=same).status_code == 200


def test_who_has_the_token_is_answered_and_no_one_else(direct: InMemoryPredictor, photo: bytes) -> None:
    with served(direct, token=TOKEN) as here:
        for path in ("/", "/docs", "/openapi.json", "/metrics", "/?token=wrong"):
            answer = here.client.get(path)
            complaint(answer, "no_token")
            assert answer.headers["www-authenticate"] == "Bearer"
        complaint(here.predict(("a.jpg", photo)), "no_token")
        complaint(here.predict(("a.jpg", photo), headers={"Authorization": "Bearer wrong"}), "no_token")
        assert here.predict(("a.jpg", photo), headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert here.client.get("/healthz").json() == {"status": "ok"}
        assert here.client.get("/static/serve.js").status_code == 200
        entered = here.client.get(f"/?token={TOKEN}")
        cookie = entered.headers["set-cookie"].lower()
        assert entered.status_code == 303 and "httponly" in cookie and "samesite=strict" in cookie
        assert TOKEN not in here.client.get("/").text and here.client.get("/").status_code == 200
        assert here.predict(("a.jpg", photo)).status_code == 200, "the page's cookie"
        assert "runs" in here.client.get("/healthz").json()


@pytest.mark.parametrize(
    ("host", "given", "expected"),
    [("127.0.0.1", None, None), ("::1", None, None), ("0.0.0.0", "none", None), ("127.0.0.1", TOKEN, TOKEN)],
)
def test_when_a_token_is_needed(host: str, given: str | None, expected: str | None) -> None:
    assert token_for(host, given) == expected
    assert len(token_for("0.0.0.0", None) or "") == 32


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"body_mb": 0}, "a limit is a positive number"),
        ({"seconds": float("nan")}, "a limit is a positive number"),
        ({"connections": -1}, "a limit is a positive number"),
        ({"files": 300}, "300 files a request are more than the 256"),
        ({"body_mb": 300}, "300 MB is more than the 256 MB"),
    ],
)
def test_limits_that_are_none(limits: dict[str, Any], reason: str) -> None:
    with pytest.raises(RunError, match=reason):
        Limits(**limits)


def test_what_cannot_be_served(probe_run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="absent"):
        serve(tmp_path / "absent", port=0)
    with pytest.raises(RunError, match="at least 8 letters"):
        serve(probe_run, port=0, token="short")
    with pytest.raises(RunError, match="need 2,000,000,256 open files"):
        serve(probe_run, port=0, limits=Limits(connections=10**9))


# What is told of it


def test_every_answer_is_described_and_the_description_is_shown(here: Here) -> None:
    described = here.client.get("/openapi.json").json()
    assert {"/predict", "/explain", "/healthz", "/metrics"} <= set(described["paths"])
    statuses = set(described["paths"]["/predict"]["post"]["responses"])
    assert statuses >= {str(KINDS[kind]) for kind in KINDS if kind not in ("not_found", "wrong_method", "failed")}
    page = here.client.get("/docs").text
    assert "POST" in page and "/predict" in page and f"http://127.0.0.1:{here.port}/predict" in page
    for text in (page, here.client.get("/").text):
        assert not re.findall(r"""(?:src|href)=["'](?!/|#)""", text), "nothing is loaded from elsewhere"
        assert "<script>" not in text and "style=" not in text, "the page's own policy forbids it"
    policy = here.client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy


def test_metrics_count_what_was_done(direct: InMemoryPredictor, photo: bytes) -> None:
    with served(direct) as here:
        here.predict(("a.jpg", photo), ("b.jpg", b"no photo"), ("c.jpg", photo))
        here.client.post("/predict")
        here.client.get("/nowhere")
        found = measured(here)
        assert found["unfreeze_photos_total"] == found["unfreeze_batch_photos_sum"] == 2
        assert found["unfreeze_errors_total not_an_image"] == found["unfreeze_errors_total not_multipart"] == 1
        assert found["unfreeze_requests_total /predict 200"] == found["unfreeze_requests_total /predict 415"] == 1
        assert found["unfreeze_requests_total other 404"] == 1
        assert found["unfreeze_request_seconds_count /predict"] == 2
        assert found["unfreeze_queue_photos"] == found["unfreeze_queue_bytes"] == 0
        assert found["process_resident_memory_bytes"] > 1e7
        health = here.client.get("/healthz").json()
        assert health["classes"] == list(direct.classes) and health["limits"]["body_mb"] == 32


# Many at once


def together(here: Here, photo: bytes, count: int) -> list[httpx2.Response]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda i: here.predict((f"{i}.jpg", photo)), range(count)))


def test_photos_that_come_together_are_predicted_together(direct: InMemoryPredictor, photo: bytes) -> None:
    with served(direct, Limits(batch=4, batch_ms=200)) as here:
        answers = together(here, photo, 24)
        assert [told(answer)[0]["name"] for answer in answers] == [f"{i}.jpg" for i in range(24)]
        found = measured(here)
        assert found["unfreeze_batch_photos_sum"] == 24 and found["unfreeze_batch_photos_count"] < 24
        assert found["unfreeze_batch_photos_bucket 4.0"] == found["unfreeze_batch_photos_count"], "never more than 4"
    first = [list(one["probabilities"].values()) for answer in answers for one in told(answer)]
    np.testing.assert_allclose(first, np.tile(first[0], (24, 1)), atol=1e-5)


def test_one_who_sends_much_does_not_keep_others_waiting(
    direct: InMemoryPredictor, photo: bytes, slow_photo: bytes
) -> None:
    huge = picture((6000, 3000), "PNG")  # large enough for the thread of the large ones
    with served(direct, Limits(seconds=120)) as here, ThreadPoolExecutor(1) as pool:
        much = pool.submit(here.predict, *[("slow", slow_photo)] * 6, *[("huge", huge)] * 3)
        until(lambda: here.served.held.photos)
        for _ in range(2):
            assert here.predict(("quick.jpg", photo)).status_code == 200
        assert not much.done(), "nine slow photos take longer than two in between"
        assert [one["error"] for one in told(much.result())] == [None] * 9


def test_photos_and_other_tasks_take_turns(direct: InMemoryPredictor, photo: bytes) -> None:
    async def asked(batcher: Batcher) -> int:
        done = 0

        def task() -> None:
            nonlocal done
            done += 1
            time.sleep(0.05)

        tasks = asyncio.gather(*(batcher.run(task) for _ in range(200)))  # ten seconds of them are here already
        await asyncio.sleep(0)
        (found,) = await batcher.predict([photo], None)
        assert isinstance(found, np.ndarray)
        first = done
        await tasks
        return first

    batcher = Batcher(direct, Limits(), Metrics())
    batcher.start()
    try:
        assert asyncio.run(asked(batcher)) < 200, "the photo waited for every task"
    finally:
        batcher.stop()


def test_who_hangs_up_is_worked_for_no_longer(direct: InMemoryPredictor, photo: bytes, slow_photo: bytes) -> None:
    with served(direct) as here:
        body = form(*[slow_photo] * 60)
        with here.connect() as one:
            one.sendall(head(here.port, len(body)) + body)
            until(lambda: here.served.held.photos == 60)
        assert until(lambda: here.served.held.photos == 0) < 2
        assert until(lambda: here.served.batcher._decoding == 0) < 3, "sixty would take far longer"
        assert here.count("gone") == 1 and here.served.held.bytes == 0
        assert here.predict(("a.jpg", photo)).status_code == 200


def test_too_much_waiting_and_too_partial(direct: InMemoryPredictor, photo: bytes, slow_photo: bytes) -> None:
    with served(direct, Limits(files=4, waiting=4, seconds=1.0)) as here, ThreadPoolExecutor(1) as pool:
        for _ in range(5):  # on a busy machine the four may be given up before the fifth has come
            partial = pool.submit(here.predict, *[("slow", picture((6900, 7000), "PNG"))] * 4)
            until(lambda: here.served.held.photos == 4)
            full = here.predict(("a.jpg", photo))
            if full.status_code != 200:
                break
            partial.result()
        complaint(full, "queue_full")
        assert full.headers["retry-after"] == "1"
        complaint(partial.result(), "overdue")
        until(lambda: here.served.batcher._decoding == 0)
        assert here.predict(("a.jpg", photo)).status_code == 200
