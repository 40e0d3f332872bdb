("Trainings to convergence: a plan is trained run by run, may be killed at any moment, and refuses what cannot be "
 "judged.")
import json
import lzma
import os
import signal
import subprocess
import sys
from itertools import chain

import numpy as np
import pytest
import yaml
from conftest import REPO, Project, read_table, stored_runs

from medseg_nb.training import convergence, convergence_runs
from medseg_nb.kit.core import InputError
from medseg_nb.training.training import Config, run_training

REPORTED = {"config.json", "curve.csv", "cases.csv.xz", "measured.json", "scored.json"}


def files_of(config: Config) -> set[str]:
    "What is published of a run"
    return REPORTED | ({convergence.PREDICTIONS_FILE} if convergence_runs.is_pictured(config) else set())


def add_plan(project: Project, **changes) -> None:
    "A plan of one U-Net with two seeds, whose rate is chosen among two, in trainings of 24 steps"
    stage = dict(sets=dict(phantom_skin=dict(seeds=[0, 1])), networks=["unet"], throughput=dict(unet=.2),
                 rates=dict(dataset="phantom_skin", values=[.001, .02], seconds=480)) | changes
    plan = dict(family="any", settings=dict(size=16, width=2, batch=4), stages=[stage])
    path = project.root / "nbs" / "plans.yaml"
    plans_by_profile = yaml.safe_load(path.read_text(encoding="utf-8"))
    plans_by_profile["cpu"]["convergence"] = plan
    path.write_text(yaml.safe_dump(plans_by_profile), encoding="utf-8")


