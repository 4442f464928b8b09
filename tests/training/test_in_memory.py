"""Images in memory: predicted as the same image in a file, in every mode, and refused by name where they are none."""

from __future__ import annotations

import io
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageCms
from pyarrow.parquet import read_table

import unfreeze as uf
from photosets import GROUP_REGEX, class_folders, draw

QUICK = uf.Recipe(
    strategy="probe",
    folds={"n_splits": 3},
    image={"size": 64},
    probe={"stages": "last:1", "pool_size": 1, "views": ("plain",)},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_folders(tmp_path_factory.mktemp("memory") / "photos", groups=4, each=2)


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> uf.Run:
    return uf.fit(folder, QUICK, tmp_path_factory.mktemp("runs") / "memory", group_regex=GROUP_REGEX)


@pytest.fixture(scope="module")
def classifier(run: uf.Run):
    return uf.load(run)


def numbers(table: pd.DataFrame) -> np.ndarray:
    return table[[name for name in table.columns if name.startswith("p_")]].to_numpy()


def test_every_kind_of_object_is_read_as_the_file(classifier, folder: Path) -> None:
    file = folder / "red" / "g000_0.jpg"
    expected = numbers(classifier.predict(file))
    loaded = Image.open(file)
    loaded.load()
    data = file.read_bytes()
    with file.open("rb") as opened:
        opened.read(10)  # read from its start, wherever it stands
        given = [
            Image.open(file), loaded, np.asarray(Image.open(file)), data, bytearray(data), memoryview(data),
            io.BytesIO(data), opened, str(file), file, Image.open(io.BytesIO(data)),
        ]  # fmt: skip
        for one in given:
            table = classifier.predict(one)
            np.testing.assert_array_equal(numbers(table), expected, err_msg=str(type(one)))
            assert table["error"].tolist() == [""]
        both = classifier.predict([*given[:-4], file, given[-1]])
    assert both["path"].tolist() == [*(f"<image {i}>" for i in range(7)), str(file), "<image 8>"]
    # Heads of several photos are one product, whose last bits differ from those of single ones.
    np.testing.assert_allclose(numbers(both), np.repeat(expected, 9, axis=0), atol=1e-6)
    generated = classifier.predict(one for one in (data, file))
    np.testing.assert_allclose(numbers(generated), np.repeat(expected, 2, axis=0), atol=1e-6)


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "La", "LAB", "I;16", "I", "F"]
# What a file without loss holds in place of a mode that none has.
INSTEAD = {"YCbCr": "RGB", "HSV": "RGB", "La": "LA"}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_pillow(classifier, tmp_path: Path, mode: str) -> None:
    image = in_mode(mode)
    assert image.mode == mode
    file = tmp_path / f"same.{'tif' if mode in ('CMYK', 'LAB', 'F', 'I') else 'png'}"
    (image.convert(INSTEAD[mode]) if mode in INSTEAD else image).save(file)
    table = classifier.predict(image)
    assert table["error"].tolist() == [""]
    np.testing.assert_array_equal(numbers(table), numbers(classifier.predict(file)))


