"""Opponents on the kit's patients, each in an environment of its own: `python tests/peers/run.py PEER --data ID …
--work FOLDER` (README.md beside this file)."""
import argparse
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from skimage.segmentation import relabel_sequential

from medseg_nb.training.plan import Runs, load_plan
from medseg_nb.kit.core import folder, machine_class, read_yaml, sha256, to_json, write
from medseg_nb.data.manifest import load_cases, load_frozen_split, load_manifest
from medseg_nb.training.inference import argmax_label_map
from medseg_nb.preparation.preprocess import load_prepared_cases
from medseg_nb.kit.report import read_rows, write_rows
from medseg_nb.data.splits import fold_indices
from medseg_nb.evaluation.intervals import summarize_patient_scores
from medseg_nb.methods.instance_heads import (list_head_runs, load_pictures, score_label_maps, split_of,
                                              training_and_tuning)
from medseg_nb.training.training import Config, score_predictions, train

SHORTEST = 240         # images of the shorter run by which their throughput is measured
SIZE = 128  # rows and columns of what a peer is given, except where a study has chosen a finer grid
STUDIES = load_plan("cpu").sections.peers.studies
# memory is kept between steps instead of being asked for anew
KEPT = dict(MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_="100000000000", MALLOC_TOP_PAD_="268435456")


def environment(place: Path, packages: list[str]) -> Path:
    "The interpreter of an environment that holds these packages, which is made where it is missing"
    python, stamp = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python"), place / "installed.json"
    if not stamp.exists() or json.loads(stamp.read_text()) != packages:
        subprocess.run(["uv", "venv", "--quiet", "--clear", "--python", "3.11", place], check=True)
        subprocess.run(["uv", "pip", "install", "--quiet", "--python", python, *packages], check=True)
        stamp.write_text(json.dumps(packages))
    return python


def trainings(dataset: str, settings: dict) -> dict[tuple[int, int], list[float]]:  # levels by fold and seed
    "The first runs of the benchmark or of a study on a data set, and the levels at which a peer has so many trainings"
    if settings.get("instances"): runs = Runs(folds=[c.fold for c in head_runs(dataset) if c.model == "unet"])
    else: runs = Runs(folds=STUDIES[dataset].folds) if dataset in STUDIES else load_plan("cpu").runs[dataset]
    pairs = [(fold, seed) for fold in runs.folds for seed in runs.seeds][:max(count for _, count in settings["levels"])]
    return {pair: [v for v, count in settings["levels"] if count > k] for k, pair in enumerate(pairs)}


def head_runs(dataset: str) -> list[Config]:
    "The kit's networks that objects are read from"
    heads = load_plan("cpu").sections.instances.heads
    return list_head_runs(dataset, heads.steps, heads.splits, heads.settings)


def grid_size(dataset: str) -> int: return max(SIZE, STUDIES[dataset].settings["size"]) if dataset in STUDIES else SIZE


def settings_for(dataset: str, known: dict) -> dict:
    "What a peer is given on a data set: on that of a study its own levels, and steps that follow from a finer grid"
    levels = known["levels"]
    if dataset in STUDIES:
        levels = [[s, min(n, len(STUDIES[dataset].folds))] for s, n in known.get("study_levels", [])]
    throughput = known["throughput"] * (SIZE / grid_size(dataset)) ** 2
    return {k: v for k, v in known.items() if k != "study_levels"} | dict(levels=levels, throughput=throughput)


def export(place: Path, dataset: str, settings: dict, fold: int = 0) -> Path:
    "What a peer is given: images and masks of the training patients, and images alone of the test patients"
    images, masks = load_prepared_cases(dataset, (grid_size(dataset),) * 2, settings["normalise"])
    chosen, test = fold_indices(dataset, fold)
    place.mkdir(parents=True, exist_ok=True)
    (place / "settings.json").write_text(json.dumps(settings | dict(labels=load_manifest(dataset).labels)))
    if not (place / "given.npz").exists():
        np.savez(place / "given.npz", train_images=images[chosen], train_masks=masks[chosen], test_images=images[test])
    return place


def export_instances(place: Path, dataset: str, settings: dict, fold: int = 0) -> Path:
    """What a peer is given: images and label maps that the kit's networks learn from and are tuned on, and images alone
    of the test cases, at their own resolution"""
    pictures, maps = load_pictures(dataset)
    run = next(c for c in head_runs(dataset) if (c.model, c.fold) == ("unet", fold))
    parts = dict(zip(("train", "tuning"), training_and_tuning(run))) | dict(test=split_of(run).test)
    given = {f"{part}_image{k}": pictures[i] for part, chosen in parts.items() for k, i in enumerate(chosen)}
    given |= {f"{part}_label{k}": maps[i] for part in ("train", "tuning") for k, i in enumerate(parts[part])}
    place.mkdir(parents=True, exist_ok=True)
    (place / "settings.json").write_text(json.dumps(settings))
    if not (place / "given.npz").exists(): np.savez(place / "given.npz", **given)
    return place


