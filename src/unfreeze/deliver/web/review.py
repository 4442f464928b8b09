"""The review page: one suspect after the other, a decision a key, written down before the page says so."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from unfreeze.core.errors import PhotoError, UnfreezeError, VerdictsError
from unfreeze.deliver.pages import templates
from unfreeze.deliver.thumbnails import scaled_jpeg
from unfreeze.deliver.web.deck import Deck
from unfreeze.deliver.web.guard import Guard

SIDES = {"large": 1024, "small": 240}  # pixels of the longer side
_KEPT = 400  # scaled photos held in memory, 0.1 MB each or less


class Decision(BaseModel):
    """What the page sends. id: the photo's number, never its path."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: int = Field(ge=0)
    verdict: Literal["keep", "relabel", "exclude"]
    label: str = Field(default="", max_length=10_000)


def page(deck: Deck, guard: Guard, base: str = "", back: str = "") -> APIRouter:
    """The routes of the review page. base: where they are mounted, as `/runs/masks/review`; back: where it leads."""
    router = APIRouter()
    environment = templates()

    @lru_cache(maxsize=_KEPT)
    def scaled(row: int, side: int) -> bytes:
        return scaled_jpeg(deck.root / deck.paths[row], side)

    @router.get("/", response_class=HTMLResponse)
    def show() -> str:
        return environment.get_template("review.html").render(
            name=deck.root.name or deck.run.path.name,
            run=deck.run.path,
            deck=deck.described(),
            judged=deck.judged,
            form_token=guard.form_token,
            base=base,
            back=back,
        )

    @router.get("/photos/{row}/{size}.jpg")
    def photo(row: int, size: str) -> Response:
        if not 0 <= row < len(deck.paths) or size not in SIDES:
            return Response(status_code=404)
        try:
            content = scaled(row, SIDES[size])
        except PhotoError as error:
            return Response(error.reason, 404, media_type="text/plain")
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=600"})

    @router.post("/verdicts")
    def judge(decision: Decision) -> JSONResponse:
        return _answered(deck, lambda: deck.judge(decision.id, decision.verdict, decision.label))

    @router.post("/verdicts/undo")
    def undo(request: Request) -> JSONResponse:
        return _answered(deck, deck.undo)

    return router


def _answered(deck: Deck, act: Any) -> JSONResponse:
    """The deck's state after `act`, and what it returned; an error as a line that the page shows."""
    try:
        row = act()
    except VerdictsError as error:
        return JSONResponse({"error": str(error)}, 422)
    except (UnfreezeError, OSError) as error:
        return JSONResponse({"error": f"Not saved: {error}"}, 500)
    return JSONResponse({"id": row, **deck.state()})
