"The node under load: none lost, none doubled, and no more memory than a few series take."
import json
import os
import subprocess
import sys

import pytest
from conftest import PLAIN, REPO, needs


@pytest.mark.stress
def test_fifty_series_from_eight_senders_to_orthanc(tmp_path):
    "Two kills of the node, and a minute without the archive; each series is answered once"
    orthanc, unshare = needs("Orthanc"), needs("unshare", of="orthanc")
    if subprocess.run([unshare, "-rn", "true"], capture_output=True).returncode:
        needs("a network namespace", of="orthanc")  # a container may forbid it
    paths = os.pathsep.join([str(REPO), str(REPO / "tests"), os.environ.get("PYTHONPATH", "")])
    program = [sys.executable, str(REPO / "tests" / "orthanc_load.py"), orthanc, str(tmp_path)]
    done = subprocess.run([unshare, "-rn", *program], env=PLAIN | dict(PYTHONPATH=paths), capture_output=True,
                          text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    print(told)
    assert told["segs"] == told["series"] == 50 and told["slices"] == 5000 and told["kills"] == 2
    first, *later = told["peaks_mb"]  # of the node's lives: the first answers some nine series, the others the rest
    assert max(later) < first + 4 * told["series_mb"], "more series take no more memory"
