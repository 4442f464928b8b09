"""Random cases for whatever reads what others wrote: how many, damaged bytes, any JSON, and what may come of it.

UNFREEZE_FUZZ: how many cases each target gets. Without it a slice runs, the same cases every time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from unfreeze.core.errors import UnfreezeError

T = TypeVar("T")
CASES = int(os.environ.get("UNFREEZE_FUZZ", "100"))
fuzzed = settings(
    max_examples=CASES,
    derandomize="UNFREEZE_FUZZ" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def ours(call: Callable[[], T]) -> T | None:
    """What a call returns; None where it ends in one of our errors, of one printable line. Anything else is a bug."""
    try:
        return call()
    except UnfreezeError as error:
        text = str(error)
        assert text and "\n" not in text and text.encode("utf-8")
        return None


@st.composite
def damaged(cases: st.DrawFn, whole: bytes) -> bytes:
    """The bytes with some overwritten, cut out, doubled, or set to numbers that are extreme."""
    data = bytearray(whole)
    for _ in range(cases(st.integers(1, 5))):
        if not data:
            break
        at = cases(st.one_of(st.integers(0, len(data) - 1), st.integers(0, min(80, len(data) - 1))))
        kind = cases(st.sampled_from(["byte", "number", "cut", "end", "twice", "noise"]))
        if kind == "byte":
            data[at] = cases(st.integers(0, 255))
        elif kind == "number":
            number = cases(
                st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"])
            )
            data[at : at + 4] = number
        elif kind == "cut":
            del data[at : at + cases(st.integers(1, 40))]
        elif kind == "end":
            del data[at:]
        elif kind == "twice":
            data[at:at] = data[at : at + cases(st.integers(1, 60))]
        else:
            data[at:at] = cases(st.binary(max_size=20))
    return bytes(data)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=8,
)