def ask(python: Path, peer: str, place: Path, threads: int) -> None:
    subprocess.run([python, "-P", HERE / f"{peer}.py", place],
                   check=True, env=os.environ | KEPT | dict(OMP_NUM_THREADS=str(threads)))


def load_finished(place: Path) -> dict[int, np.lib.npyio.NpzFile]:
    "What finished runs of a peer have written, by their steps"
    found = {int(p.stem[5:]): np.load(p, allow_pickle=False) for p in place.glob("steps*.npz") if p.stem[5:].isdigit()}
    return {steps: found[steps] for steps in sorted(found)}


def done(place: Path) -> dict[int, tuple[np.ndarray, float]]:  # probabilities (case, class, row, column), CPU-seconds
    "Finished runs of a peer by their steps"
    return {steps: (run["answers"], float(run["seconds"])) for steps, run in load_finished(place).items()}


def about(place: Path) -> dict: return json.loads((place / "about.json").read_text())


def measure_instances(python: Path, peer: str, dataset: str, settings: dict, work: Path) -> float:
    "As `measure`, for a thread on which the kit's U-Net with maps of instances takes as long as nbs/plans.yaml says"
    def theirs(images):
        now = settings | dict(throughput=1, levels=[images], seed=0)
        place = export_instances(work / f"measured{images}", dataset, now)
        ask(python, peer, place, settings["threads"])
        [(steps, run)] = load_finished(place).items()
        return np.array([steps * about(place)["batch"], float(run["seconds"])])
    def ours(steps):
        run = replace(head_runs(dataset)[0], steps=steps)
        start = time.process_time(); train(run)
        return np.array([steps * run.batch, time.process_time() - start])
    ours(1)
    (images, seconds), (own, time_of_own) = theirs(2 * SHORTEST) - theirs(SHORTEST), ours(43) - ours(3)
    print(f"{peer} {images / seconds:.2f}, U-Net with maps {own / time_of_own:.2f} images a second")
    heads, batch = load_plan("cpu").sections.instances.heads, head_runs(dataset)[0].batch
    return images / seconds * heads.steps["unet"] * batch / heads.seconds / (own / time_of_own)


def measure(python: Path, peer: str, dataset: str, settings: dict, work: Path) -> float:  # images a second
    """Throughput of a peer for a thread on which the kit's U-Net has the throughput of nbs/plans.yaml; both are
    measured, each by the difference of a long and a short run"""
    def theirs(images):
        place = export(work / f"measured{images}", dataset,
                       settings | dict(throughput=1, epochs=1, levels=[images], seed=0))
        ask(python, peer, place, settings["threads"])
        [(steps, (_, seconds))] = done(place).items()
        return np.array([steps * about(place)["batch"], seconds])
    def ours(steps):
        start = time.process_time(); train(Config(dataset, "unet", steps=steps, **known.settings))
        return np.array([steps * known.settings["batch"], time.process_time() - start])
    known = load_plan("cpu")
    ours(1)
    (images, seconds), (own, time_of_own) = theirs(240) - theirs(60), ours(43) - ours(3)
    print(f"{peer} {images / seconds:.2f}, unet {own / time_of_own:.2f} images a second")
    return images / seconds * known.throughput["unet"] / (own / time_of_own)


def scored_instances(peer: str, dataset: str, place: Path, training: tuple[int, int]) -> tuple[list, list]:
    "As `scored`, of label maps"
    (fold, seed), found, levels = training, [], []
    planned = {steps: seconds for seconds, steps in json.loads((place / "levels.json").read_text())}
    run = next(c for c in head_runs(dataset) if (c.model, c.fold) == ("unet", fold))
    cases = [load_cases(dataset)[i] for i in split_of(run).test]
    for steps, kept in load_finished(place).items():
        maps = [relabel_sequential(kept[f"answer{k}"])[0] for k in range(len(cases))]
        rows = score_label_maps(replace(run, model=peer, seed=seed), peer, cases, maps)
        found.append(rows.assign(steps=steps))
        levels.append(dict(fold=fold, seed=seed, steps=steps, seconds=planned[steps],
                           measured_cpu_seconds=round(float(kept["seconds"]), 1), machine=machine_class()))
    return found, levels


