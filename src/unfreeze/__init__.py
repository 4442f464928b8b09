"""unfreeze: from a folder of labelled photos to a classifier, and an honest account of how good it is."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("unfreeze")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

if TYPE_CHECKING:
    from unfreeze.core.cluster import engine
    from unfreeze.core.errors import UnfreezeError
    from unfreeze.core.recipe import Recipe
    from unfreeze.core.runs import Run
    from unfreeze.core.runs import open_run as open
    from unfreeze.core.tables import Photos, findings_table
    from unfreeze.data.checks import check
    from unfreeze.data.faces import Faces, faces
    from unfreeze.data.people import make_people
    from unfreeze.data.readers import read
    from unfreeze.deliver.compare_page import write_comparison
    from unfreeze.deliver.eda import write_eda
    from unfreeze.deliver.explain import explain
    from unfreeze.deliver.export import export
    from unfreeze.deliver.report import write_report
    from unfreeze.deliver.submission import write_submission
    from unfreeze.deliver.tune_page import write_tuning
    from unfreeze.deliver.web.server import serve_review as review
    from unfreeze.deliver.web.serving import serve
    from unfreeze.deliver.web.studio import studio
    from unfreeze.learn.blend import Blend, load
    from unfreeze.learn.classifier import Classifier
    from unfreeze.model.inspect import inspect
    from unfreeze.study.advise import advise
    from unfreeze.study.against import against
    from unfreeze.study.auto import fit
    from unfreeze.study.balancing import compare_balance
    from unfreeze.study.compare import compare
    from unfreeze.study.diagnose import diagnose
    from unfreeze.study.helps import helps
    from unfreeze.study.label_models import compare_labels
    from unfreeze.study.suspects import suspects
    from unfreeze.study.tune import tune
    from unfreeze.study.vary import vary

# Public name -> where it lives. Loaded when first used, so that `import unfreeze` costs nothing.
_HOMES = {
    "Blend": "unfreeze.learn.blend",
    "advise": "unfreeze.study.advise",
    "Classifier": "unfreeze.learn.classifier",
    "Faces": "unfreeze.data.faces",
    "Photos": "unfreeze.core.tables",
    "Recipe": "unfreeze.core.recipe",
    "Run": "unfreeze.core.runs",
    "UnfreezeError": "unfreeze.core.errors",
    "against": "unfreeze.study.against",
    "check": "unfreeze.data.checks",
    "compare": "unfreeze.study.compare",
    "compare_balance": "unfreeze.study.balancing",
    "compare_labels": "unfreeze.study.label_models",
    "diagnose": "unfreeze.study.diagnose",
    "engine": "unfreeze.core.cluster",
    "explain": "unfreeze.deliver.explain",
    "export": "unfreeze.deliver.export",
    "faces": "unfreeze.data.faces",
    "findings_table": "unfreeze.core.tables",
    "fit": "unfreeze.study.auto",
    "helps": "unfreeze.study.helps",
    "inspect": "unfreeze.model.inspect",
    "load": "unfreeze.learn.blend",
    "make_people": "unfreeze.data.people",
    "open": "unfreeze.core.runs:open_run",
    "read": "unfreeze.data.readers",
    "review": "unfreeze.deliver.web.server:serve_review",
    "serve": "unfreeze.deliver.web.serving",
    "studio": "unfreeze.deliver.web.studio",
    "suspects": "unfreeze.study.suspects",
    "tune": "unfreeze.study.tune",
    "vary": "unfreeze.study.vary",
    "write_comparison": "unfreeze.deliver.compare_page",
    "write_eda": "unfreeze.deliver.eda",
    "write_report": "unfreeze.deliver.report",
    "write_submission": "unfreeze.deliver.submission",
    "write_tuning": "unfreeze.deliver.tune_page",
}
__all__ = [
    "Blend",
    "Classifier",
    "Faces",
    "Photos",
    "Recipe",
    "Run",
    "UnfreezeError",
    "advise",
    "against",
    "check",
    "compare",
    "compare_balance",
    "compare_labels",
    "diagnose",
    "engine",
    "explain",
    "export",
    "faces",
    "findings_table",
    "fit",
    "helps",
    "inspect",
    "load",
    "make_people",
    "open",
    "read",
    "review",
    "serve",
    "studio",
    "suspects",
    "tune",
    "vary",
    "write_comparison",
    "write_eda",
    "write_report",
    "write_submission",
    "write_tuning",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'unfreeze' has no attribute '{name}'")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(module), attribute or name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
