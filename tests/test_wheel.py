"An installed package, far from any checkout: what it carries, and where it puts results"
import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import PLAIN, REPO, Project
from PIL import Image
from test_own_study import PATIENTS, draw_squares, shorten_plan

PARTS = ("medseg_nb", "nbs", "data_manifests", "models", "reports/peers/agreement")
FILES = ("setup.py", "settings.ini", "pyproject.toml", "MANIFEST.in", "requirements.lock", "README.md", "LICENSE",
         "CHANGELOG.md", "CITATION.cff")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    "A folder with what a wheel puts beside other packages; the wheel is built from the source distribution"
    place = tmp_path_factory.mktemp("wheel")
    leave_out = shutil.ignore_patterns("__pycache__")
    for name in PARTS: shutil.copytree(REPO / name, place / "source" / name, ignore=leave_out)
    for name in FILES: shutil.copyfile(REPO / name, place / "source" / name)
    build = f"import setuptools.build_meta as backend; backend.build_sdist({str(place)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=place / "source", check=True, capture_output=True)
    source, = place.glob("*.tar.gz")
    make_wheel = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", place]
    subprocess.run([*make_wheel, source], check=True)
    wheel, = place.glob("*.whl")
    assert wheel.stat().st_size < 40e6
    with zipfile.ZipFile(wheel) as z: z.extractall(place / "site")
    shutil.rmtree(place / "source")
    return place / "site"


def call(installed: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess:
    "`medseg` of the installed package"
    env = PLAIN | dict(PYTHONPATH=str(installed), HOME=str(cwd), XDG_CACHE_HOME=str(cwd / "cache"))
    code = "from medseg_nb.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *words], cwd=cwd, env=env, capture_output=True, text=True)


def test_a_wheel_carries_what_the_kit_looks_up(installed):
    shipped = {p.relative_to(installed / "medseg_nb" / "shipped").as_posix()
               for p in (installed / "medseg_nb").rglob("shipped/**/*") if p.is_file()}
    tracked = subprocess.run(["git", "-C", REPO, "ls-files", "nbs", "data_manifests", "models"], capture_output=True,
                             text=True, check=True).stdout.split()
    wanted = {f for f in tracked if not f.startswith("nbs/library") and not f.endswith(("README.md", ".ipynb"))}
    assert wanted | {f for f in tracked if f.startswith("nbs/study/") and f.endswith(".ipynb")} <= shipped
    assert not any("site-packages" in p for p in shipped)


@pytest.mark.long
def test_pictures_are_segmented_right_after_the_installation_as_well_as_the_card_says(installed, tmp_path):
    "No checkout, no workspace, no data: the models are in the wheel"
    assert "nuclei" in call(installed, tmp_path, "models", "list").stdout
    copied = call(installed, tmp_path, "models", "examples", "nuclei", "--out", "examples")
    pictures = sorted((tmp_path / "examples" / "images").iterdir())
    assert len(pictures) >= 5 and f"{len(pictures)} images with their masks" in copied.stdout, copied.stderr
    done = call(installed, tmp_path, "predict", "nuclei", "examples/images", "--out", "masks")
    assert done.returncode == 0, done.stderr
    scores = []
    for picture in pictures:
        found = np.asarray(Image.open(tmp_path / "masks" / picture.name)) > 0
        truth = np.asarray(Image.open(tmp_path / "examples" / "masks" / picture.name)) > 0
        scores.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
    card = json.loads((installed / "medseg_nb" / "shipped" / "models" / "nuclei" / "card.json").read_text())
    assert len(scores) == card["examples"]["pictures"]
    assert np.mean(scores) == pytest.approx(card["examples"]["dice"], abs=.003)
    scored = call(installed, tmp_path, "evaluate", "masks", "examples/masks", "--objects", "--out", "scores.csv")
    assert scored.returncode == 0, scored.stderr
    with (tmp_path / "scores.csv").open() as file: rows = list(csv.DictReader(file))
    assert np.mean([float(r["dice"]) for r in rows]) == pytest.approx(np.mean(scores), abs=1e-5)
    assert {p.name for p in tmp_path.iterdir()} <= {"masks", "cache", "examples", "scores.csv"}


def test_the_package_is_imported_in_a_moment(installed, tmp_path):
    "By the clock of the processor, which other processes do not slow"
    code = "import time; t = time.process_time(); import medseg_nb; print(time.process_time() - t)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=PLAIN | dict(PYTHONPATH=str(installed)),
                          capture_output=True, text=True, check=True)
    assert float(done.stdout) < .2


