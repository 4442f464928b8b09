"""docs/benchmarks.md and the five figures of README.md say what benchmarks/results holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bilingual import table_rows

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results"
MACHINES: dict[str, Any] = json.loads((RESULTS / "machine.json").read_text())
KNOWN = set(re.findall(r'^    "(\w+)": \(', (ROOT / "benchmarks" / "run.py").read_text(), re.M))
FAMILIES = {"EfficientNet-Lite0": "timm/tf_efficientnet_lite0", "ResNet-50": "timm/resnet50"}
NUMBER = r"[+−-]?(?:\d[\d,]*)?\.?\d+"


def split(page: str) -> dict[str, str]:
    """Text of each section by its heading."""
    parts = re.split(r"^## (.+)\n", page, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


SECTIONS = split(PAGE)


def cells(heading: str) -> list[list[str]]:
    """Rows of a section's table, without its head; a cell may be empty."""
    lines = [line for line in SECTIONS[heading].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[2:]]


def kept(name: str) -> pd.DataFrame:
    """What a benchmark left."""
    return pd.read_csv(RESULTS / f"{name}.csv")


def one(table: pd.DataFrame, **wanted: object) -> Any:
    """The one row with these values."""
    found = table
    for column, value in wanted.items():
        found = found[found[column] == value]
    assert len(found) == 1, wanted
    return found.iloc[0]


def numbers(text: str) -> list[str]:
    """Numbers of a cell, in their order."""
    return re.findall(NUMBER, text)


def same(said: str, *values: float) -> None:
    """The numbers of a cell are these values, rounded to as many digits as are shown."""
    found = numbers(said)
    assert len(found) == len(values), f"{said}: {values}"
    for text, value in zip(found, values, strict=True):
        plain = text.replace(",", "").replace("−", "-")
        digits = len(plain.partition(".")[2])
        assert abs(float(plain) - value) <= 0.5 * 10**-digits + 1e-9, f"{said}: {value}"


def states(heading: str, *sentences: str) -> None:
    """The section holds these words, wherever its lines break."""
    text = " ".join(SECTIONS[heading].split())
    for sentence in sentences:
        assert sentence in text, f"{heading}: {sentence}"


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_section_has_its_command_and_date(heading: str) -> None:
    if heading == "Disk space":
        return
    (block,) = re.findall(r"^```\n(.*?)^```", SECTIONS[heading], flags=re.M | re.S)
    if not block.startswith("python benchmarks/run.py "):
        assert block.startswith("unfreeze ")
        return
    names = block.removeprefix("python benchmarks/run.py ").partition("--")[0].split()
    assert names and set(names) <= KNOWN
    (day,) = re.findall(r"^November (\d+)", SECTIONS[heading].strip(), flags=re.M)
    for name in names:
        assert MACHINES[name]["date"].startswith(f"2026-11-{int(day):02}"), name
        assert MACHINES[name]["cores"] == 2 and MACHINES[name]["processor"] == "AMD EPYC"


def test_fits() -> None:
    table, rows = kept("sets"), cells("Accuracy and time of a fit")
    assert len(rows) == len(table) == 16
    name = ""
    for what, quality, first, second, accuracy, macro, ece in rows:
        name = what.partition(":")[0] or name
        row = one(table, set=name, kind=quality)
        if what:
            same(what.partition(":")[2], row.photos, row.classes, row.groups)
        same(first, row.first_s)
        same(second, row.second_s)
        for cell, column in ((accuracy, "accuracy"), (macro, "macro_f1")):
            same(cell.replace("–", " "), *(row[column + end] for end in ("", "_low", "_high")))
        same(ece, row.ece)
    row = one(kept("balance"), set="masks", strategy="probe", seed=0, word="sqrt")
    same("642", row.groups)
    same("0.855 0.814 0.891", row.macro_f1, row.macro_f1_low, row.macro_f1_high)
    states("Accuracy and time of a fit", "Masks has 642 groups", "0.855 [0.814, 0.891]")


def test_feature_pass() -> None:
    for (what, own, peer, ratio), (_, row) in zip(
        cells("Feature extraction"), kept("feature_pass").iterrows(), strict=True
    ):
        assert what.removesuffix(" grid") == row["pass"]
        same(own, row.images_s)
        same(peer, row.peer_images_s)
        same(ratio, row.ratio)


