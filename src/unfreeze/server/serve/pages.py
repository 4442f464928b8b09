"""Web pages of the prediction API: image upload, and the API documentation without external resources."""

from __future__ import annotations

import re
from typing import Any

from markupsafe import Markup, escape

from unfreeze.core.format import pluralize
from unfreeze.core.messages import unseen
from unfreeze.inference.ensemble import Ensemble
from unfreeze.inference.in_memory import InMemoryPredictor
from unfreeze.metrics.classification import score_predictions
from unfreeze.reports.html import templates
from unfreeze.server.serve.limits import Limits


def about(direct: InMemoryPredictor) -> dict[str, Any]:
    """Description of what is served: runs with their weights, classes, networks and their engines."""
    source = direct.source
    runs = [c.run for c in source.classifiers] if isinstance(source, Ensemble) else [source.run]
    weights = source.weights.tolist() if isinstance(source, Ensemble) else [1.0]
    return {
        "runs": [
            {"name": run.path.resolve().name, "weight": round(weight, 4), "strategies": list(run.strategies)}
            for run, weight in zip(runs, weights, strict=True)
        ],
        "classes": list(direct.classes),
        "networks": [{"title": r.graph.title(), "engine": r.engine.name} for r in direct.readers],
    }


def page(direct: InMemoryPredictor, limits: Limits, maps: bool) -> str:
    """Render the page at `/`. `maps` tells whether heat maps are drawn automatically or only on request."""
    info = about(direct)
    accuracy = _accuracy(direct)
    return (
        templates()
        .get_template("serve.html")
        .render(
            name=" + ".join(run["name"] for run in info["runs"]),
            classes=info["classes"],
            networks=info["networks"],
            accuracy=accuracy["accuracy"],
            photos=pluralize(accuracy["photos"], "photo"),
            unseen=accuracy["unseen"],
            limits=limits,
            maps=maps,
            settings={"maps": maps, "body": limits.body, "seconds": limits.seconds},
        )
    )


def _accuracy(direct: InMemoryPredictor) -> dict[str, Any]:
    """Out-of-fold accuracy; for an ensemble, its weights were chosen on the same images."""
    source = direct.source
    if not isinstance(source, Ensemble):
        own_scores = source.run.scores()
        return {
            "accuracy": own_scores["accuracy"],
            "photos": own_scores["out_of_fold"]["photos"],
            "unseen": unseen(own_scores),
        }
    from unfreeze.metrics.ensembling import weighted_mean

    own = source.out_of_fold
    scores = score_predictions(own.truth, weighted_mean(own.probas, source.weights), own.groups, own.classes)
    every = [one.run.scores() for one in source.classifiers]
    return {"accuracy": scores["accuracy"], "photos": len(own.truth), "unseen": max(map(unseen, every))}


def docs(description: dict[str, Any], base: str) -> str:
    """Render the API documentation at `/docs` from the OpenAPI document.

    Args:
        description: OpenAPI document, as served at /openapi.json.
        base: Base URL of the server, with a trailing slash.
    """
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
    """Escape a description and convert its backquotes to HTML."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _words(schema: dict[str, Any]) -> list[str]:
    options = schema.get("anyOf", [schema])
    return [str(word) for option in options for word in option.get("enum", [])]


def _model(response: dict[str, Any]) -> str:
    schema = response.get("content", {}).get("application/json", {}).get("schema", {})
    return str(schema.get("$ref", "")).rpartition("/")[2]


def _type(schema: dict[str, Any]) -> str:
    """Short name of a schema's type: `number`, `list of HeatMap`, `Confidence or null`."""
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
