"""Whatever is sent to a served run: an answer that its description knows, or a closed connection."""

from __future__ import annotations

import contextlib
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servedruns import BOUNDARY, Here, form, head, picture, rest_of
from unfreeze.server.serve.limits import KINDS

PARTS = st.tuples(
    st.text(st.characters(codec="utf-8", exclude_characters='"\r\n\\'), max_size=8),
    st.one_of(
        st.sampled_from([b"", picture((40, 30), "JPEG"), picture((40, 30), "PNG"), picture((9, 9), "GIF"), b"GIF89a"]),
        st.integers(1, 600).map(lambda n: picture((40, 30), "JPEG")[:n]),
        st.binary(max_size=200),
    ),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(PARTS, max_size=5),
    tta=st.one_of(st.none(), st.sampled_from(["plain", "flip"]), st.text(max_size=5)),
    path=st.sampled_from(["/predict", "/predict", "/predict/", "/explain"]),
    cut=st.one_of(st.none(), st.integers(0, 400)),
    kind=st.sampled_from([f"multipart/form-data; boundary={BOUNDARY}", "multipart/form-data", "text/plain", ""]),
)
def test_any_form_gets_an_answer_that_is_described(
    here: Here, parts: list[tuple[str, bytes]], tta: str | None, path: str, cut: int | None, kind: str
) -> None:
    described = here.client.get("/openapi.json").json()
    body = b"".join(
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="f"; filename="{name}"\r\n\r\n'.encode() + data + b"\r\n"
        for name, data in parts
    )
    body = (body + f"--{BOUNDARY}--\r\n".encode())[:cut]
    params = {} if tta is None else {"tta": tta}
    answer = here.client.post(path, content=body, headers={"Content-Type": kind}, params=params)
    found = answer.json()
    known = described["paths"].get(path, {}).get("post", {}).get("responses", {"404": None})
    assert str(answer.status_code) in known, f"{answer.status_code}: {answer.text}"
    assert answer.status_code < 500
    if "photos" in found:
        assert [one["name"] for one in found["photos"]] == [name for name, _ in parts if name]
        for one in found["photos"]:
            assert set(one) == set(described["components"]["schemas"]["Prediction"]["properties"])
            assert (one["error"] is None) == (one["label"] is not None)
            assert one["error"] or sum(one["probabilities"].values()) == pytest.approx(1)
    elif answer.status_code != 200:
        assert set(found) == {"error", "kind"} and KINDS[found["kind"]] == answer.status_code


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sent=st.one_of(
        st.binary(max_size=300),
        st.builds(lambda noise, at: noise_in(noise, at), st.binary(min_size=1, max_size=8), st.integers(0, 300)),
        st.builds(
            lambda name, value: b"GET / HTTP/1.1\r\n" + name + b":" + value + b"\r\n\r\n", st.binary(), st.binary()
        ),
    )
)
def test_rubbish_ends_in_an_answer_or_a_closed_connection(here: Here, sent: bytes) -> None:
    with here.connect() as one:
        with contextlib.suppress(ConnectionError):
            one.sendall(sent.replace(b"PORT", str(here.port).encode()))
            one.shutdown(socket.SHUT_WR)
        answer = rest_of(one, 10.0)
    assert not answer or answer.startswith(b"HTTP/1.1 ")
    assert b" 500 " not in answer[:20]
    assert here.client.get("/healthz").status_code == 200


def noise_in(noise: bytes, at: int) -> bytes:
    """A good request with some bytes of it overwritten."""
    good = head(0, 300).replace(b":0\r\n", b":PORT\r\n") + form(bytes(100))
    return good[:at] + noise + good[at + len(noise) :]
