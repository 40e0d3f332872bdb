"Long tests on the real study, run by `make stress`."
import os
import random
import shutil
import signal
import subprocess
import sys

import pytest

from conftest import PLAIN, REPO, Project

pytestmark = pytest.mark.stress


class Clone(Project):
    "The real study in a folder of its own"
    def environment(self) -> dict: return PLAIN | dict(MEDSEG_ROOT=str(self.root), MEDSEG_RUNS="runs", MEDSEG_CACHE="cache")


@pytest.fixture
def clone(tmp_path) -> Clone:
    for name in ("nbs", "data_manifests"): shutil.copytree(REPO / name, tmp_path / "clone" / name)
    for name in ("README.md", "requirements.lock", "settings.ini"): shutil.copy(REPO / name, tmp_path / "clone" / name)
    return Clone(tmp_path / "clone")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups that can be killed at once")
def test_kill_the_smoke_paper_at_any_moment(clone, tmp_path):
    "Ten kills, then one call; the results are those of an undisturbed project"
    undisturbed = Clone(shutil.copytree(clone.root, tmp_path / "undisturbed"))
    draws, kills = random.Random(5), 0
    for _ in range(10):
        process = clone.start("paper")
        try: process.communicate(timeout=draws.uniform(2, 60))
        except subprocess.TimeoutExpired: os.killpg(process.pid, signal.SIGKILL); kills += 1
        process.communicate()
    assert kills >= 5
    for project in (clone, undisturbed):
        process = project.start("paper")
        _, err = process.communicate(timeout=1800)
        assert process.returncode == 0, err
    mine, other = clone.files(), undisturbed.files()
    assert set(mine) == set(other) and [k for k in mine if mine[k] != other[k]] == []


def test_two_smoke_papers_at_once(clone):
    both = [clone.start("paper") for _ in range(2)]
    ends = [p.communicate(timeout=3600) for p in both]
    assert [p.returncode for p in both] == [0, 0], ends


@pytest.mark.parametrize("seed", range(200))
def test_cut_and_flipped_images_never_crash(seed, tmp_path):
    "A damaged file is read as an image or refused as bad input; nothing else happens"
    import numpy as np
    from PIL import Image

    from medseg_nb.core import InputError
    from medseg_nb.images import read
    draws = np.random.default_rng(seed)
    path = tmp_path / f"x.{['png', 'gif', 'tif', 'jpg', 'npy'][seed % 5]}"
    pixels = draws.integers(0, 255, (24, 31), dtype=np.uint8)
    np.save(path, pixels) if path.suffix == ".npy" else Image.fromarray(pixels).save(path)
    data = bytearray(path.read_bytes())
    for k in draws.integers(0, len(data), 5): data[k] = draws.integers(0, 255)
    path.write_bytes(bytes(data[:len(data) - int(draws.integers(0, 2) * draws.integers(0, len(data)))]))
    try: assert read(path).ndim in (2, 3)
    except InputError as e: assert path.name in str(e) and "; " in str(e)
