"""What is wrong with the photos: one look at each, then every check that is registered."""

from __future__ import annotations

from unfreeze.core.progress import Reporter
from unfreeze.core.tables import Photos
from unfreeze.data import class_checks, copy_checks, file_checks, group_checks, shortcuts
from unfreeze.data.duplicates import joined_groups
from unfreeze.data.images import MAX_PIXELS
from unfreeze.data.looks import Looks, look, with_looks
from unfreeze.data.registry import CHECKS, SLOW, register

# Registered by being imported; their order here is the order of the findings.
FAMILIES = (copy_checks, class_checks, group_checks, file_checks, shortcuts)
__all__ = ["CHECKS", "FAMILIES", "SLOW", "check", "register", "run_checks"]


def check(photos: Photos, reporter: Reporter | None = None) -> Photos:
    """The photos with everything the checks found in `findings`, and `unit`, `hash`, `width`, `height` in the table."""
    return run_checks(photos, reporter=reporter, slow=True)[0]


def run_checks(
    photos: Photos, max_pixels: int = MAX_PIXELS, reporter: Reporter | None = None, slow: bool = False
) -> tuple[Photos, Looks]:
    """Looks at all photos and runs CHECKS; they come back with `hash`, `width`, `height`, `unit` and all findings.

    `unit` is the group after joining duplicates: what folds must keep together, int64. slow: run those of SLOW too.
    """
    looks = look(photos, max_pixels, reporter)
    photos = with_looks(photos, looks)
    unit = joined_groups(photos.table["group"].to_numpy(), *looks.duplicates)
    photos = photos.with_table(photos.table.assign(unit=unit))
    run = [check for name, check in CHECKS.items() if slow or name not in SLOW]
    return photos.with_table(photos.table, *(f for one in run for f in one(photos, looks))), looks
