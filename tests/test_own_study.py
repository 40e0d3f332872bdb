"A study of a data set of one's own: from a folder of images to a plan, a report and a model that has a name"
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import REPO, Project
from PIL import Image

PATIENTS = 30


@pytest.fixture
def whole(tmp_path) -> Project:
    "The study's own sections, without results"
    for name in ("nbs", "data_manifests", "reports/peers"): shutil.copytree(REPO / name, tmp_path / "project" / name)
    return Project(tmp_path / "project")


def draw_squares(place: Path) -> None:
    "Bright rectangles of two images a patient"
    draws = np.random.default_rng(0)
    for name in ("images", "masks"): (place / name).mkdir(parents=True)
    for k in range(PATIENTS):
        for i in range(2):
            (row, column), (height, width) = draws.integers(4, 30, 2), draws.integers(8, 24, 2)
            mask = np.zeros((64, 64), np.uint8)
            mask[row:row + height, column:column + width] = 1
            picture = (90 * mask + draws.integers(0, 80, mask.shape)).astype(np.uint8)
            Image.fromarray(mask).save(place / "masks" / f"p{k:02}_{i}.png")
            Image.fromarray(picture).save(place / "images" / f"p{k:02}_{i}.png")


def add_squares(project: Project) -> None:
    "Rectangles, added as a user would"
    place = project.root.parent / "squares"
    draw_squares(place)
    added = project.medseg("data", "add", str(place), "--id", "squares", "--yes")
    assert added.returncode == 0 and "next: medseg study squares" in added.stdout, added.stderr


def shorten_plan(project: Project) -> None:
    "Each training of the plan takes a second"
    path = project.root / "private" / "plans" / "squares.yaml"
    text = path.read_text(encoding="utf-8")
    assert text.count("\nseconds: 60.0\n") == 1
    path.write_text(text.replace("\nseconds: 60.0\n", "\nseconds: 1.0\n"), encoding="utf-8")


def read_reports(project: Project) -> dict[str, bytes]:
    return {k: v for k, v in project.files().items() if k.startswith("reports/own/") and "measured" not in k}


def test_a_study_goes_from_a_folder_to_a_named_model(whole):
    add_squares(whole)
    dry = whole.medseg("study", "squares", "--minutes", "6", "-j", "2", "--dry-run")
    assert dry.returncode == 0 and not (whole.reports / "own").exists(), dry.stderr
    assert f"{PATIENTS} patients, {2 * PATIENTS} cases" in dry.stdout and "1 fold, 1 seed, 60 s each" in dry.stdout
    shorten_plan(whole)
    done = whole.medseg("study", "squares", "--minutes", "6", "-j", "2")
    assert done.returncode == 0, done.stderr
    assert "next: medseg predict squares/best IMAGES" in done.stdout
    page = (whole.reports / "own" / "article.html").read_text(encoding="utf-8")
    assert "What follows was guessed" in page and "Where the networks fail" in page and "cases.svg" in page
    assert "phantom" not in page.lower() and "ISIC" not in page, "nothing of the kit's own data"
    assert "Patients are unknown here" not in page and "warning" not in done.stderr
    first = read_reports(whole)
    again = whole.medseg("study", "squares", "--minutes", "6", "-j", "2")
    assert again.returncode == 0 and "executed" not in again.stderr and read_reports(whole) == first
    runs = json.loads(whole.call("models", "--json").stdout)
    best = next(r for r in runs if r["name"] == "squares/best")
    assert len(runs) == 2 and best["dice"] == max(r["dice"] for r in runs)
    answer = whole.medseg("predict", "squares/best", "../squares/images/p00_0.png", "--out", "answers")
    assert answer.returncode == 0, answer.stderr
    made = {p.relative_to(whole.root / "answers").as_posix() for p in (whole.root / "answers").rglob("*.*")}
    assert made == {"p00_0.png", "pictures/p00_0.png", "predict.csv"}
    assert whole.call("predict", best["key"][:8], "../squares/images/p00_0.png", "--out", "same").returncode == 0


@pytest.mark.parametrize("words, fault", {
    "too short": (["squares", "--minutes", "1"], "1 minutes cannot hold one fold; give --minutes 2 or more"),
    "no time": (["squares", "--minutes", "0"], "give a number above 0"),
    "unknown": (["circles"], "circles: unknown data set"),
    "a table": (["outcome_thoracic"], "fits no study (outcome_thoracic is a table without images)"),
    "volumes": (["phantom_mri_volumes"], "holds volumes"),
}.values(), ids=str)
def test_a_study_is_refused_in_one_line(whole, words, fault):
    if words[0] == "squares": add_squares(whole)
    done = whole.medseg("study", *words)
    assert done.returncode != 0 and fault in done.stderr.replace("\n", " "), done.stderr
    assert "Traceback" not in done.stderr and not (whole.reports / "own").exists()
