"What came back from a machine with a GPU: of the plan, scored by today's code, and what its own counts say"
import json
import subprocess
from hashlib import sha256

import pandas as pd

from conftest import REPO, read_table, stored_runs
from medseg_nb.kit.core import digest
from medseg_nb.training import packing
from medseg_nb.training.plan import load_plan
from medseg_nb.training.training import Config, scoring_key

REPORTS = REPO / "reports" / "full"
FILES = {"config.json", "measured.json", "scored.json", "cases.csv.xz"}


def load(path): return json.loads(path.read_text())


def test_every_run_is_of_the_plan_and_says_where_it_was_trained():
    planned = {c.key: c for c in packing.list_gpu_runs(packing.load_gpu_plan("full"))}
    runs = stored_runs(REPORTS)
    assert runs and set(runs) <= set(planned)
    for key, place in runs.items():
        assert Config(**load(place / "config.json")) == planned[key] and {p.name for p in place.iterdir()} == FILES
        assert load(place / "scored.json")["key"] == scoring_key(planned[key])
        cost = load(place / "measured.json")
        assert cost["device"].startswith("NVIDIA") and {"torch", "python"} <= set(cost["versions"])


def test_code_of_a_clone_has_the_hash_of_this_folder():
    "Files that git does not know, such as nbdev's index, are in no clone"
    listed = subprocess.run(["git", "ls-files", "medseg_nb/*.py"], cwd=REPO, capture_output=True, text=True, check=True)
    files = {p.removeprefix("medseg_nb/"): sha256((REPO / p).read_bytes()).hexdigest() for p in listed.stdout.split()}
    assert len(files) > 100 and packing.hash_package() == digest(files)


def test_throughput_in_the_documentation_is_that_of_the_plan():
    names = {"U-Net": "unet", "Residual U-Net": "residual_unet", "Hybrid (window attention)": "strided8_window",
             "U-Net (EfficientNet-Lite0)": "unet_lite0"}
    lines = (REPO / "docs" / "cluster.md").read_text().splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    gpu, convergence = packing.load_gpu_plan("full").stages[0].throughput, load_plan("cpu").convergence
    plan = convergence.search.throughput | convergence.stages[0].throughput
    found = {names[name]: (int(fast), int(slow)) for name, fast, slow, *_ in (r for r in table if r[0] in names)}
    assert found == {name: (gpu[name], round(plan[name])) for name in names.values()}


def test_rows_are_of_test_patients_alone():
    for place in stored_runs(REPORTS).values():
        config, rows = load(place / "config.json"), read_table(place / "cases.csv.xz", dtype=dict(patient=str))
        split = json.loads((REPO / "data_manifests" / config["dataset"] / "splits.json").read_text())
        assert set(rows.patient) == set(split["folds"][config["fold"]]["test"])
        assert set(rows.budget) == {config["steps"] * config["batch"]}
        assert (rows[["tp", "fp", "fn", "tn"]] >= 0).all(axis=None) and not rows.duplicated(["case", "region"]).any()


def test_table_is_the_mean_over_patients_of_the_counts():
    "By other code than made it: Dice of each case and region, then of a patient, then over patients of all trainings"
    found = {}
    for place in stored_runs(REPORTS).values():
        config, rows = load(place / "config.json"), read_table(place / "cases.csv.xz", dtype=dict(patient=str))
        dice = 2 * rows.tp / (2 * rows.tp + rows.fp + rows.fn)
        by_region = dice.groupby([rows.patient, rows.region]).mean()
        mine = by_region.groupby(level=0).mean().rename((config["fold"], config["seed"]))
        place_in_table = (config["dataset"], config["size"], config["steps"] * config["batch"], config["model"])
        found.setdefault(place_in_table, []).append(mine)
    reports = REPO / "reports" / "cpu" / "reached"
    table = pd.read_csv(reports / "gpu.csv").set_index(["dataset", "size", "images", "model"])
    assert set(table.index) == set(found)
    means = {}
    for row, trainings in found.items():
        by_patient = pd.concat(trainings).groupby(level=0).mean()
        means[row] = by_patient.mean()
        assert abs(means[row] - table.dice[row]) < 1e-5 and len(by_patient) == table.n[row]
        assert len(trainings) == table.trainings[row] <= table.planned[row]
    for r in pd.read_csv(reports / "gpu_scales.csv").to_dict("records"):
        larger = means[r["dataset"], r["size"], r["images"], r["model"]]
        usual = means[r["dataset"], r["usual_size"], r["usual_images"], r["model"]]
        assert abs(larger - usual - r["difference"]) < 1e-5
        assert (r["usual_size"], r["usual_images"]) < (r["size"], r["images"])


def test_page_on_clusters_counts_the_runs():
    numbers = load(REPO / "reports" / "cpu" / "reached" / "results.json")["numbers"]
    done, missing = (int(numbers[f"gpu.{k}"]["value"]) for k in ("trained", "missing"))
    assert done == len(stored_runs(REPORTS))
    assert f"{done} of {done + missing} runs on five data sets" in (REPO / "docs" / "cluster.md").read_text()
