("What opponents reached is committed whole: the kit's columns and test patients, the settings that stand in "
 "peers.yaml, versions and cost.")
import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from conftest import REPO, read_table, stored_runs
from medseg_nb.kit.core import sha256
from medseg_nb.study import instances
from medseg_nb.study.peers import list_planned_runs
from medseg_nb.training import default_runs
from medseg_nb.training.plan import load_plan

SETTINGS = yaml.safe_load((REPO / "tests" / "peers" / "peers.yaml").read_text(encoding="utf-8"))
STUDIES = load_plan("cpu").sections.peers.studies  # data sets on which a study planned itself, and a tool had its time
TEXT = dict(case=str, patient=str, site=str)
EVERY_PLACE = [p.parent for p in sorted((REPO / "reports" / "peers").glob("*/*/peer.json"))]
OF_INSTANCES = [p for p in EVERY_PLACE if SETTINGS[p.parent.name].get("instances")]
PLACES = [p for p in EVERY_PLACE if p not in OF_INSTANCES]

def place_name(place: Path) -> str: return f"{place.parent.name}-{place.name}"

@pytest.fixture(params=PLACES, ids=place_name)
def place(request) -> Path: return request.param

@pytest.fixture(params=OF_INSTANCES, ids=place_name)
def place_of_instances(request) -> Path: return request.param

@pytest.fixture(params=EVERY_PLACE, ids=place_name)
def any_place(request) -> Path: return request.param

def facts(place: Path) -> dict: return json.loads((place / "peer.json").read_text(encoding="utf-8"))
def rows(place: Path) -> pd.DataFrame: return read_table(place / "cases.csv.xz", dtype=TEXT)


def ours(dataset: str, fold: int) -> pd.DataFrame:
    "Rows of this study's U-Net on the same fold"
    known = list_planned_runs("cpu", [dataset]) or default_runs.default_seed_runs("cpu", [dataset])
    config = next(c for c in known if (c.model, c.fold, c.seed) == ("unet", fold, 0))
    return read_table(stored_runs(REPO / "reports" / "cpu")[config.key] / "cases.csv.xz", dtype=TEXT)


# a peer is not asked how sure it was
COLUMNS = [*ours("skin_isic2017", 0).drop(columns=["calibration_error", "brier"])]


def planned_settings(place: Path) -> dict:
    "What peers.yaml plans for a tool on a data set"
    asked = SETTINGS[place.parent.name]
    if place in OF_INSTANCES: return {k: v for k, v in asked.items() if k != "packages"}
    scale = (128 / facts(place)["size"]) ** 2
    levels = asked["levels"]
    if place.name in STUDIES:  # no more trainings than the study has folds
        levels = [[seconds, min(n, len(STUDIES[place.name].folds))] for seconds, n in asked["study_levels"]]
    return {k: v for k, v in asked.items() if k not in ("packages", "study_levels")} | dict(
        levels=levels, throughput=asked["throughput"] * scale)


def test_each_folder_is_whole():
    found = {p.parent for name in SETTINGS for p in (REPO / "reports" / "peers" / name).glob("*/*")}
    files = {"cases.csv.xz", "peer.json"}
    assert found == set(EVERY_PLACE) and all({f.name for f in p.iterdir()} == files for p in found)


@pytest.mark.long
def test_rows_have_the_columns_and_the_test_cases_of_the_kits_runs(place):
    frozen = json.loads((REPO / "data_manifests" / place.name / "splits.json").read_text(encoding="utf-8"))
    for (fold, *training), level in rows(place).groupby(["fold", "seed", "steps"]):
        own = ours(place.name, fold)
        assert list(level) == [*COLUMNS, "steps"]
        names = ["case", "patient", "region"]
        assert level[names].to_numpy().tolist() == own[names].to_numpy().tolist(), training
        assert set(level.patient) == set(frozen["folds"][fold]["test"])
    assert facts(place)["content"] == frozen["content"]


def test_scores_belong_together_and_levels_are_other_networks(place):
    found = rows(place)
    dice, iou = found.dice, found.iou
    assert ((dice.isna() & iou.isna()) | (iou - dice / (2 - dice)).abs().lt(1e-5) & dice.between(0, 1)).all()
    for _, fold in found.groupby("fold"):
        answered = fold[fold.dice > 0].pivot(index=["case", "region"], columns=["seed", "steps"], values="dice").T
        assert not answered.duplicated().any()


def test_label_maps_of_tools_are_scored_on_the_objects_of_the_kits_test_images(place_of_instances):
    place = place_of_instances
    frozen = json.loads((REPO / "data_manifests" / place.name / "splits.json").read_text(encoding="utf-8"))
    scored, stored = rows(place), stored_runs(REPO / "reports" / "cpu")
    runs = {c.fold: c for c in instances.list_runs("cpu", [place.name]) if (c.model, c.seed) == ("unet", 0)}
    for (fold, _), found in scored.groupby(["fold", "steps"]):
        own = read_table(stored[runs[fold].key] / "cases.csv.xz", dtype=TEXT).query("method == 'distance'")
        assert set(found.patient) == set(frozen["folds"][fold]["test"])
        names = ["case", "patient", "true", "group"]
        assert found[names].to_numpy().tolist() == own[names].to_numpy().tolist()
    recognized = scored.matched / (.5 * (scored.true + scored.predicted))
    assert ((scored.pq - (scored.sq * recognized).fillna(0)).abs().fillna(0) < 1e-5).all()
    assert (scored.matched <= scored[["true", "predicted"]].min(axis=1)).all()
    assert facts(place)["content"] == frozen["content"]


def test_cost_follows_from_the_settings(any_place):
    place, f, asked = any_place, facts(any_place), planned_settings(any_place)
    grid = STUDIES[place.name].settings["size"] if place.name in STUDIES else 128
    assert f["settings"] == asked and f.get("size", grid) == max(128, grid)
    assert {v["seconds"] for v in f["levels"]} <= {seconds for seconds, _ in asked["levels"]}
    trainings = [(v["fold"], v["seed"], v["steps"]) for v in f["levels"]]
    assert trainings == sorted(set(map(tuple, rows(place)[["fold", "seed", "steps"]].to_numpy()))) != []
    planned = dict(asked["levels"])
    assert all(sum(v["seconds"] == s for v in f["levels"]) <= n for s, n in planned.items())
    for v in f["levels"]:
        wanted = v["seconds"] * asked["throughput"] / f["about"]["batch"]
        # whole steps in each epoch
        assert abs(v["steps"] - wanted) <= max(.5 * asked.get("epochs", 1), .05 * wanted)
        assert v["seconds"] / 2 < v["measured_cpu_seconds"] < 4 * v["seconds"]  # of a busy processor


def test_versions_hash_and_no_place(any_place):
    place, f = any_place, facts(any_place)
    assert (f["cases_sha256"] == sha256(place / "cases.csv.xz")
            and (f["peer"], f["dataset"]) == (place.parent.name, place.name))
    for name, version in (p.split("==") for p in SETTINGS[f["peer"]]["packages"]):
        assert f["about"]["versions"][name].split("+")[0] == version
    assert all(v["machine"] for v in f["levels"])
    text = (place / "peer.json").read_text(encoding="utf-8")
    assert not re.search(r"(^|[^\w])/(home|root|tmp|work|Users|mnt)\b|[A-Z]:\\\\", text)