def scored(peer: str, dataset: str, settings: dict, place: Path, training: tuple[int, int]) -> tuple[list, list]:
    "Rows and costs of a peer's finished runs of one training, by the kit's rule and code"
    (fold, seed), found, levels = training, [], []
    test = [load_cases(dataset)[i] for i in fold_indices(dataset, fold)[1]]
    planned = {steps: seconds for seconds, steps in json.loads((place / "levels.json").read_text())}
    config = Config(dataset, peer, fold, seed, size=grid_size(dataset), batch=about(place)["batch"],
                    normalise=settings["normalise"])
    for steps, (answers, seconds) in done(place).items():
        predicted = [(case, argmax_label_map(torch.from_numpy(p).float(), case.semantic_mask().shape))
                     for case, p in zip(test, answers, strict=True)]
        found.append(score_predictions(config, predicted).assign(steps=steps))
        levels.append(dict(fold=fold, seed=seed, steps=steps, seconds=planned[steps],
                           measured_cpu_seconds=round(seconds, 1), machine=machine_class()))
    return found, levels


def published(peer: str, dataset: str) -> list[dict]:
    "Levels whose rows are committed"
    path = folder("reports") / "peers" / peer / dataset / "peer.json"
    return json.loads(path.read_text())["levels"] if path.exists() else []


def publish(peer: str, dataset: str, settings: dict, work: Path) -> None:
    "Write rows and costs of a peer's finished runs beside those that were published before"
    reached, places = folder("reports") / "peers" / peer / dataset, {}
    for pair in trainings(dataset, settings):
        place = work / dataset / "fold{}seed{}".format(*pair)
        if (place / "levels.json").exists() and load_finished(place): places[pair] = place
    if settings.get("instances"): results = [scored_instances(peer, dataset, v, pair) for pair, v in places.items()]
    else: results = [scored(peer, dataset, settings, place, pair) for pair, place in places.items()]
    new, levels = sum((r[0] for r in results), []), sum((r[1] for r in results), [])
    rows, keys = pd.concat(new), {(v["fold"], v["seed"], v["steps"]) for v in levels}
    if before := published(peer, dataset):
        levels += [v for v in before if (v["fold"], v["seed"], v["steps"]) not in keys]
        known = read_rows(reached)
        rows = pd.concat([known[[k not in keys for k in zip(known.fold, known.seed, known.steps)]], rows])
    levels = sorted(levels, key=lambda v: (v["fold"], v["seed"], v["steps"]))
    table = write_rows(reached, rows.sort_values(["fold", "seed", "steps"], kind="stable"))
    size = {} if settings.get("instances") else dict(size=grid_size(dataset))
    facts = dict(peer=peer, dataset=dataset, **size, levels=levels,
                 settings={k: v for k, v in settings.items() if k != "packages"},
                 about=about(next(iter(places.values()))), content=load_frozen_split(dataset)["content"],
                 cases_sha256=sha256(table), medseg_nb=version("medseg_nb"))
    write(reached / "peer.json", to_json(facts))
    measures = ["pq", "ap50", "dice"] if settings.get("instances") else ["dice"]
    means = summarize_patient_scores(rows, ["dataset", "model", "steps"], measures)
    print(means.to_string(index=False))


def main() -> None:
    known = read_yaml(HERE / "peers.yaml")
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("peer", choices=known); asked.add_argument("--data", nargs="+", required=True, metavar="ID")
    asked.add_argument("--work", type=Path, required=True,
                       help="folder for environments and weights, outside the project")
    asked.add_argument("--levels", type=float, nargs="+", metavar="SECONDS", help="train these levels alone")
    asked.add_argument("--trainings", type=int, metavar="N", help="train no more than the first N of each level")
    asked.add_argument("--score", action="store_true", help="score the runs that are finished, and train none")
    asked.add_argument("--measure", action="store_true", help="measure the throughput, and nothing else")
    asked = asked.parse_args()
    work = asked.work.resolve() / asked.peer
    for dataset in asked.data:
        settings = settings_for(dataset, known[asked.peer])
        if not asked.score:
            python = environment(work / "environment", settings["packages"])
            of_instances = bool(settings.get("instances"))
            if asked.measure:
                measured = measure_instances if of_instances else measure
                print(f"throughput: {measured(python, asked.peer, dataset, settings, work):.3g}"); continue
            finished = {(v["fold"], v["seed"], v["seconds"]) for v in published(asked.peer, dataset)}
            for (fold, seed), levels in [*trainings(dataset, settings).items()][:asked.trainings]:
                missing = [v for v in levels if v in (asked.levels or levels) and (fold, seed, v) not in finished]
                if not missing: continue
                now = settings | dict(seed=seed, levels=missing)
                given = export_instances if of_instances else export
                place = given(work / dataset / f"fold{fold}seed{seed}", dataset, now, fold)
                ask(python, asked.peer, place, settings["threads"])
                publish(asked.peer, dataset, settings, work)
        else: publish(asked.peer, dataset, settings, work)


if __name__ == "__main__": main()
