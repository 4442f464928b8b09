"""Vocabulary of split names, and recognition of split words in folder, archive and column values.

This is the only list of split words. Folder layouts (`layouts`), tables (`read_tables`) and WebDataset shards
(`read_webdataset`) all use it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from unfreeze.core.names import nfc

TRAIN_WORDS = ("train", "training", "trainval", "trn", "학습", "훈련")
VALIDATION_WORDS = ("val", "valid", "validation", "dev", "development", "minival", "검증")
TEST_WORDS = ("test", "testing", "tst", "eval", "evaluation", "holdout", "heldout", "테스트", "시험", "평가")

SPLIT_WORDS = {
    **dict.fromkeys((*TRAIN_WORDS, *VALIDATION_WORDS), "train"),
    **dict.fromkeys(TEST_WORDS, "test"),
}
"""Lowercase word -> split. Validation data counts as training data, because unfreeze cross-validates."""

UNLABELED_WORDS = frozenset(
    ("unlabeled", "unlabelled", "unsup", "pred", "preds", "predict", "prediction", "predictions", "inference")
)
"""Names of folders with unlabeled images for prediction."""

_CONTAINERS = frozenset(
    (
        *("data", "dataset", "datasets", "archive", "archives", "set", "sets", "split", "splits", "ds"),
        *("image", "images", "img", "imgs", "photo", "photos", "pic", "pics", "picture", "pictures"),
        *("jpg", "jpeg", "jpegs", "png", "pngs", "tif", "tiff", "file", "files", "folder", "folders", "dir"),
        *("input", "inputs", "content", "download", "downloads", "extracted", "root", "main", "master"),
        *("데이터", "데이터셋", "이미지", "사진", "자료", "셋", "세트"),
    )
)
"""Generic names of image containers, unrelated to the content."""

_AFFIXES = _CONTAINERS | frozenset(
    (
        *("seg", "raw", "resized", "processed", "cropped", "crops", "final", "new", "full", "orig", "original"),
        *("aug", "augmented", "labeled", "labelled", "public", "private", "part", "batch", "chunk", "fold", "stage"),
        *("subset", "the", "my", "for", "용"),
    )
)
"""Words that do not change the meaning of a split name: `train_images`, `stage1_test`."""

_ATTACHED = "datasets?|data|sets?|images?|imgs?|photos?|pics?|split|folder|dir|seg|ds"
_ATTACHED += "|데이터셋|데이터|이미지|사진|자료|셋|세트|용"
_COMPACT = re.compile(
    # Bounded repetition: `dataset` can be split in two ways, so unbounded matching could take exponential time.
    rf"(?:{_ATTACHED}){{0,2}}(?P<word>{'|'.join(sorted(SPLIT_WORDS, key=len, reverse=True))})(?:{_ATTACHED}){{0,2}}"
)
_TOKENS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W\d_A-Za-z]+")


@dataclass(frozen=True)
class SplitName:
    """A name that contains a split word.

    Attributes:
        word: The split word in lower case, as in `SPLIT_WORDS`.
        split: "train" or "test".
        rest: Other meaningful words of the name, such as `("shoes",)` for `training shoes`. Empty if the name denotes
            only the split.
    """

    word: str
    split: str
    rest: tuple[str, ...] = ()

    @property
    def validation(self) -> bool:
        """Whether the name denotes a validation split."""
        return self.word in VALIDATION_WORDS


@lru_cache(maxsize=4096)
def split_name(name: str) -> SplitName | None:
    """Find the split word in a name, regardless of case, separators and affixes.

    Args:
        name: Name of a folder or archive, or a table cell: `trainset`, `Train Data`, `images_val`, `test2017`.

    Returns:
        The split name, or None if there is no split word or the words contradict each other (`train_test_split`).
    """
    words, rest = list[str](), list[str]()
    for token in tokens_of(name):
        match = None if token in SPLIT_WORDS else _COMPACT.fullmatch(token)
        if token in SPLIT_WORDS or match:
            words.append(match["word"] if match else token)
        elif token not in _AFFIXES and not token.isdecimal() and not (len(token) == 1 and token.isascii()):
            rest.append(token)
    splits = {SPLIT_WORDS[word] for word in words}
    if not words:
        return None
    if len(splits) == 2:
        # `test-dev` and `val_test` are test data. `train_test` contradicts itself, so it is not a split name.
        if any(word in TRAIN_WORDS for word in words):
            return None
        words = [word for word in words if word in TEST_WORDS]
    trained = [word for word in words if word in TRAIN_WORDS]
    word = (trained or words)[0]
    return SplitName(word, SPLIT_WORDS[word], tuple(rest))


def split_of(name: str) -> str | None:
    """ "train" or "test" for a name that denotes only a split, otherwise None."""
    found = split_name(name)
    return found.split if found and not found.rest else None


def is_unlabeled_name(name: str) -> bool:
    """Whether a name only states that the images are unlabeled: `seg_pred`, `unlabeled`."""
    tokens = tokens_of(name)
    return any(t in UNLABELED_WORDS for t in tokens) and all(t in UNLABELED_WORDS | _AFFIXES for t in tokens)


def is_container_name(name: str) -> bool:
    """Whether a name only states that there are images: `images`, `dataset2`, `jpg`."""
    words = [token for token in tokens_of(name) if not token.isdecimal()]
    return bool(words) and all(word in _CONTAINERS for word in words)


def is_dataset_name(name: str) -> bool:
    """Whether a name may denote a whole data set: `flower_photos`, `archive (1)`, `PetImages`, `repo-master`."""
    words = [token for token in tokens_of(name) if not token.isdecimal()]
    return bool(words) and (words[-1] in _CONTAINERS or not {"data", "dataset", "archive"}.isdisjoint(words))


def tokens_of(name: str) -> list[str]:
    """Lowercase words and numbers of a name: `trainSet_2017` -> train, set, 2017."""
    # NFC: macOS stores Hangul decomposed, which would not match the vocabulary.
    tokens = [token.lower() for token in _TOKENS.findall(nfc(name))]
    joined = list[str]()
    for token in tokens:
        if token == "out" and joined and joined[-1] in ("hold", "held"):
            joined[-1] += token
        else:
            joined.append(token)
    return joined


def splitting(splits: Mapping[str, str]) -> str:
    """Describe how splits are used, for `ImageDataset.choice`.

    Args:
        splits: Split name in the source -> "train" or "test".

    Returns:
        The description.
    """
    train = in_order(name for name, split in splits.items() if split == "train")
    test = in_order(name for name, split in splits.items() if split == "test")
    said = " + ".join(train) + (" pooled and cross-validated" if len(train) > 1 else " cross-validated")
    kept = f"{' + '.join(test)} kept for testing"
    return f"{said}, {kept}" if train and test else kept if test else said


def in_order(names: Iterable[str]) -> list[str]:
    """Sort names by their split word (training, validation, test), then by name; names without one come last."""
    order = list(SPLIT_WORDS)

    def place(name: str) -> tuple[int, str]:
        found = split_name(name)
        return (order.index(found.word) if found else len(order), name)

    return sorted(names, key=place)
