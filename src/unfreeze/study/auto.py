"""fit(): the public one, which lets a race choose the strategy where the recipe says auto."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unfreeze.core.progress import Reporter
from unfreeze.core.recipe import Recipe
from unfreeze.core.runs import Run, default_folder
from unfreeze.core.tables import Photos
from unfreeze.learn import crossval
from unfreeze.learn.tracking import Listener, check_trackers, tracked


def fit(
    photos: Photos,
    recipe: Recipe | None = None,
    run: str | Path | None = None,
    *,
    force: bool = False,
    compare_random: bool = False,
    command: str = "",
    reporter: Reporter | None = None,
    timings: dict[str, float] | None = None,
    track: Sequence[str | Listener] = (),
) -> Run:
    """Cross-validates the recipe on the photos and leaves a finished run folder.

    run: the folder; by default runs/<source>-<strategy>-<mark of the recipe>. An unfinished run of the same recipe
        is taken up where it was left.
    compare_random: also score a split photo by photo, to show what it would have promised (probes only).
    Strategy auto (the default) races strategies inside the training folds first: what is chosen for a fold depends on
    no photo of that fold. advice.json in the run folder keeps the evidence.
    track: 'mlflow', 'tensorboard' (see `learn.tracking`), or functions that are called with each row of the log.
    Raises RunError, FoldError, SourceError, BackboneError, EngineError or StorageError; each says what to do.
    """
    recipe, choose = recipe or Recipe(), None
    if recipe.strategy == "auto":
        from unfreeze.study import advise  # torch: a probe is over before that is imported

        advise.check_advice(recipe)
        choose = advise.choose
    check_trackers(track)
    folder = Path(run) if run else default_folder(recipe)
    with tracked(folder, recipe, track, reporter or Reporter()) as whole:
        done = crossval.fit(
            photos,
            recipe,
            run,
            force=force,
            compare_random=compare_random,
            command=command,
            reporter=reporter,
            timings=timings,
            choose=choose,
        )
        whole(done)
    return done
