"Exported models where there is no torch: a program, a page, and what `workflow/serving.sh` lays into an empty folder"
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from conftest import PLAIN, REPO, needs

from medseg_nb.data.manifest import load_cases
from medseg_nb.deployment.export import export_run
from medseg_nb.deployment.predict import predict_files

BASE_MB = 130  # of the Debian image with Python that the Dockerfile begins with
NO_TORCH = """import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "safetensors"): raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    "The shipped phantom model as ONNX"
    place = tmp_path_factory.mktemp("artefact") / "model"
    export_run("phantom", "onnx", place)
    return place


@pytest.fixture
def medseg(tmp_path) -> list:
    "The command line of this checkout, to which torch is not installed"
    (tmp_path / "sitecustomize.py").write_text(NO_TORCH)
    return [sys.executable, "-c", "from medseg_nb.cli import main; main()"]


def pictures() -> list[Path]: return [case.images[0] for case in load_cases("phantom_skin")[:3]]


def answers(command: list, env: dict, model: Path, place: Path) -> None:
    "Label maps equal to those of the artefact in this process, and a page that asks for its token"
    done = subprocess.run([*command, "predict", model, *pictures(), "--out", "masks"], cwd=place, env=env,
                          capture_output=True, text=True)
    assert done.returncode == 0 and "3 of 3 images segmented" in done.stderr + done.stdout, done.stderr
    predict_files(str(model), pictures(), place / "here")
    for picture in pictures():
        assert (place / "masks" / picture.name).read_bytes() == (place / "here" / picture.name).read_bytes()
    server = subprocess.Popen([*command, "serve", "app", model], cwd=place, env=env, stdout=subprocess.PIPE, text=True)
    try:
        address = re.match(r"http://127\.0\.0\.1:\d+/\?token=\S+", server.stdout.readline())[0]
        with httpx.Client(trust_env=False, timeout=20, follow_redirects=True) as reader:
            assert reader.get(address.partition("?")[0]).status_code == 401
            assert "<html" in reader.get(address).text.lower()
    finally: server.terminate(); server.wait(20); server.stdout.close()


@pytest.mark.long
def test_an_exported_model_answers_where_torch_cannot_be_imported(medseg, model, tmp_path):
    env = PLAIN | dict(PYTHONPATH=f"{tmp_path}{os.pathsep}{REPO}")
    refused = subprocess.run([*medseg, "predict", "nuclei", pictures()[0], "--out", "m"], cwd=tmp_path, env=env,
                             capture_output=True, text=True)
    assert refused.returncode == 4 and re.search("(torch|safetensors): not installed", refused.stderr), refused.stderr
    answers(medseg, env, model, tmp_path)


@pytest.mark.stress  # some hundred megabytes are downloaded
def test_the_steps_of_the_container_in_a_clean_folder(model, tmp_path):
    needs("bash")
    done = subprocess.run(["bash", REPO / "workflow" / "serving.sh", tmp_path / "serving"], env=PLAIN, cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size = int(re.search(r"(\d+) MB", done.stdout)[1])
    assert size + BASE_MB < 1000 and not list((tmp_path / "serving").rglob("site-packages/torch"))
    env = dict(PATH=f"{tmp_path / 'serving' / 'bin'}{os.pathsep}/usr/bin:/bin", HOME=str(tmp_path))
    answers(["medseg"], env, model, tmp_path)
