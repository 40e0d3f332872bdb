"""StarDist (2D) on exported images of objects, in its own environment: `python -P stardist.py FOLDER` (run.py calls
it).

Reads given.npz and settings.json of FOLDER. Trains one run a level. Writes about.json, and of each run steps<N>.npz:
label maps of the test images, and CPU-seconds."""
import json
import os
import resource
import sys
from importlib.metadata import version
from pathlib import Path

os.environ |= dict(TF_CPP_MIN_LOG_LEVEL="3", TF_DETERMINISTIC_OPS="1")

import numpy as np
import tensorflow as tf
from csbdeep.utils import normalize
from stardist.models import Config2D, StarDist2D

PLACE = Path(sys.argv[1]).resolve()
SETTINGS = json.loads((PLACE / "settings.json").read_text())
BATCH, EPOCHS, PATIENCE = 4, 20, 2  # the default is a patience of 40 in 400 epochs


def used() -> float:
    return sum(t.ru_utime + t.ru_stime
               for t in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def load(given, part: str) -> list[np.ndarray]:
    "Arrays of a part, which have sizes of their own"
    return [given[f"{part}{k}"] for k in range(sum(name.rstrip("0123456789") == part for name in given.files))]


def prepared(images: list[np.ndarray]) -> list[np.ndarray]:  # (row, column, channel)
    return [normalize(np.moveaxis(x, 0, -1).astype(np.float32), 1, 99.8, axis=(0, 1)) for x in images]


def changed(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    "Flips, quarter turns, another brightness and noise, as the library's example for nuclei has them"
    turns, flip = np.random.randint(4), np.random.rand() < .5
    x, y = (np.rot90(a[:, ::-1] if flip else a, turns).copy() for a in (x, y))
    x = x * np.random.uniform(.6, 2) + np.random.uniform(-.2, .2)
    return x + .02 * np.random.uniform(0, 1) * np.random.normal(0, 1, x.shape), y


def main() -> None:
    given = np.load(PLACE / "given.npz", allow_pickle=False)
    for limit in (tf.config.threading.set_intra_op_parallelism_threads,
                  tf.config.threading.set_inter_op_parallelism_threads): limit(SETTINGS["threads"])
    learnt, tuned = (list(zip(prepared(load(given, f"{p}_image")), load(given, f"{p}_label")))
                     for p in ("train", "tuning"))
    for level in SETTINGS["levels"]:
        each = max(1, round(level * SETTINGS["throughput"] / BATCH / EPOCHS))
        steps, known = each * EPOCHS, PLACE / "levels.json"
        levels = json.loads(known.read_text()) if known.exists() else []
        known.write_text(json.dumps([v for v in levels if v[1] != steps] + [[level, steps]]))
        done = PLACE / f"steps{steps}.npz"
        if done.exists(): continue
        tf.keras.utils.set_random_seed(SETTINGS["seed"])
        config = Config2D(n_channel_in=learnt[0][0].shape[-1], grid=(2, 2), train_epochs=EPOCHS,
                          train_steps_per_epoch=each, train_batch_size=BATCH, train_tensorboard=False,
                          train_n_val_patches=len(tuned),
                          train_reduce_lr=dict(factor=.5, patience=PATIENCE, min_delta=0))
        net, start = StarDist2D(config, name=f"steps{steps}", basedir=str(PLACE)), used()
        net.train(*zip(*learnt), validation_data=tuple(zip(*tuned)), augmenter=changed, seed=SETTINGS["seed"])
        seconds = used() - start
        net.optimize_thresholds(*zip(*tuned))
        found = [net.predict_instances(x)[0] for x in prepared(load(given, "test_image"))]
        about = dict(parameters=net.keras_model.count_params(), batch=BATCH, patch=config.train_patch_size,
                     network="U-Net, 32 rays, grid 2", precision="fp32",
                     optimiser=f"Adam, rate {config.train_learning_rate}, halved where validation does not improve "
                     f"within {PATIENCE} of {EPOCHS} epochs",
                     validation="the images that the kit's settings are chosen on: rate, weights and thresholds",
                     versions={p: version(p) for p in ("stardist", "tensorflow-cpu", "keras", "numpy", "csbdeep")})
        (PLACE / "about.json").write_text(json.dumps(about, default=str))
        np.savez_compressed(done.with_suffix(".part.npz"), seconds=seconds,
                            **{f"answer{k}": y.astype(np.int32) for k, y in enumerate(found)})
        done.with_suffix(".part.npz").replace(done)


if __name__ == "__main__": main()
