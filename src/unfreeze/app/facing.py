"""What `check --faces` prints: how often no face is found, how large faces are and where they sit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unfreeze.app.console import say, show

if TYPE_CHECKING:
    from unfreeze.data.faces import Faces


def show_faces(found: Faces) -> None:
    """The tables of `uf.faces`, class by class and over all, and its sentence."""
    rows: list[dict[Any, Any]] = [*found.classes.to_dict("records"), found.total]
    columns = ["class", "photos", "no face", "share (95 %)", "several", "area", "side", "x", "y"]
    cells = [
        [
            row["label"] or "all",
            f"{row['photos']:,}",
            f"{row['without']:,}",
            f"{100 * row['share']:.1f} % ({100 * row['low']:.1f}–{100 * row['high']:.1f})" if row["photos"] else "",
            f"{row['several']:,}",
            _quartiles(row, "area"),
            _quartiles(row, "side"),
            _spread(row, "x"),
            _spread(row, "y"),
        ]
        for row in rows
    ]
    title = (
        "Faces. Of the largest in each photo, in %: its area of the photo's and its side of the photo's short side, as "
        "median (quartiles); its centre from the left (x) and the top (y), as mean ± deviation"
    )
    show(title, columns, cells, columns[1:])
    say(found.sentence())
    unread = len(found.photos) - found.total["photos"]
    if unread:
        say(f"{unread:,} photo(s) could not be read and are in none of these figures.")
    say("")


def _quartiles(row: dict[str, Any], what: str) -> str:
    low, middle, high = (100 * row[f"{what}_{q}"] for q in ("q25", "median", "q75"))
    return "" if middle != middle else f"{middle:.0f} ({low:.0f}–{high:.0f})"


def _spread(row: dict[str, Any], what: str) -> str:
    mean, deviation = 100 * row[f"{what}_mean"], 100 * row[f"{what}_sd"]
    return "" if mean != mean else f"{mean:.0f} ± {deviation:.0f}"
