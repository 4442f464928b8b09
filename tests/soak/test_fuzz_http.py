"""Random requests against the served run and the studio: an answer that is known, never a 500, and others go on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from fuzzing import CASES, JSON, damaged, fuzzed, ours, settings
from servedruns import BOUNDARY, Here, form, picture, served
from unfreeze.core.runs import Run
from unfreeze.inference.in_memory import InMemoryPredictor
from unfreeze.reports.run_report import write_report
from unfreeze.server.access import AccessPolicy
from unfreeze.server.serve.limits import KINDS
from unfreeze.server.studio.app import studio_app
from unfreeze.server.studio.job_pages import asked, parse_form
from unfreeze.server.studio.jobs import Jobs
from unfreeze.server.studio.library import Library
from unfreeze.server.studio.predict_pages import UPLOADS, UploadError, unpacked

ANSWERED = {200, 303, 304, *KINDS.values()} - {500}
LATIN = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=12)
METHODS = st.one_of(
    st.sampled_from(["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"]),
    st.text("ABCXYZ", min_size=1, max_size=8),
)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            *("Accept", "Accept-Encoding", "Authorization", "Cookie", "Content-Type", "Origin", "Range", "Referer"),
            *("Sec-Fetch-Site", "Sec-Fetch-Mode", "If-None-Match", "If-Modified-Since", "X-Unfreeze-Token", "Expect"),
            *("X-Forwarded-For", "X-HTTP-Method-Override", "HX-Request", "Upgrade", "Connection"),
        ]
    ),
    st.one_of(
        LATIN,
        st.sampled_from(["same-origin", "cross-site", "null", "*/*", "text/plain", "bytes=0-", "bytes=9-1", "gzip"]),
        st.sampled_from(["application/json", "multipart/form-data; boundary=x", "websocket", "keep-alive", "a=b; a=b"]),
    ),
    max_size=4,
)
PART = st.one_of(
    LATIN.map(quote),
    st.text(max_size=6).map(lambda one: quote(one, safe="")),
    st.sampled_from(
        ["..", "%2e%2e", "%00", "%2f", "-1", "0", "9" * 400, "static", "photos", "small.jpg", "%ff", "~", ":"]
    ),
)
QUERY = st.one_of(
    st.just(""),
    st.dictionaries(
        st.sampled_from(
            ["tta", "method", "token", "page", "sort", "down", "only", "run", "class", "group", "kind", "v"]
        ),
        st.one_of(st.text(max_size=6), st.sampled_from(["-1", "9" * 400, "nan", "plain", "colours", "wrong", "true"])),
        max_size=4,
    ).map(urlencode),
    LATIN.map(quote),
)
BODY = st.one_of(
    st.just(b""),
    st.binary(max_size=300),
    JSON.map(lambda one: json.dumps(one).encode()),
    damaged(form(picture((40, 30), "JPEG"))),
)


@pytest.fixture(scope="module")
def run(run_of_24: Run) -> Run:
    return run_of_24


@pytest.fixture(scope="module")
def here(run: Run) -> Iterator[Here]:
    with served(InMemoryPredictor.load(run)) as one:
        yield one


@pytest.fixture(scope="module")
def addresses(here: Here) -> st.SearchStrategy[tuple[str, str]]:
    """Methods and paths: those that the server itself describes, and any other."""
    described = here.client.get("/openapi.json").json()["paths"]
    known = [(method.upper(), path) for path, methods in described.items() for method in methods]
    assert ("POST", "/predict") in known and ("GET", "/metrics") in known
    return st.one_of(
        st.sampled_from(known),
        st.tuples(METHODS, st.sampled_from([*described, "/", "/docs", "/openapi.json", "/static/serve.js"])),
        st.tuples(METHODS, st.lists(PART, max_size=4).map(lambda parts: "/" + "/".join(parts))),
        st.tuples(METHODS, PART.map(lambda part: f"/static/{part}")),
    )


@fuzzed
@given(
    case=st.data(),
    query=QUERY,
    headers=HEADERS,
    body=BODY,
    kind=st.sampled_from([f"multipart/form-data; boundary={BOUNDARY}", "multipart/form-data", "text/plain", None]),
)
def test_serve(
    here: Here,
    addresses: st.SearchStrategy[tuple[str, str]],
    case: st.DataObject,
    query: str,
    headers: dict[str, str],
    body: bytes,
    kind: str | None,
) -> None:
    method, path = case.draw(addresses)
    headers = {**headers, **({"Content-Type": kind} if kind else {})}
    try:
        answer = here.client.request(method, f"{path}?{query}", headers=headers, content=body)
    except httpx2.RemoteProtocolError:  # closed, which is an answer to what is no HTTP
        answer = None
    except httpx2.InvalidURL:  # refused on this side
        return
    if answer is not None:
        assert answer.status_code in ANSWERED, f"{method} {path}: {answer.status_code} {answer.text[:200]}"
        assert "Traceback" not in answer.text
        if answer.status_code >= 400 and method != "HEAD" and answer.headers.get("content-type") == "application/json":
            told = answer.json()
            assert "photos" in told or KINDS[told["kind"]] == answer.status_code
    assert here.served.batcher.alive


# The studio

GUARD = AccessPolicy("127.0.0.1", 8123, uploads=UPLOADS)
PAGES = [
    *("/", "/runs", "/data", "/jobs", "/jobs/new", "/compare", "/runs/{run}", "/runs/{run}/live", "/runs/{run}/report"),
    *(
        "/runs/{run}/photos",
        "/runs/{run}/photo/{n}/small.jpg",
        "/runs/{run}/predict",
        "/runs/{run}/predict/{x}/{n}.jpg",
    ),
    *("/runs/{run}/review/", "/runs/{run}/review/photos/{n}/large.jpg", "/runs/{run}/review/corrections"),
    *("/runs/{run}/review/corrections/undo", "/questions/{x}", "/jobs/{x}", "/jobs/{x}/live", "/jobs/{x}/page"),
    *("/jobs/{x}/stop", "/jobs/{x}/resume", "/data/{key}", "/data/{key}/photos", "/data/{key}/eda", "/static/{x}"),
    *("/data/{key}/photo/{n}/large.jpg", "/nowhere"),
]
FIELDS = st.dictionaries(
    st.sampled_from(
        [
            *("kind", "source", "inside", "label", "group", "group_regex", "strategy", "quality", "backbone", "folds"),
            *("seed", "budget", "run", "other"),
        ]
    ),
    st.one_of(
        st.text(max_size=8),
        st.sampled_from(
            ["fit", "check", "probe", "-1", "9" * 99, "--run=/etc", "../..", "(?P<group>", "1h", "a\nb", "KEY"]
        ),
    ),
    max_size=8,
)


@pytest.fixture(scope="module")
def library(run: Run) -> Library:
    write_report(run.path)
    return Library(run.path.parent)


@pytest.fixture(scope="module")
def client(library: Library) -> TestClient:
    """Of a studio whose errors come out here: a 500 would not even be answered."""
    client = TestClient(
        studio_app(library, Jobs(library.own / "jobs"), GUARD), base_url="http://127.0.0.1:8123", follow_redirects=False
    )
    assert client.get(f"/?token={GUARD.ticket()}").status_code == 303
    return client


@fuzzed
@given(
    method=st.one_of(st.sampled_from(["GET", "GET", "POST"]), METHODS),
    page=st.sampled_from(PAGES),
    values=st.fixed_dictionaries(
        {
            "run": st.one_of(st.sampled_from(["colours"] * 3), PART),
            "n": st.one_of(st.integers(-1, 30).map(str), PART),
            "x": PART,
            "key": st.one_of(st.just("KEY"), PART),
        }
    ),
    query=QUERY,
    headers=HEADERS,
    body=st.one_of(BODY, FIELDS.map(lambda fields: urlencode(fields).encode())),
    known=st.booleans(),
)
def test_studio(
    client: TestClient,
    library: Library,
    method: str,
    page: str,
    values: dict[str, str],
    query: str,
    headers: dict[str, str],
    body: bytes,
    known: bool,
) -> None:
    key = next(iter(library.sources()))
    path = page.format(**{name: value.replace("KEY", key) for name, value in values.items()})
    if known:  # who has the page's token, so that what is sent is looked at
        headers = {**headers, "X-Unfreeze-Token": GUARD.form_token}
        headers.pop("Origin", None)
        headers.pop("Sec-Fetch-Site", None)
    if page.endswith("/predict") and method == "POST" and not body.startswith(b"["):
        body = b'[["a.jpg", 10]]\n' + body[:10]
    try:
        answer = client.request(method, f"{path}?{query}", headers=headers, content=body)
    except httpx2.InvalidURL:
        return
    assert answer.status_code < 500, f"{method} {path}: {answer.status_code} {answer.text[:200]}"
    assert "Traceback" not in answer.text and "root:x:" not in answer.text
    assert not library.own.joinpath("jobs").exists() or not list(library.own.glob("jobs/*/job.json")), "nothing began"


@fuzzed
@given(fields=FIELDS, more=st.binary(max_size=30))
def test_forms(library: Library, fields: dict[str, str], more: bytes) -> None:
    """What a form asks for is an argument list without a value that could be taken for an option, or is refused."""
    key = next(iter(library.sources()))
    fields = {"kind": "fit", "source": key} | {name: value.replace("KEY", key) for name, value in fields.items()}
    ours(lambda: parse_form(more))
    wish = ours(lambda: asked(parse_form(urlencode(fields).encode()), library, lambda name: name == "known"))
    if wish is not None:
        assert wish.arguments[0] == wish.kind
        for argument in wish.arguments[1:]:
            assert re.match(r"--[a-z-]+=|/", argument), argument
        assert not wish.run or Path(wish.run).parent == library.folder


@fuzzed
@given(
    st.one_of(
        st.binary(max_size=60),
        JSON.map(lambda one: json.dumps(one).encode() + b"\n"),
        damaged(b'[["a.jpg", 3], ["b", 4]]\nabcdefg'),
        st.just(b"[" * 70_000 + b"\n"),
    )
)
def test_uploads(body: bytes) -> None:
    try:
        files = unpacked(body)
    except UploadError as error:
        assert str(error)
        return
    assert b"".join(data for _, data in files) == body.partition(b"\n")[2]


CORRECTION = st.one_of(
    JSON,
    st.fixed_dictionaries(
        {"id": st.one_of(st.integers(-1, 30), JSON), "action": st.sampled_from(["keep", "relabel", "exclude", "x"])},
        optional={"label": st.one_of(st.sampled_from(["red", "blue", ""]), st.text(max_size=5)), "more": JSON},
    ),
)


@settings(fuzzed, max_examples=max(20, CASES // 4))
@given(st.one_of(CORRECTION.map(lambda one: json.dumps(one).encode()), damaged(b'{"id": 1, "action": "keep"}')))
def test_review(client: TestClient, run: Run, body: bytes) -> None:
    answer = client.post(
        "/runs/colours/review/corrections",
        content=body,
        headers={"X-Unfreeze-Token": GUARD.form_token, "Content-Type": "application/json"},
    )
    assert answer.status_code in (200, 202, 400, 422), f"{answer.status_code} {answer.text[:200]}"


@pytest.mark.parametrize("body", [b"Infinity", b"NaN", b'{"id": -Infinity}', b"[" * 60_000, b'{"id": 1e999}', b"\xff"])
def test_numbers_that_json_has_not_are_refused(client: TestClient, body: bytes) -> None:
    """`Infinity` was repeated in the answer that refused it, which no JSON can hold: a 500."""
    headers = {"X-Unfreeze-Token": GUARD.form_token, "Content-Type": "application/json"}
    answer = client.post("/runs/colours/review/corrections", content=body, headers=headers)
    while answer.status_code == 202:
        answer = client.post("/runs/colours/review/corrections", content=body, headers=headers)
    assert answer.status_code in (400, 422) and answer.text


def test_any_length_that_is_stated_is_no_trouble(client: TestClient) -> None:
    for length in ("9" * 5000, "-1", "1e9", "\u0663", ""):
        request = client.build_request("GET", "/runs")
        request.headers["Content-Length"] = length.encode("utf-8").decode("latin-1")
        assert client.send(request).status_code in (200, 413)


def test_an_answer_needs_no_secret_but_its_own(client: TestClient) -> None:
    stranger: dict[str, Any] = {"base_url": "http://127.0.0.1:8123", "follow_redirects": False}
    fresh = TestClient(client.app, **stranger)
    for page in PAGES:
        assert fresh.get(page.format(run="colours", n="0", x="x", key="k")).status_code == 403 or "static" in page