def test_whole_runs() -> None:
    *few, many = cells("A whole run, compared with fastai")
    for count, quality, own, score, peer, peer_score, ratio in few:
        row = one(kept("whole_job"), ours=quality)
        same(count, row.photos)
        same(own, row.first_s)
        same(score, row.valid_macro_f1)
        same(peer, row.fastai_s)
        same(peer_score, row.fastai_valid_macro_f1)
        same(ratio, row.times_faster)
    count, quality, own, score, peer, peer_score, ratio = many
    row = one(kept("whole_job_epoch"), ours=quality)
    values = (row.photos, row.first_cpu_s, row.valid_macro_f1, row.fastai_cpu_s, row.fastai_valid_macro_f1)
    for cell, value in zip((count, own, score, peer, peer_score), values, strict=True):
        same(cell, value)
    same(ratio, row.times_less_cpu)
    last, good = kept("whole_job_2000").second_to_first
    same("0.125 0.167", last, good)
    states("Second run on the same images", "takes 0.125 of", "0.167 with `good`")


def test_training_speed() -> None:
    full, part = kept("training"), kept("partial")
    for what, required, wall, cpu, cpu_one in cells("Training speed, compared with fastai"):
        how = "folds side by side" if "two folds" in what else "one process"
        backbone = next((FAMILIES[name] for name in FAMILIES if name in what), FAMILIES["EfficientNet-Lite0"])
        row = one(part if "epoch" in what else full, backbone=backbone, ours=how)
        same(required, row.asked)
        same(wall, row.ratio)
        same(cpu, row.cpu_ratio)
        same(cpu_one, row.photos_cpu_s / one(full, backbone=backbone, ours=how).peer_one_thread_photos_cpu_s)


def test_partial_and_the_probe() -> None:
    table = kept("tuned")
    rows = cells("Partial fine-tuning and the probe")
    assert [row[0] for row in rows] == list(table.set)
    for name, probe, alone, loss, loss_alone, gain in rows:
        row = one(table, set=name)
        same(probe, row.probe_macro_f1)
        same(alone, row.alone_macro_f1)
        same(loss, row.probe_log_loss)
        same(loss_alone, row.alone_log_loss)
        same(gain, row.gain, row.gain_low, row.gain_high)


def test_curve() -> None:
    table = kept("curve")
    rows = cells("Macro F1 over CPU time")
    assert len(rows) == len(table)
    for what, cpu, score in rows:
        name, _, epoch = what.strip("`").partition(", epoch ")
        row = one(table, what=name, epoch=float(epoch)) if epoch else one(table, what=name)
        same(cpu, row.cpu_s)
        same(score, row.macro_f1)


def test_recommendation() -> None:
    heading, table = "Recommendation of a strategy", kept("recommendation")
    rows = cells(heading)
    assert len(rows) == len(table)
    for name, *scores, chosen, regret in rows:
        row = one(table, set=name.partition(",")[0])
        for cell, column in zip(scores, ("probe", "partial", "full", "scratch"), strict=True):
            assert bool(cell) == pd.notna(row[column])
            if cell:
                same(cell.strip("*"), row[column])
                assert not cell.startswith("*") or row[column] == row[["probe", "partial", "full"]].max()
        if regret:
            same(regret, row.regret)
            assert set(re.findall("probe|partial|full", chosen)) == set(re.findall("probe|partial|full", row.chosen))
    tried = ["probe", "partial", "full"]
    done = table.dropna(subset=["regret"])
    same("0.0075", done.regret.mean())
    assert len(done) == 7 and (done.regret <= 0.01).sum() == 5
    same("0.0055", (table[tried].max(axis=1) - table.partial).mean())
    same("158 279", done.race_cpu_s.min(), done.race_cpu_s.max())
    same("10 19", 100 * done.race_share.min(), 100 * done.race_share.max())
    states(heading, "mean regret is 0.0075", "five of seven", "of 0.0055 over all eight", "158 to 279", "10 to 19%")


def test_wrong_labels() -> None:
    table = kept("suspects")
    masks = table[table.set == "masks, 3% flipped"]
    precision, recall = masks.precision_at_k, masks.recall_at_2k
    assert len(masks) == 8 and set(masks.planted) == {45} and set(masks.photos) == {1500}
    same("0.81 0.78 0.89", precision.mean(), precision.min(), precision.max())
    same("0.95 0.91 0.98", recall.mean(), recall.min(), recall.max())
    demo = table[table.set == "demo, 60 people"]
    assert len(demo) == 4 and (demo.found_at_k == demo.planted).sum() == 2
    states(
        "Wrong labels", "0.81 of the first 45", "[0.78, 0.89]", "the first 90 hold 0.95", "[0.91, 0.98]", "two of four"
    )


def test_copies() -> None:
    table = kept("checking")
    planted = table[table.photos == 5200]
    same("0.99 1.0 0.985", planted.recall.min(), planted.recall.max(), planted.precision.min())
    same("27", one(table, what="hashes compared").seconds)
    page = one(table, what="check --report")
    same("20,000 79 431", page.photos, page.seconds, page.peak_mb)
    states(
        "Copies and the data report",
        "recall 0.99 to 1.0, precision 0.985",
        "27 s",
        "20,000 images takes 79 s and 431 MB",
    )