def published(project: Project) -> dict[str, bytes]:
    "Files of all published runs, but what they cost"
    places = stored_runs(project.reports / "cpu")
    return {f"{k}/{p.name}": p.read_bytes() for k, place in places.items() for p in place.iterdir()
            if p.name != "measured.json"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups that can be killed at once")
@pytest.mark.stress  # minutes of training between kills
def test_a_killed_plan_ends_with_the_same_rows(fresh, tmp_path):
    """The rows of a plan that was killed three times are those of one that was left alone; each network has the rate
    that did best on validation patients"""
    add_plan(fresh)
    other = fresh.copy(tmp_path / "other")
    for seconds in (8, 14, 20):
        process = other.start("train", "--missing", "--profile", "cpu", "-j", "2")
        try: process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired: os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    for project in (fresh, other):
        done = project.medseg("train", "--missing", "--profile", "cpu", "-j", "2")
        assert done.returncode == 0, done.stderr
    assert published(fresh) == published(other)
    places = [(p, json.loads((p / "config.json").read_text())) for p in stored_runs(fresh.reports / "cpu").values()]
    assert len(places) == 4 and all({f.name for f in p.iterdir()} == files_of(Config(**c)) for p, c in places)
    def score(place):
        rows = read(place); return (2 * rows.tp / (2 * rows.tp + rows.fp + rows.fn)).groupby(rows.patient).mean().mean()
    def read(place): return read_table(place / "cases.csv.xz", dtype=dict(patient=str))
    tried = {c["rate"]: score(p) for p, c in places if c["unit"] == "validation"}
    best = max(sorted(tried), key=tried.get)
    assert (set(tried) == {.001, .02}
            and {(c["rate"], c["seed"]) for _, c in places if c["unit"] == "patient"} == {(best, 0), (best, 1)})
    again = fresh.medseg("train", "--missing", "--profile", "cpu")
    assert again.returncode == 0 and "done" not in again.stderr, "nothing is missing any more"


def read_dice(place) -> float:
    "Mean patient Dice of a published run on its last track"
    rows = read_table(place / "cases.csv.xz", dtype=dict(patient=str)).query("track == 'reached'")
    return (2 * rows.tp / (2 * rows.tp + rows.fp + rows.fn)).groupby(rows.patient).mean().mean()


@pytest.mark.long
def test_a_stage_trains_what_the_search_chose(tmp_path, monkeypatch):
    "The search is trained first, and then the design with attention that segmented validation patients best"
    for name in ("reports", "runs", "nbs"): monkeypatch.setenv(f"MEDSEG_{name.upper()}", str(tmp_path / name))
    plans_by_profile = yaml.safe_load((REPO / "nbs" / "plans.yaml").read_text(encoding="utf-8"))
    designs = ("strided8_conv", "strided8_full", "strided8_linear")
    throughput, once = dict.fromkeys(("unet", *designs), .2), dict(phantom_skin={})
    stage = dict(designs=["hybrid"], sets=once, throughput=throughput,
                 rates=dict(dataset="phantom_skin", values=[.001], seconds=1))
    plans_by_profile["cpu"]["convergence"] = dict(
        family="any", settings=dict(size=16, width=8, batch=4), stages=[stage],
        search=dict(reference="unet", seconds=480, rates=[.001], throughput=throughput, rounds=[dict(sets=once)]))
    (tmp_path / "nbs").mkdir()
    (tmp_path / "nbs" / "plans.yaml").write_text(yaml.safe_dump(plans_by_profile), encoding="utf-8")
    trained = []
    def train_here(runs):
        for config in runs: trained.append((config.model, config.unit)); run_training(config); yield config
    monkeypatch.setattr(convergence_runs, "train_missing", train_here)
    wanted, total = convergence_runs.describe_missing_runs("cpu")
    counts = ", ".join(f"1 of {name}" for name in sorted(throughput))
    assert wanted == f"phantom_skin: 0.5 h, {counts}", "before a design is chosen"
    assert total.startswith("all: 0.5 h of one thread; more follow")
    assert convergence_runs.train_plan("cpu") == []
    published = {json.loads((p / "config.json").read_text())["model"]: round(read_dice(p), 3)
                 for p in stored_runs(tmp_path / "reports" / "cpu").values()
                 if json.loads((p / "config.json").read_text())["unit"] == "validation"}
    assert sorted(trained[:-1]) == [(name, "validation") for name in sorted(throughput)] and len(published) == 4
    (hybrid, unit), best = trained[-1], max(published[d] for d in designs[1:])
    assert unit == "patient" and hybrid in designs[1:] and published[hybrid] == best
    assert convergence_runs.train_plan("cpu") == [] and len(trained) == 5, "nothing is missing any more"
    assert convergence_runs.describe_missing_runs("cpu") == []


def test_a_plan_is_refused_in_one_line(fresh):
    for changes, fault in [(dict(networks=["nosuch"]), "nosuch: unknown network"),
                           (dict(sets=dict(nosuch={})), "nosuch: unknown data set"),
                           (dict(networks=["fcn"]), "fcn has no throughput"),
                           (dict(sets=dict(phantom_skin=dict(folds=[99]))), "has no fold 99")]:
        add_plan(fresh, **changes
                 | ({} if "fold 99" not in fault
                    else dict(rates=dict(dataset="phantom_skin", values=[.001], seconds=1))))
        done = fresh.call("train", "--missing", "--profile", "cpu")
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and fault in done.stderr and "; " in done.stderr, (
            done.stderr)
    assert (fresh.call("train", "--missing", "--profile", "nosuch").returncode == 2
            and fresh.call("train", "--data", "phantom_skin").returncode == 2)


def test_bf16_is_refused_where_it_would_take_days(fresh, monkeypatch):
    "A processor without instructions for bf16 trains nothing in it; the dry run still says what is missing"
    add_plan(fresh, settings=dict(precision="bf16"))
    for has_it in (False, True):
        monkeypatch.setattr("medseg_nb.training.throughput.has_bf16", lambda: has_it)
        monkeypatch.setattr("medseg_nb.training.convergence_runs.train_plan", lambda profile: [])
        done = fresh.call("train", "--missing", "--profile", "cpu")
        assert done.returncode == (0 if has_it else 4), done.stderr
        assert has_it or "this processor: has no instructions for bf16, in which 2 missing runs are" in done.stderr
    monkeypatch.setattr("medseg_nb.training.throughput.has_bf16", lambda: False)
    assert fresh.call("train", "--missing", "--profile", "cpu", "--dry-run").returncode == 0
    add_plan(fresh)
    assert fresh.call("train", "--missing", "--profile", "cpu").returncode == 0, "fp32 needs no such instructions"


@pytest.mark.long
def test_absent_data_is_left_out(fresh):
    "What is not on this machine is named, and exit code 3 says that the rest was done"
    folder = fresh.root / "data_manifests" / "skin_isic2017"
    folder.mkdir()
    (folder / "dataset.yaml").write_text(
        (REPO / "data_manifests" / "skin_isic2017" / "dataset.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    add_plan(fresh, sets=dict(skin_isic2017={}))
    done = fresh.call("train", "--missing", "--profile", "cpu")
    assert done.returncode == 3 and "skin_isic2017" in done.stderr.splitlines()[-1]


RUN = Config("phantom_skin", "unet", steps=24, size=16,
             width=2, batch=4, task="medseg_nb.training.convergence", schedule="constant")


def test_what_cannot_choose_or_judge_is_refused(monkeypatch):
    "A validation part that is too small, and a structure that a part does not show"
    train, validation, test = convergence.partition_cases(RUN)
    few = [i for i in validation if convergence.load_cases(RUN.dataset)[i].patient
           == convergence.load_cases(RUN.dataset)[validation[0]].patient]
    images, masks = convergence.load_run_arrays(RUN)
    def split(a, b, c): return lambda id, k, unit="patient": (a, b) if unit == "validation" else (sorted(a + b), c)
    monkeypatch.setattr(convergence, "fold_indices", split(train, few, test))
    with pytest.raises(InputError, match="fold 0: 1 validation patients of the 3 that a choice needs"):
        convergence.partition_cases(RUN)
    monkeypatch.setattr(convergence, "fold_indices", split(train, validation, test))
    for name, part in dict(training=train, validation=validation, test=test).items():
        empty = np.array(masks)
        empty[part] = 0
        monkeypatch.setattr(convergence, "load_run_arrays", lambda config: (images, empty))
        with pytest.raises(InputError, match=f"no {name} case shows `lesion`"): convergence.partition_cases(RUN)


def test_validation_patients_are_inside_the_training_side_of_every_frozen_fold():
    "No patient of a planned fold's test side is trained on or chosen with, on any set of the plan that is here"
    plan, _ = convergence_runs.available_plan(convergence_runs.load_convergence_plan("cpu"))
    for dataset, repeats in {d: r for s in plan.stages for d, r in s.sets.items()}.items():
        frozen = json.loads((REPO / "data_manifests" / dataset / "splits.json").read_text(encoding="utf-8"))["folds"]
        for k in repeats.folds:
            train, validation = convergence.fold_indices(dataset, k, "validation")
            who = [{convergence.load_cases(dataset)[i].patient for i in part} for part in (train, validation)]
            assert (not who[0] & who[1] and who[0] | who[1] == set(frozen[k]["train"])
                    and not (who[0] | who[1]) & set(frozen[k]["test"]))


@pytest.mark.long  # packs every file of the results of cpu
def test_published_runs_are_those_of_the_plan():
    "Every committed run of this kind has its files, belongs to the plan, was scored by the code of today, and is small"
    plan, found = convergence_runs.load_convergence_plan("cpu"), {}
    for key, place in stored_runs(REPO / "reports" / "cpu").items():
        facts = json.loads((place / "config.json").read_text())
        if facts["task"] == convergence_runs.TASK: found[key] = (place, Config(**facts))
    for key, (place, config) in found.items():
        assert (config.key == key and REPORTED <= {p.name for p in place.iterdir()} <= files_of(config)
                and sum(len(lzma.compress(p.read_bytes())) for p in place.iterdir()) < 120_000)
        rows = convergence_runs.load_rows(config)
        assert (rows.dice.dropna().between(0, 1).all()
                and len(read_table(place / "cases.csv.xz")) == len(rows))
        budgets = ({s for s in convergence.BUDGETS if s <= convergence.CEILINGS[len(config.shape)]}
                   if config.unit == "patient" else set())
        assert (set(rows[rows.track == "budget"].budget) == budgets
                and set(rows.track) == {"reached"} | ({"budget"} if budgets else set()))
    if not found: pytest.skip("no run of nbs/plans.yaml is committed yet")
    stages = [convergence_runs.resolve_designs(plan, stage) for stage in plan.stages]
    of_stages = [(convergence_runs.stage_rate_runs(plan, s), convergence_runs.main_runs(plan, s)) for s in stages]
    planned = {c.key for c in chain(convergence_runs.search_runs(plan), *chain.from_iterable(of_stages))}
    assert set(found) <= planned
