"Long tests on the real study, run by `make stress`; the long fuzzing of readers and scores is in test_properties.py."
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