def test_faces_are_as_on_their_page() -> None:
    page = (ROOT / "docs" / "faces.md").read_text(encoding="utf-8")
    assert "4.3% [3.1, 5.8]" in page and "0.9% [0.3, 2.8]" in page
    states("Faces", "4.3%", "[3.1, 5.8]", "0.9% of those without [0.3, 2.8]")


def test_imbalance_and_attributes() -> None:
    table = kept("balance")
    masks = table[(table.set == "masks") & (table.strategy == "probe") & (table.seed == -1)].set_index("word").macro_f1
    same("0.831 0.860 0.866 0.760", masks["none"], masks["sqrt"], masks["over"], masks["under"])
    states("Imbalance", "0.831 without", "0.860 with the default", "0.866 with over", "0.760 with under")
    people = kept("labels")
    people = people[(people.people == 200) & (people.seed == -1)].set_index("model").macro_f1
    same("0.712 0.773", people["joint"], people["parts"])
    states("Several attributes", "0.712 with one head for all", "0.773 with one head per")


def test_many_rows() -> None:
    table = kept("rows")
    least, most = one(table, rows=10_000), one(table, rows=100_000)
    same("17,856 679 206", most.width, least.anon_mb, most.cpu_s)
    same("700", round(most.anon_mb))
    states("Memory of many rows", "17,856 features take 700 MB", "(679 at 10,000 rows)", "206 s of CPU")


def test_diagnosis() -> None:
    table = kept("diagnose")
    planted, clean = table[table.planted != "nothing"], table[table.planted == "nothing"]
    assert (len(planted), len(clean)) == (17, 3) and (planted["rank"] == 1).all() and not clean.alarms.any()
    same("4 18", table.seconds.min(), table.seconds.max())
    row = one(table, set="trash", planted="10% of the labels flipped")
    same("0.045 0.079", row.cost, row.true)
    states("Diagnosis", "17 of 17", "three sets without a fault", "4 to 18 s", "0.045 of 0.079 on trash")


def test_search() -> None:
    table = kept("tuning")
    assert set(table.trials) == {20}
    rows = cells("Hyperparameter search")
    assert len(rows) == len(table)
    for name, given, nested, gain in rows:
        row = one(table, set=name)
        same(given, row.base)
        same(nested, row.nested)
        same(gain, row.gain_low, row.gain_high)


def test_service() -> None:
    table = kept("serving")
    for (clients, speed, ratio, late, errors), (_, row) in zip(cells("HTTP service"), table.iterrows(), strict=True):
        assert numbers(clients)[0] == str(row.clients)
        same(speed, row.photos_s)
        same(ratio, row.ratio, row.lowest_ratio)
        same(late, row.p95_ms / 1000)
        same(errors, row.errors)
    alone = one(table, beside="nobody")
    assert round(alone.crowd_peak_mb + 1e-9) in (384, 385)
    same("357", alone.server_mb_before)
    states("HTTP service", "385 MB at the peak, 357 before")


def test_the_demo_is_as_on_the_first_page() -> None:
    (output,) = re.findall(r"^```text\n(.*?)^```", SECTIONS["The demo"], flags=re.M | re.S)
    assert output in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")


def test_five_figures_of_the_readme() -> None:
    rows = table_rows(split(README)["Benchmarks"])[1:]
    assert len(rows) == 5
    features, whole, step, labels, diagnosis = rows
    row = kept("feature_pass").iloc[0]
    same(features[1], row.images_s)
    same(features[2], row.peer_images_s)
    row = one(kept("whole_job"), ours="good")
    same(whole[0].partition("](")[2].partition(")")[2], row.photos)
    same(whole[1].replace("F1", ""), row.first_s, row.valid_macro_f1)
    same(whole[2], row.fastai_s, row.fastai_valid_macro_f1)
    row = one(kept("training"), backbone=FAMILIES["EfficientNet-Lite0"], ours="one process")
    same(step[1], row.ratio)
    same(step[2], row.photos_cpu_s / row.peer_one_thread_photos_cpu_s)
    masks = kept("suspects").query("set == 'masks, 3% flipped'")
    same(labels[1], masks.recall_at_2k.mean(), 90)
    assert numbers(labels[0].partition("](")[2].partition(")")[2]) == ["45", "1,500"]
    planted = kept("diagnose").query("planted != 'nothing'")
    same(diagnosis[1], (planted["rank"] == 1).sum(), len(planted))


@pytest.mark.parametrize("link", re.findall(r"\]\(docs/benchmarks\.md#([^)]+)\)", README))
def test_links_of_the_readme_lead_to_a_section(link: str) -> None:
    assert link in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in SECTIONS}


def test_disk_space_is_the_same_on_both_pages() -> None:
    for size in ("1.8 GB", "5.6 GB"):
        assert size in SECTIONS["Disk space"] and size in README
