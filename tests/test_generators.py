"Generators: a training or a drawing that is killed leaves nothing half-written, and ends with the same bytes."
import json
import multiprocessing
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from medseg_nb.kit.execution import set_environment
from medseg_nb.kit.storage import remove_leftovers
from medseg_nb.methods.generation import generator_config, synthesise

PRELOADED = ["medseg_nb.methods.generation", "medseg_nb.methods.gan", "medseg_nb.methods.diffusion", "diffusers"]


def draw(model: str, runs: Path) -> None:
    "Train a generator on phantoms and draw an image for each training case, on one thread"
    import torch
    torch.set_num_threads(1)
    settings = dict(size=16, width=8, batch=4, steps=12)
    with set_environment(MEDSEG_RUNS=str(runs)): synthesise(generator_config("phantom_skin", model, **settings))


def wait_for(runs: Path, pattern: str, process) -> bool:
    "Wait until a file is there; whether the process was still busy then"
    while process.is_alive():
        if any(runs.glob(pattern)): return True
        time.sleep(.002)
    return False


def whole_files(runs: Path) -> dict[str, bytes]:
    "What is stored of runs, but locks, what it cost, and what begins with a dot"
    found = [p for p in sorted(runs.rglob("*")) if p.is_file() and p.suffix != ".lock" and not p.name.startswith(".")]
    return {p.name: p.read_bytes() for p in found if p.name not in ("lock", "measured.json")}


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork server")
@pytest.mark.parametrize("model", ["pix2pix", "diffusion"])
def test_a_killed_generator_ends_with_the_same_bytes(tmp_path, model):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    def start(runs):
        process = context.Process(target=draw, args=(model, runs)); process.start()
        return process
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    first = start(undisturbed); first.join()
    whole = whole_files(undisturbed)
    assert first.exitcode == 0 and {"weights.safetensors", "config.json"} < set(whole)
    busy = []
    for pattern, delay in (("*/lock", .2), ("*/config.json", 0), ("*/scored.json", .02)):  # training, storing, drawing
        process = start(killed)
        busy.append(wait_for(killed, pattern, process))
        time.sleep(delay); process.kill(); process.join()
        assert whole_files(killed).items() <= whole.items(), f"killed {delay} s after {pattern} was there"
    assert busy[0] and sum(busy) > 1, "it was killed in its midst"
    for lock in killed.glob("*/lock"): lock.with_name(".weights.safetensors-half").touch()  # as of a kill in a write
    last = start(killed); last.join()
    assert last.exitcode == 0 and whole_files(killed) == whole
    assert remove_leftovers(killed) and not list(killed.rglob(".*")), "no half-written file stays"
    archive, = killed.glob("*/synthetic-*.npz")
    with np.load(archive) as stored: assert len(stored["images"]) == len(stored["masks"]) > 0
    assert json.loads(whole["config.json"])["model"] == model and not list(killed.glob("*/failed.json"))
