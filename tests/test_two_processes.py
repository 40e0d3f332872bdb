"Two processes that train one run by accelerate reach the loss and the weights of a single one."
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import new_project

pytestmark = pytest.mark.long

NETWORK = """from torch import nn

from medseg_nb.kit.keys import register


@register("plain_net")
class PlainNet(nn.Module):
    "No batch normalization, which would see a part of the batch in each process"
    def __init__(self, channels, classes, ndim=2, width=8):
        super().__init__()
        layers = [nn.Conv2d(channels, width, 3, padding=1), nn.GroupNorm(1, width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, classes, 3, padding=1))

    def forward(self, x): return self.layers(x)
"""
TRAIN = """import sys

import numpy as np

from medseg_nb.training.training import Config, _train_with_progress, rank_and_world_size

config = Config(dataset="phantom_skin", module="own.plain_net", model="plain_net", size=32, width=8, batch=8, steps=12)
net, losses = _train_with_progress(config)
rank, processes = rank_and_world_size()
np.savez(f"{sys.argv[1]}-{rank}.npz", losses=losses, processes=processes,
         **{name: w.numpy() for name, w in net.state_dict().items()})
"""


def train(project, name: str, *launcher: str) -> list[dict[str, np.ndarray]]:
    "Losses and weights of each process"
    process = subprocess.run([*map(str, launcher), "train.py", name], cwd=project.root, capture_output=True, text=True,
                             env=project.environment() | dict(OMP_NUM_THREADS="1"), timeout=300)
    assert process.returncode == 0, process.stderr
    return [dict(np.load(p)) for p in sorted(project.root.glob(f"{name}-*.npz"))]


@pytest.mark.skipif(sys.platform == "win32", reason="torchrun with gloo is for Linux and macOS")
def test_two_processes_train_the_run_of_one(tmp_path):
    "Equal losses of whole batches at each step, and equal weights at the end, within the rounding of single precision"
    project, torchrun = new_project(tmp_path / "project"), Path(sys.executable).parent / "torchrun"
    (project.root / "own").mkdir()
    (project.root / "own" / "plain_net.py").write_text(NETWORK)
    (project.root / "train.py").write_text(TRAIN)
    one, = train(project, "one", sys.executable)
    two = train(project, "two", torchrun, "--standalone", "--nproc_per_node", "2")
    assert one["processes"] == 1 and [t["processes"] for t in two] == [2, 2]
    losses = np.mean([t["losses"] for t in two], axis=0)
    assert np.abs(two[0]["losses"] - two[1]["losses"]).max() > 1e-3, "each has another part of the batch"
    assert one["losses"][-1] < .9 * one["losses"][0]
    print(f"largest difference of loss {np.abs(losses - one['losses']).max():.1e}")
    np.testing.assert_allclose(losses, one["losses"], rtol=1e-5)
    for name in set(one) - {"losses", "processes"}:
        assert np.array_equal(two[0][name], two[1][name]), name
        np.testing.assert_allclose(two[0][name], one[name], atol=1e-5, err_msg=name)
