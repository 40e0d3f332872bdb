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

import numpy as np
import pandas as pd
import torch

from medseg_nb.training.plan import load_plan
from medseg_nb.kit.core import folder, machine_class, read_yaml, sha256, to_json, write
from medseg_nb.data.manifest import load_cases, load_frozen_split, load_manifest
from medseg_nb.training.inference import argmax_label_map
from medseg_nb.preparation.preprocess import load_prepared_cases
from medseg_nb.kit.report import write_rows
from medseg_nb.data.splits import fold_indices
from medseg_nb.evaluation.intervals import summarize_patient_scores
from medseg_nb.training.training import Config, score_predictions, train

SIZE, FOLD = 128, 0
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


def export(place: Path, dataset: str, settings: dict) -> Path:
    "What a peer is given: images and masks of the training patients, and images alone of the test patients"
    images, masks = load_prepared_cases(dataset, (SIZE, SIZE), settings["normalise"])
    chosen, test = fold_indices(dataset, FOLD)
    place.mkdir(parents=True, exist_ok=True)
    (place / "settings.json").write_text(json.dumps(settings | dict(labels=load_manifest(dataset).labels)))
    if not (place / "given.npz").exists():
        np.savez(place / "given.npz", train_images=images[chosen], train_masks=masks[chosen], test_images=images[test])
    return place


def ask(python: Path, peer: str, place: Path, threads: int) -> None:
    subprocess.run([python, HERE / f"{peer}.py", place],
                   check=True, env=os.environ | KEPT | dict(OMP_NUM_THREADS=str(threads)))


def done(place: Path) -> dict[int, tuple[np.ndarray, float]]:  # probabilities (case, class, row, column), CPU-seconds
    "Finished runs of a peer by their steps"
    found = {int(p.stem[5:]): np.load(p, allow_pickle=False) for p in place.glob("steps*.npz") if p.stem[5:].isdigit()}
    return {steps: (found[steps]["answers"], float(found[steps]["seconds"])) for steps in sorted(found)}


def about(place: Path) -> dict: return json.loads((place / "about.json").read_text())


def measure(python: Path, peer: str, dataset: str, settings: dict, work: Path) -> float:  # images a second
    """Throughput of a peer for a thread on which the kit's U-Net has the throughput of nbs/plans.yaml; both are
    measured, each by the difference of a long and a short run"""
    def theirs(images):
        place = export(work / f"measured{images}", dataset,
                       settings | dict(seconds=images, throughput=1, epochs=1, levels=[1]))
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


def publish(peer: str, dataset: str, settings: dict, place: Path) -> None:
    "Score a peer's finished runs by the kit's rule and code, and write rows and costs"
    told, test, found, levels = about(place), [load_cases(dataset)[i] for i in fold_indices(dataset, FOLD)[1]], [], []
    config = Config(dataset, peer, FOLD, settings["seed"],
                    size=SIZE, batch=told["batch"], normalise=settings["normalise"])
    for share, (steps, (answers, seconds)) in zip(settings["levels"], done(place).items()):
        predicted = [(case, argmax_label_map(torch.from_numpy(p).float(), case.semantic_mask().shape))
                     for case, p in zip(test, answers, strict=True)]
        found.append(score_predictions(config, predicted).assign(steps=steps))
        levels.append(dict(steps=steps, share=share, seconds=share * settings["seconds"],
                           measured_cpu_seconds=round(seconds, 1)))
    reached = folder("reports") / "peers" / peer / dataset
    table = write_rows(reached, pd.concat(found))
    facts = dict(peer=peer, dataset=dataset, fold=FOLD,
                 size=SIZE, settings={k: v for k, v in settings.items() if k != "packages"}, levels=levels, about=told,
                 machine=machine_class(), content=load_frozen_split(dataset)["content"],
                 cases_sha256=sha256(table), medseg_nb=version("medseg_nb"))
    write(reached / "peer.json", to_json(facts))
    means = summarize_patient_scores(pd.concat(found), ["dataset", "model", "steps"], ["dice"])
    print(means.to_string(index=False))


def main() -> None:
    known = read_yaml(HERE / "peers.yaml")
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("peer", choices=known); asked.add_argument("--data", nargs="+", required=True, metavar="ID")
    asked.add_argument("--work", type=Path, required=True,
                       help="folder for environments and weights, outside the project")
    asked.add_argument("--upto", type=float, default=1.,
                       metavar="SHARE", help="train no level above this share of the cost")
    asked.add_argument("--score", action="store_true", help="score the runs that are finished, and train none")
    asked.add_argument("--measure", action="store_true", help="measure the throughput, and nothing else")
    asked = asked.parse_args()
    settings, work = known[asked.peer], asked.work.resolve() / asked.peer
    now = settings | dict(levels=[v for v in settings["levels"] if v <= asked.upto])
    for dataset in asked.data:
        if not asked.score:
            python = environment(work / "environment", settings["packages"])
            if asked.measure: print(f"throughput: {measure(python, asked.peer, dataset, settings, work):.3g}"); continue
            ask(python, asked.peer, export(work / dataset, dataset, now), settings["threads"])
        publish(asked.peer, dataset, settings, work / dataset)


if __name__ == "__main__": main()
