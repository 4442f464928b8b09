"""Wording of messages that depends on the caller, and sentences about scores.

Code that writes a message does not know whether it was called from the command line or from Python. It names settings
through `option`, `setting` or `wording`: these return command-line options inside a `command_line` block, and Python
arguments elsewhere.

`caveats`, `selection_sentence` and `effect_sentence` describe the limits of a run's scores in the same words for
terminal, report, studio and service. `Brief` gives results a one-line `repr` for notebooks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from unfreeze.core.format import format_difference, format_estimate, format_score

if TYPE_CHECKING:
    import pandas as pd


_from_command_line = False


@contextlib.contextmanager
def command_line(active: bool = True) -> Iterator[None]:
    """Make messages name command-line options while the block runs.

    The setting applies to the whole process, including all threads.

    Args:
        active: False makes messages name Python arguments instead.
    """
    global _from_command_line
    before, _from_command_line = _from_command_line, active
    try:
        yield
    finally:
        _from_command_line = before


def from_command_line() -> bool:
    """Whether messages name command-line options. The value is passed to child processes, whose messages then agree."""
    return _from_command_line


def wording(command: str, python: str) -> str:
    """Return `command` on the command line and `python` in Python."""
    return command if _from_command_line else python


def option(name: str, value: Any = None, metavar: str = "", command: str = "") -> str:
    """Format an option as it is typed, or the argument as it is passed.

    Args:
        name: Name of the Python argument.
        value: Value to show; True for a flag. None shows only the name, or `metavar`.
        metavar: Placeholder of a value that the user has to fill in: `DIR`.
        command: Name of the option, if it differs from the argument's name.

    Returns:
        `--group-regex PATTERN` or `group_regex=PATTERN`; `--force` or `force=True`; `--root` or `root=`.
    """
    if _from_command_line:
        flag = f"--{(command or name).replace('_', '-')}"
        shown = metavar if value is None else "" if value is True else str(value)
        return f"{flag} {shown}".rstrip()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return f"{name}={metavar if value is None else repr(value)}"


def setting(key: str, value: Any, flag: str = "") -> str:
    """Format a change of a recipe key as an option, or as a call of `Recipe.replace`.

    Args:
        key: Dotted key, as `folds.n_splits`.
        value: New value.
        flag: Name of the option that sets the key; if empty, `--set KEY=VALUE` is used.
    """
    if _from_command_line:
        return (
            f"--{flag} {value}" if flag else f"--set {key}={str(value).lower() if isinstance(value, bool) else value}"
        )
    return f'recipe.replace(**{{"{key}": {value!r}}})' if "." in key else f"recipe.replace({key}={value!r})"


def groups_given(table: pd.DataFrame) -> bool:
    """Whether the images of a table came with groups. Without them, the group of every image is its path."""
    return bool((table["group"] != table["path"]).any())


def unseen(scores: dict[str, Any]) -> str:
    """What the model of a run was evaluated on: unseen `groups`, or only unseen `images` if no groups were given."""
    return "groups" if scores.get("groups_given") else "images"


def caveats(scores: dict[str, Any], selected: dict[str, Any] | None = None) -> list[str]:
    """Limits of the score of a run.

    Args:
        scores: Content of scores.json.
        selected: Content of selection.json, if the run was selected by its score.

    Returns:
        Sentences; empty if there are no limits to report.
    """
    found = []
    if selected:
        found.append(selection_sentence(selected))
    if not scores.get("groups_given"):
        found.append(
            "No groups were given. If several images show the same object, this score is too optimistic: "
            f"{wording('fit with', 'read with')} {option('group', metavar='COLUMN')} or "
            f"{option('group_regex', metavar='PATTERN')}."
        )
    if reason := scores["out_of_fold"].get("approximate"):
        found.append(f"The intervals are approximate: {reason}.")
    return found


def selection_sentence(selected: dict[str, Any]) -> str:
    """State that the run was selected by its score on these images, so that the score is optimistic.

    Args:
        selected: Content of selection.json: `by` (the command), `among` (number of recipes) and `estimate` (macro F1
            corrected for the selection, `value` with or without an interval `low` to `high`).
    """
    estimate = selected["estimate"]
    text = format_estimate(estimate) if "low" in estimate else format_score(estimate["value"])
    return (
        f"`unfreeze {selected['by']}` selected this run among {selected['among']:,} recipes by macro F1 on these "
        f"images, so that its score is too optimistic. Corrected for the selection it is {text}."
    )


class Brief:
    """Base of dataclasses with `repr=False`, whose `repr` is the type name and the text of `_brief`."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._brief()})"

    def _brief(self) -> str:
        sentence = self.sentence  # type: ignore[attr-defined] # a text, a property or a method of the result
        return str(sentence() if callable(sentence) else sentence)


HEADLINES = (("given", "out of fold, labels as given"), ("corrected", "out of fold, corrected labels"))
"""Keys of `corrections` in scores.json whose scores are a run's headline, and their names."""


def effect_sentence(found: dict[str, Any]) -> str:
    """State the effect of label corrections: the gain by the given labels, how it was measured, and the selection bias.

    Args:
        found: Value of `corrections` in scores.json (see `unfreeze.training.corrections.correction_effect`).
    """
    if "gain" not in found:
        why = found.get("not_measured", "")
        return (
            f"Their effect was not measured{f' ({why})' if why else ''}. The out-of-fold scores are optimistic: the "
            "corrections were found by models that had seen the labels of the scored photos."
        )
    gain, optimism = found["gain"], found["optimism"]
    before, after = (found[key]["macro_f1"]["value"] for key in ("before", "after"))
    what = "Macro F1" if found["nested"] else "Macro F1 of linear probes on the same folds"
    sure = "" if gain["low"] > 0 or gain["high"] < 0 else "; not significant"
    text = (
        f"{what}, by the labels as given: {before:.3f} without the corrections, {after:.3f} with those found without "
        f"the scored fold ({found['applied']:.0f} of {found['corrections']:,}): "
        f"{format_estimate(gain, signed=True)} (95% interval{sure})."
    )
    if found["relabel"] or found["exclude"]:
        text += (
            " A score by the corrected labels is agreement with decisions that models suggested; it does not "
            "measure the gain."
        )
    if found["nested"]:
        return text
    return (
        f"{text} This run was not fitted again for that: its own scores are by models trained with all corrections, "
        f"which in the probes raises macro F1 by {format_difference(optimism['value'])} for reasons of selection alone."
    )
