"""unfreeze: image classifiers from a folder of labeled images, with group-safe cross-validated scores.

All public names are loaded on first use, so importing the package is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from unfreeze.core import version as _version
from unfreeze.core.telemetry import disable as _disable_telemetry

_disable_telemetry()  # before any dependency with telemetry is imported
__version__ = _version.VERSION

if TYPE_CHECKING:
    from unfreeze.analysis.compare import compare
    from unfreeze.analysis.compare_balance import compare_balance
    from unfreeze.analysis.compare_label_models import compare_labels
    from unfreeze.analysis.compare_variants import compare_variants
    from unfreeze.analysis.dataset_shift import compare_datasets
    from unfreeze.analysis.diagnose.diagnose import diagnose
    from unfreeze.analysis.fit import fit
    from unfreeze.analysis.label_issues import label_issues
    from unfreeze.analysis.recommend import recommend
    from unfreeze.analysis.tuning.tune import tune
    from unfreeze.core.dataset import ImageDataset, findings_frame
    from unfreeze.core.errors import UnfreezeError
    from unfreeze.core.parallel import use_backend
    from unfreeze.core.recipe import Recipe
    from unfreeze.core.recipe_grid import recipe_grid
    from unfreeze.core.runs import Run, open_run
    from unfreeze.data.checks import check
    from unfreeze.data.face_stats import FaceStats, face_stats
    from unfreeze.data.readers import read
    from unfreeze.demo.dataset import make_demo
    from unfreeze.exporters.export import export
    from unfreeze.inference.ensemble import Ensemble, load
    from unfreeze.inference.predictor import Classifier
    from unfreeze.inference.submission import write_submission
    from unfreeze.models.inspect import inspect
    from unfreeze.reports.comparison_page import write_comparison
    from unfreeze.reports.data_report import write_data_report
    from unfreeze.reports.explanation_page import explain
    from unfreeze.reports.run_report import write_report
    from unfreeze.reports.tuning_page import write_tuning
    from unfreeze.server.app import serve_review as review
    from unfreeze.server.serve.launch import serve
    from unfreeze.server.studio.app import studio

# Public name -> module, or module:attribute. Loaded on first use, so that `import unfreeze` is fast.
_HOMES = {
    "Classifier": "unfreeze.inference.predictor",
    "Ensemble": "unfreeze.inference.ensemble",
    "FaceStats": "unfreeze.data.face_stats",
    "ImageDataset": "unfreeze.core.dataset",
    "Recipe": "unfreeze.core.recipe",
    "Run": "unfreeze.core.runs",
    "UnfreezeError": "unfreeze.core.errors",
    "check": "unfreeze.data.checks",
    "compare": "unfreeze.analysis.compare",
    "compare_balance": "unfreeze.analysis.compare_balance",
    "compare_datasets": "unfreeze.analysis.dataset_shift",
    "compare_labels": "unfreeze.analysis.compare_label_models",
    "compare_variants": "unfreeze.analysis.compare_variants",
    "diagnose": "unfreeze.analysis.diagnose.diagnose",
    "explain": "unfreeze.reports.explanation_page",
    "export": "unfreeze.exporters.export",
    "face_stats": "unfreeze.data.face_stats",
    "findings_frame": "unfreeze.core.dataset",
    "fit": "unfreeze.analysis.fit",
    "inspect": "unfreeze.models.inspect",
    "label_issues": "unfreeze.analysis.label_issues",
    "load": "unfreeze.inference.ensemble",
    "make_demo": "unfreeze.demo.dataset",
    "open_run": "unfreeze.core.runs",
    "read": "unfreeze.data.readers",
    "recipe_grid": "unfreeze.core.recipe_grid",
    "recommend": "unfreeze.analysis.recommend",
    "review": "unfreeze.server.app:serve_review",
    "serve": "unfreeze.server.serve.launch",
    "studio": "unfreeze.server.studio.app",
    "tune": "unfreeze.analysis.tuning.tune",
    "use_backend": "unfreeze.core.parallel",
    "write_comparison": "unfreeze.reports.comparison_page",
    "write_data_report": "unfreeze.reports.data_report",
    "write_report": "unfreeze.reports.run_report",
    "write_submission": "unfreeze.inference.submission",
    "write_tuning": "unfreeze.reports.tuning_page",
}
__all__ = [
    "Classifier",
    "Ensemble",
    "FaceStats",
    "ImageDataset",
    "Recipe",
    "Run",
    "UnfreezeError",
    "check",
    "compare",
    "compare_balance",
    "compare_datasets",
    "compare_labels",
    "compare_variants",
    "diagnose",
    "explain",
    "export",
    "face_stats",
    "findings_frame",
    "fit",
    "inspect",
    "label_issues",
    "load",
    "make_demo",
    "open_run",
    "read",
    "recipe_grid",
    "recommend",
    "review",
    "serve",
    "studio",
    "tune",
    "use_backend",
    "write_comparison",
    "write_data_report",
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
