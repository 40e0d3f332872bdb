"""Cellpose 3 from random weights on exported images of objects, in its own environment: `python -P cellpose.py FOLDER`
(run.py calls it).

Reads given.npz and settings.json of FOLDER. Trains one run a level. Writes about.json, and of each run steps<N>.npz:
label maps of the test images, and CPU-seconds."""
import json
import resource
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from cellpose.models import CellposeModel
from cellpose.train import train_seg

PLACE = Path(sys.argv[1]).resolve()
SETTINGS = json.loads((PLACE / "settings.json").read_text())
BATCH, GRAY = 8, [0, 0]


def used() -> float:
    return sum(t.ru_utime + t.ru_stime
               for t in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def load(given, part: str) -> list[np.ndarray]:
    "Arrays of a part, which have sizes of their own"
    return [given[f"{part}{k}"] for k in range(sum(name.rstrip("0123456789") == part for name in given.files))]


def main() -> None:
    given = np.load(PLACE / "given.npz", allow_pickle=False)
    torch.set_num_threads(SETTINGS["threads"])
    images, labels = (load(given, f"train_{p}") + load(given, f"tuning_{p}") for p in ("image", "label"))
    gray = [x.astype(np.float32).mean(0) for x in images]
    for level in SETTINGS["levels"]:
        steps, known = max(1, round(level * SETTINGS["throughput"] / BATCH)), PLACE / "levels.json"
        levels = json.loads(known.read_text()) if known.exists() else []
        known.write_text(json.dumps([v for v in levels if v[1] != steps] + [[level, steps]]))
        done = PLACE / f"steps{steps}.npz"
        if done.exists(): continue
        torch.manual_seed(SETTINGS["seed"])
        model, start = CellposeModel(gpu=False, pretrained_model=False), used()
        parameters = sum(p.numel() for p in model.net.parameters())  # what predicts on a processor holds them otherwise
        train_seg(model.net, train_data=gray, train_labels=labels, channels=GRAY, batch_size=BATCH, n_epochs=steps,
                  nimg_per_epoch=BATCH, save_path=PLACE, model_name=f"cellpose{steps}")  # an epoch is one batch
        seconds, diameter = used() - start, float(model.net.diam_labels)
        tests = [x.astype(np.float32).mean(0) for x in load(given, "test_image")]
        found = [model.eval(x, channels=GRAY, diameter=diameter)[0] for x in tests]
        about = dict(parameters=parameters, batch=BATCH, patch=[224, 224],
                     network="residual U-Net with a style vector, of gray images", precision="fp32",
                     optimiser="AdamW, rate 0.005, by its schedule of epochs, of which each is one batch",
                     validation="none: all training images are trained on, its default thresholds are taken",
                     prediction=f"at the mean diameter of the training objects, scaled to {model.diam_mean:g} px",
                     versions={p: version(p) for p in ("cellpose", "torch", "numpy")})
        (PLACE / "about.json").write_text(json.dumps(about))
        np.savez_compressed(done.with_suffix(".part.npz"), seconds=seconds,
                            **{f"answer{k}": y.astype(np.int32) for k, y in enumerate(found)})
        done.with_suffix(".part.npz").replace(done)


if __name__ == "__main__": main()