@pytest.mark.long
def test_a_workspace_takes_data_and_plans_outside_of_a_checkout(installed, tmp_path):
    draw_squares(tmp_path / "squares")
    refused = call(installed, tmp_path, "data", "add", "squares", "--id", "squares", "--yes")
    assert refused.returncode == 2 and "make one with medseg new FOLDER" in refused.stderr
    assert call(installed, tmp_path, "new", "lungs").returncode == 0
    again = call(installed, tmp_path, "new", "lungs")
    assert again.returncode == 2 and "holds something already; name a new folder" in again.stderr
    inside = tmp_path / "lungs" / "own"
    added = call(installed, inside, "data", "add", "../../squares", "--id", "squares", "--yes")
    assert added.returncode == 0, added.stderr
    planned = call(installed, inside, "study", "squares", "--minutes", "6", "-j", "2", "--dry-run")
    assert planned.returncode == 0 and f"{PATIENTS} patients" in planned.stdout, planned.stderr
    assert {p.name for p in (tmp_path / "lungs").iterdir()} >= {"own", "studies", "medseg.yaml"}
    assert not (tmp_path / "own").exists() and not (inside / "own").exists()
    listed = call(installed, inside, "data", "list").stdout
    assert "squares" in listed and "phantom_skin" in listed


def test_what_an_extra_brings_is_asked_for_in_one_line(installed, tmp_path):
    "As on a machine that has the core alone: the distribution is found, and one of its requirements is not"
    shutil.copytree(installed, tmp_path / "site")
    metadata, = (tmp_path / "site").glob("*.dist-info/METADATA")
    text = metadata.read_text(encoding="utf-8")
    metadata.write_text(text.replace("Provides-Extra: study",
                                     "Provides-Extra: study\nRequires-Dist: nosuch-typesetter; extra == 'study'"),
                        encoding="utf-8")
    os.mkdir(tmp_path / "work")
    call(tmp_path / "site", tmp_path / "work", "new", "w")
    answer = call(tmp_path / "site", tmp_path / "work" / "w", "paper")
    assert answer.returncode == 4
    assert answer.stderr == "error: nosuch-typesetter: not installed, and needed for this; " \
                            "pip install 'medseg_nb[study]'\n"


@pytest.mark.stress  # two minutes of the processor, most of them for trainings and report
def test_pictures_go_from_a_folder_to_a_report_and_an_exported_model(installed, tmp_path):
    "What the wheel promises, in a workspace far from any checkout: each command takes what the one before it has left"
    draw_squares(tmp_path / "squares")
    assert call(installed, tmp_path, "new", "work").returncode == 0
    work, images = tmp_path / "work", tmp_path / "squares" / "images"
    def medseg(*words):
        done = call(installed, work, *words)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout
    medseg("data", "add", "../squares", "--id", "squares", "--yes")
    study = ("study", "squares", "--minutes", "6", "-j", "2")
    medseg(*study, "--dry-run")
    shorten_plan(Project(work), "squares")
    assert "next: medseg predict squares/best IMAGES" in medseg(*study)
    report = work / "studies" / "squares" / "own"
    page = (report / "article.html").read_text(encoding="utf-8")
    assert f"{PATIENTS} patients" in page and "phantom" not in page.lower()
    assert (report / "article.pdf").read_bytes().startswith(b"%PDF")
    shutil.copytree(images, work / "some", ignore=lambda _, names: names[3:])
    assert "3 of 3 images segmented" in medseg("predict", "squares/best", "some", "--out", "masks")
    medseg("export", "squares/best", "--out", "artefact")
    assert "3 of 3 images segmented" in medseg("predict", "artefact", "some", "--out", "same")
    pairs = [[np.asarray(Image.open(work / d / p.name)) for d in ("masks", "same")] for p in (work / "some").iterdir()]
    assert all((a == b).mean() > .99 for a, b in pairs) and any(a.any() for a, _ in pairs)
    picture = next((work / "some").iterdir())
    medseg("explain", "squares/best", picture, "--target", "class:1", "--method", "grad_cam_pp", "--out", "why")
    assert len([*(work / "why").glob("*.png")]) == len([*(work / "why").glob("*.json")]) == 1
    made = subprocess.run([sys.executable, "-c", "import medseg_nb; print(medseg_nb.__file__)"], cwd=work, text=True,
                          env=PLAIN | dict(PYTHONPATH=str(installed)), capture_output=True, check=True).stdout
    assert Path(made.strip()).is_relative_to(installed), "the modules are the wheel's"