def in_mode(mode: str) -> Image.Image:
    pixels = np.asarray(draw(0, 1, 0))
    wide = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    if mode in wide:
        return Image.fromarray(pixels[..., 0].astype(wide[mode]) * wide[mode](200))
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(Image.fromarray(pixels), srgb, lab, outputMode="LAB")
    if mode in ("LA", "La", "RGBA"):
        alpha = np.full((*pixels.shape[:2], 1), 200, np.uint8)
        image = Image.fromarray(np.dstack([pixels, alpha])).convert("RGBA" if mode == "RGBA" else "LA")
        return image.convert("La") if mode == "La" else image
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("shape", [(40, 30), (40, 30, 1), (40, 30, 3), (40, 30, 4)])
def test_arrays_of_every_shape(classifier, tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    Image.fromarray(array[..., 0] if shape[-1] == 1 else array).save(tmp_path / "a.png")
    expected = numbers(classifier.predict(tmp_path / "a.png"))
    np.testing.assert_array_equal(numbers(classifier.predict(array)), expected)
    # Neither the order in memory nor a view changes the image.
    np.testing.assert_array_equal(numbers(classifier.predict(np.asfortranarray(array))), expected)
    twice = np.repeat(array, 2, axis=0)[::2]
    np.testing.assert_array_equal(numbers(classifier.predict(twice)), expected)


def test_orientation_and_transparency_of_a_pil_image(classifier, tmp_path: Path) -> None:
    image = draw(1, 2, 0)
    tags = Image.Exif()
    tags[0x0112] = 6
    for suffix in ("jpg", "png", "tif", "webp"):
        file = tmp_path / f"turned.{suffix}"
        image.save(file, exif=tags, **({"lossless": True} if suffix == "webp" else {}))
        expected = numbers(classifier.predict(file))
        loaded = Image.open(file)
        loaded.load()
        for one in (Image.open(file), loaded):
            np.testing.assert_array_equal(numbers(classifier.predict(one)), expected, err_msg=suffix)
    paletted = image.convert("P")
    paletted.info["transparency"] = 3
    paletted.save(tmp_path / "p.png", transparency=3)
    np.testing.assert_array_equal(
        numbers(classifier.predict(Image.open(tmp_path / "p.png"))), numbers(classifier.predict(tmp_path / "p.png"))
    )


def test_a_large_jpeg_that_pillow_opened_is_read_as_its_file(classifier, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (300, 400, 3), np.uint8)
    Image.fromarray(noise).resize((1600, 1200), Image.Resampling.BICUBIC).save(tmp_path / "big.jpg", quality=90)
    expected = numbers(classifier.predict(tmp_path / "big.jpg"))
    loaded = Image.open(tmp_path / "big.jpg")
    loaded.load()
    np.testing.assert_array_equal(numbers(classifier.predict(loaded)), expected)
    np.testing.assert_array_equal(numbers(classifier.predict(Image.open(tmp_path / "big.jpg"))), expected)
    # What was drawn on it counts, not the file that it came from.
    loaded.paste((255, 0, 0), (0, 0, 1600, 1200))
    drawn = numbers(classifier.predict(loaded))
    assert np.abs(drawn - expected).max() > 0.01
    np.testing.assert_array_equal(drawn, numbers(classifier.predict(Image.new("RGB", (1600, 1200), (255, 0, 0)))))


def test_what_cannot_be_decoded_is_a_row(classifier, folder: Path) -> None:
    file = folder / "red" / "g000_0.jpg"
    table = classifier.predict([b"junk", file, b"", io.BytesIO(file.read_bytes()[:200]), "absent.jpg"])
    assert [bool(error) for error in table["error"]] == [True, False, True, True, True]
    assert table["label"].isna().tolist() == [True, False, True, True, True]


@pytest.mark.parametrize("good", [0, 1])
def test_a_missing_label_is_none_everywhere(run, classifier, folder: Path, tmp_path: Path, good: int) -> None:
    file = folder / "red" / "g000_0.jpg"
    given = [*[file] * good, "absent.jpg", b"junk"]
    other = tmp_path / "other"
    blend = uf.load([run.path, shutil.copytree(run.path, other)]) if good else classifier
    for one in (classifier, blend):
        for groups in (None, ["a"] * len(given)):
            table = one.predict(given, groups=groups)
            assert [label is None for label in table["label"]] == [False] * good + [True, True]
            table.to_parquet(tmp_path / "t.parquet")
            assert read_table(tmp_path / "t.parquet")["label"].null_count == 2
            assert table.to_json(orient="records").count('"label":null') == 2


REFUSED = [
    (None, "images: NoneType"),
    ({}, "images: dict"),
    ({"a.jpg"}, "images: set"),
    (3, "images: int"),
    (1.5, "images: float"),
    (object(), "images: object"),
    (io.StringIO("x"), "binary mode"),
    ([None], r"images\[0\]: NoneType"),
    (["a.jpg", 3], r"images\[1\]: int"),
    ([["a.jpg"]], r"images\[0\]: list"),
    (np.zeros((4, 4, 3)), "float64 is not accepted. Give uint8"),
    (np.zeros((4, 4), np.uint16), "uint16 is not accepted"),
    (np.zeros((4, 4), bool), "bool is not accepted"),
    (Image.Image, "the class Image"),
]


@pytest.mark.parametrize(("given", "said"), REFUSED)
def test_another_type_is_refused_by_name(classifier, given: object, said: str) -> None:
    with pytest.raises(TypeError, match=said) as told:
        classifier.predict(given)
    assert isinstance(told.value, uf.UnfreezeError)
    with pytest.raises(TypeError, match=said):
        uf.explain(classifier, given)


def test_photos_and_tensors_are_refused_with_a_way_on(classifier, folder: Path) -> None:
    import torch

    with pytest.raises(TypeError, match=re.escape("permute(1, 2, 0).numpy(force=True)")):
        classifier.predict(torch.zeros(3, 8, 8))
    with pytest.raises(TypeError, match=re.escape("images[0]: torch.Tensor")):
        classifier.predict([torch.zeros(3, 8, 8)])
    with pytest.raises(TypeError, match="ImageDataset is not accepted"):
        classifier.predict(uf.read(folder))
    with (folder / "red" / "g000_0.jpg").open() as text, pytest.raises(TypeError, match="binary mode"):
        classifier.predict(text)


@pytest.mark.parametrize("shape", [(0, 4, 3), (3, 8, 8), (2, 8, 8, 3), (8,), (), (8, 8, 2)])
def test_another_shape_is_refused(classifier, shape: tuple[int, ...]) -> None:
    with pytest.raises(uf.UnfreezeError, match=r"H x W x 3 \(RGB\)"):
        classifier.predict(np.zeros(shape, np.uint8))


def test_lists_mix_files_folders_patterns_and_memory(classifier, folder: Path) -> None:
    table = classifier.predict([folder / "blue", str(folder / "*" / "g?00_0.jpg"), np.zeros((9, 9), np.uint8)])
    assert len(table) == 8 + 3 + 1 and table["path"].iloc[-1] == "<image 2>"
    assert table["label"].iloc[:8].eq("blue").mean() > 0.5 and table["error"].eq("").all()
    paths = table["path"][:3]
    for given in (paths, paths.to_numpy(), pd.DataFrame({"path": paths}), tuple(map(Path, paths))):
        assert classifier.predict(given)["path"].tolist() == paths.tolist()
    assert classifier.predict([]).empty


def test_threads_do_not_see_each_other_s_images(classifier) -> None:
    draws = np.random.default_rng(2)
    arrays = [draws.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(4)]
    alone = [numbers(classifier.predict(array)) for array in arrays]
    found: dict[int, np.ndarray] = {}

    def work(i: int) -> None:
        found[i] = numbers(classifier.predict(arrays[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, expected in enumerate(alone):
        np.testing.assert_array_equal(found[i], expected)
    assert classifier.predict(["<image 0>"])["error"].tolist() == ["no such file"]  # nothing is held any more


def test_explain_takes_what_predict_takes(classifier, folder: Path, tmp_path: Path) -> None:
    file = folder / "red" / "g000_0.jpg"
    found = uf.explain(classifier, [Image.open(file), file, b"junk"], tmp_path / "why.html")
    first, second, third = found.photos
    assert first.path == "<image 0>" and first.label == second.label and third.error
    assert first.probabilities == second.probabilities
    page = (tmp_path / "why.html").read_text()
    assert "&lt;image 0&gt;" in page and page.count('<svg class="overlay"') >= 2
