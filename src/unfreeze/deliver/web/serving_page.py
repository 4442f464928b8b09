"""The page where one drops a photo, and the API's description as a page that needs no network."""

from __future__ import annotations

import re
from typing import Any

from markupsafe import Markup, escape

from unfreeze.deliver.pages import templates
from unfreeze.deliver.plots import number
from unfreeze.deliver.web.serving_limits import Limits
from unfreeze.judge.metrics import out_of_fold_scores
from unfreeze.learn.blend import Blend
from unfreeze.learn.direct import Direct


def about(direct: Direct) -> dict[str, Any]:
    """What is served: runs and weights, classes, networks and their engines."""
    source = direct.source
    runs = [c.run for c in source.classifiers] if isinstance(source, Blend) else [source.run]
    weights = source.weights.tolist() if isinstance(source, Blend) else [1.0]
    return {
        "runs": [
            {"name": run.path.resolve().name, "weight": round(weight, 4), "strategies": list(run.strategies)}
            for run, weight in zip(runs, weights, strict=True)
        ],
        "classes": list(direct.classes),
        "networks": [{"title": r.graph.title(), "engine": r.engine.name} for r in direct.readers],
    }


def page(direct: Direct, limits: Limits, maps: bool) -> str:
    """The page at `/`. maps: whether a photo's map is drawn unasked, or only where somebody asks for it."""
    told = about(direct)
    accuracy = _accuracy(direct)
    return (
        templates()
        .get_template("serve.html")
        .render(
            name=" + ".join(run["name"] for run in told["runs"]),
            classes=told["classes"],
            networks=told["networks"],
            accuracy=accuracy["accuracy"],
            photos=number(accuracy["photos"], "photo"),
            limits=limits,
            maps=maps,
            settings={"maps": maps, "body": limits.body, "seconds": limits.seconds},
        )
    )


def _accuracy(direct: Direct) -> dict[str, Any]:
    """Out of fold; of a blend, with weights that were chosen on the same photos."""
    source = direct.source
    if not isinstance(source, Blend):
        found = source.run.scores()["out_of_fold"]
        return {"accuracy": found["accuracy"], "photos": found["photos"]}
    from unfreeze.judge.selection import blended

    own = source.out_of_fold
    scores = out_of_fold_scores(own.truth, blended(own.probas, source.weights), own.groups, own.classes)
    return {"accuracy": scores["accuracy"], "photos": len(own.truth)}


def docs(description: dict[str, Any], base: str) -> str:
    """The page at `/docs`, of the same description as /openapi.json. base: the server's address, ends in a slash."""
    schemas = description.get("components", {}).get("schemas", {})
    calls = [
        {
            "method": method.upper(),
            "path": path,
            "summary": call.get("summary", ""),
            "text": _marked(call.get("description", "")),
            "parameters": [
                {"name": p["name"], "values": ", ".join(_words(p["schema"])), "required": p.get("required", False)}
                for p in call.get("parameters", [])
            ],
            "body": "multipart/form-data" if "requestBody" in call else "",
            "responses": [
                {"status": status, "text": _marked(response.get("description", "")), "model": _model(response)}
                for status, response in sorted(call["responses"].items())
            ],
        }
        for path, methods in description["paths"].items()
        for method, call in methods.items()
    ]
    models = [
        {
            "name": name,
            "text": _marked(schema.get("description", "")),
            "fields": [
                {"name": key, "type": _type(value), "text": _marked(value.get("description", ""))}
                for key, value in schema.get("properties", {}).items()
            ],
        }
        for name, schema in schemas.items()
        if not name.startswith(("HTTPValidation", "ValidationError"))
    ]
    return (
        templates()
        .get_template("serve_docs.html")
        .render(info=description["info"], calls=calls, models=models, base=base)
    )


def _marked(text: str) -> Markup:
    """A description with its `code` as HTML; all else is escaped."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _words(schema: dict[str, Any]) -> list[str]:
    options = schema.get("anyOf", [schema])
    return [str(word) for option in options for word in option.get("enum", [])]


def _model(response: dict[str, Any]) -> str:
    schema = response.get("content", {}).get("application/json", {}).get("schema", {})
    return str(schema.get("$ref", "")).rpartition("/")[2]


def _type(schema: dict[str, Any]) -> str:
    """A schema in a word: `number`, `list of Map`, `Sure or null`."""
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if schema.get("type") == "array":
        inner: dict[str, Any] = schema.get("items", {}) or next(iter(schema.get("prefixItems", [])), {})
        return f"list of {_type(inner)}" if inner else "list"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    return str(schema.get("type", "value"))
