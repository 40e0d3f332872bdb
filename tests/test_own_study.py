"A study of one's own data, from a folder to a named model"
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pikepdf
import pytest
import scipy.ndimage
from conftest import REPO, Project, read_table
from filelock import FileLock
from PIL import Image

from medseg_nb.data.manifest import load_cases
from medseg_nb.evaluation.matching import instance_scores
from medseg_nb.kit.report import read_rows
from medseg_nb.methods.instance_heads import split_of, training_and_tuning
from medseg_nb.paper.article import MAX_PAGES, running_text
from medseg_nb.study.instances import list_runs
from medseg_nb.training.default_runs import list_runs as list_default_runs
from medseg_nb.training.study_plan import list_curve_runs
from medseg_nb.training.training import name_run, run_training, training_pool

pytestmark = pytest.mark.long

PATIENTS = 30
LEAST_PAGES = 3  # of a report with all of its parts


def copy_sections(place: Path) -> Project:
    for name in ("nbs", "data_manifests", "reports/peers"): shutil.copytree(REPO / name, place / "project" / name)
    return Project(place / "project", dict(MEDSEG_MODELS=str(REPO / "models")))


@pytest.fixture
def whole(tmp_path) -> Project:
    "Sections, no results"
    return copy_sections(tmp_path)


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


def add_squares(project: Project, hospitals: int = 0) -> None:
    "Rectangles, added as a user would, perhaps with a table of hospitals"
    place = project.root.parent / "squares"
    draw_squares(place)
    if hospitals:
        rows = [f"p{k:02},hospital {k % hospitals}" for k in range(PATIENTS)]
        (place / "patients.csv").write_text("\n".join(["patient,hospital", *rows]))
    added = project.call("data", "add", str(place), "--id", "squares", "--yes")
    assert added.returncode == 0 and "next: medseg study squares" in added.stdout, added.stderr


def add_volumes(project: Project) -> None:
    "Two touching boxes in each of twelve small volumes, as NIfTI"
    place, draws = project.root.parent / "boxes", np.random.default_rng(0)
    for name in ("images", "labels"): (place / name).mkdir(parents=True)
    for k in range(12):
        x, y, z = draws.integers(2, 6, 3)
        labels = np.zeros((22, 18, 14), np.uint8)
        labels[x:x + 7, y:y + 8, z:z + 5], labels[x + 7:x + 13, y:y + 8, z:z + 5] = 1, 2
        image = (60. * labels + draws.normal(0, 9, labels.shape)).astype(np.float32)
        for name, array in dict(images=image, labels=labels).items():
            nibabel.save(nibabel.Nifti1Image(array, np.diag([1, 1, 2, 1])), place / name / f"v{k:02}.nii.gz")
    added = project.call("data", "add", str(place), "--id", "boxes", "--yes")
    assert added.returncode == 0, added.stderr


def draw_cells(draws: np.random.Generator, rows: int = 64, columns: int = 64) -> tuple[np.ndarray, np.ndarray]:
    "A picture of three discs, two of which touch, and its label map"
    y, x = np.mgrid[:rows, :columns]
    first, labels = draws.integers(12, 40, 2), np.zeros((rows, columns), np.uint8)
    for k, (row, column) in enumerate((first, first + (0, 13), (rows - 10, draws.integers(8, columns - 8))), 1):
        labels[(y - row)**2 + (x - column)**2 < 42] = k
    return (draws.normal(40, 9, labels.shape) + 90 * (labels > 0)).clip(0, 255).astype(np.uint8), labels


def add_cells(project: Project) -> None:
    "Discs, two of which touch in each of thirty pictures of fifteen patients, as COCO"
    place, draws = project.root.parent / "cells", np.random.default_rng(0)
    (place / "images").mkdir(parents=True)
    images, annotations, angles = [], [], np.linspace(0, 2 * np.pi, 24, endpoint=False)
    for k in range(30):
        picture, labels = draw_cells(draws)
        for row, column in scipy.ndimage.center_of_mass(labels > 0, labels, np.unique(labels[labels > 0])):
            outline = np.stack([column + .5 + 6.5 * np.cos(angles), row + .5 + 6.5 * np.sin(angles)], 1)
            annotations.append(dict(id=len(annotations) + 1, image_id=k + 1, category_id=1, iscrowd=0,
                                    segmentation=[outline.ravel().tolist()], bbox=[0, 0, 13, 13], area=132))
        name = f"p{k // 2:02}_{k % 2}.png"
        images.append(dict(id=k + 1, file_name=name, height=64, width=64))
        Image.fromarray(picture).save(place / "images" / name)
    (place / "cells.json").write_text(json.dumps(dict(
        images=images, annotations=annotations, categories=[dict(id=1, name="cell")])))
    added = project.call("data", "add", str(place), "--id", "cells", "--yes")
    assert added.returncode == 0 and "task: instance" in added.stdout, added.stdout + added.stderr


def shorten_plan(project: Project, id: str, images: int = 100, width: int = 16) -> None:
    """Each training of the plan has a second, and so many images in it, whatever was measured on this machine; one of
    maps has three"""
    path = project.root / "studies" / id / "plan.yaml"
    text, count = re.subn(r"\nseconds: \d+\.0\n", "\nseconds: 1.0\n", path.read_text(encoding="utf-8"))
    text = re.sub(r"\n( +)unet_heads: \d+\n", r"\n\1unet_heads: 75\n", text)
    head, measured, rest = re.split(r"(?<=\nthroughput:\n)((?:  \w+: [\d.]+\n)+)", text)
    assert count == 1
    head = re.sub(r"\n  width: 16\n", f"\n  width: {width}\n", head)
    path.write_text(head + re.sub(r"[\d.]+\n", f"{images}.0\n", measured) + rest, encoding="utf-8")


SQUARES = ("study", "squares", "--minutes", "13", "-j", "2")


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Project:
    "Squares of three hospitals, and the answer to a dry run, which times the networks"
    project = copy_sections(tmp_path_factory.mktemp("planned"))
    add_squares(project, hospitals=3)
    project.dry = project.medseg(*SQUARES, "--dry-run")
    assert not (project.root / "studies" / "squares" / "own").exists()
    return project


def read_reports(project: Project) -> dict[str, bytes]:
    return {k: v for k, v in project.files().items() if k.startswith("studies/") and "measured" not in k}


def test_a_set_that_changed_and_a_second_call_are_refused(planned):
    dry, place = (*SQUARES, "--dry-run"), planned.root / "studies" / "squares"
    plan = (place / "plan.yaml").read_bytes()
    with FileLock(place / ".lock"):
        second = planned.medseg(*dry)
    assert second.returncode == 4 and "squares: is being studied by another call; wait until" in second.stderr
    image = planned.root.parent / "squares" / "images" / "p03_1.png"
    right = image.read_bytes()
    image.write_bytes((image.parent / "p04_1.png").read_bytes())
    changed = planned.medseg(*dry)
    image.write_bytes(right)
    assert changed.returncode == 2 and "the manifest says" in changed.stderr and "Traceback" not in changed.stderr
    assert (place / "plan.yaml").read_bytes() == plan and not (place / "own").exists()


NO_SPACE = """
import errno, tempfile
_made = tempfile.mkstemp
def mkstemp(suffix=None, prefix=None, dir=None, text=False):
    if (prefix or "").startswith(".weights.safetensors-"): raise OSError(errno.ENOSPC, "No space left on device")
    return _made(suffix, prefix, dir, text)
tempfile.mkstemp = mkstemp
"""


@pytest.mark.stress  # two kernels and two trainings more
def test_a_disk_that_fills_stops_a_study_in_one_line(planned, tmp_path):
    "The section before is kept, and no training is begun that would find no room; the next test goes on from here"
    shorten_plan(planned, "squares", images=40, width=8)
    (tmp_path / "sitecustomize.py").write_text(NO_SPACE)
    done = planned.medseg(*SQUARES, PYTHONPATH=f"{tmp_path}{os.pathsep}{REPO}")
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 4 and "weights.safetensors: the disk is full; free some space and call again" in line
    assert line.startswith("error: ") and "Traceback" not in done.stderr
    place = planned.root / "studies" / "squares" / "own"
    assert (place / "data" / "results.json").is_file() and not (place / "benchmark").exists()
    assert len([*planned.runs.glob("*/config.json")]) == 2, "as many as were under way"
    assert not [*planned.runs.glob("*/.*-*")] and not [*place.rglob(".stage-*")], "nothing half-written"


def test_a_study_goes_from_a_folder_to_a_named_model(planned):
    study, dry, report = SQUARES, planned.dry, planned.root / "studies" / "squares" / "own"
    assert dry.returncode == 0, dry.stderr
    assert f"{PATIENTS} patients, {2 * PATIENTS} cases" in dry.stdout and "5 folds, 1 seed, 60 s each" in dry.stdout
    assert "other hospitals: U-Net without each of 3" in dry.stdout
    shorten_plan(planned, "squares", images=40, width=8)  # once more, where this test is called alone
    done = planned.medseg(*study)
    assert done.returncode == 0, done.stderr
    assert "next: medseg predict squares/best IMAGES" in done.stdout
    page = (report / "article.html").read_text(encoding="utf-8")
    assert "What follows was guessed" in page and "Where the networks fail" in page and "cases.svg" in page
    assert "5 folds, 1 seed" in page and "What more patients would bring" in page and "Thresholds, clustering" in page
    assert "phantom" not in page.lower() and "ISIC" not in page, "nothing of the kit's own data"
    assert "At another hospital" in page and "hospital 2" in page and "says nothing about another hospital" not in page
    assert "Patients are unknown here" not in page and "warning" not in done.stderr
    text = " ".join(running_text(page).split())
    assert "Instances: squares holds classes and no instances." in text, "why a section was left out"
    assert "Readers: squares has the outlines of one reader." in text and "Not executed for this report: Prep" in text
    assert "bits of a stored value, spacing" in page, "sizes of the images"
    with pikepdf.open(report / "article.pdf") as pdf: assert LEAST_PAGES <= len(pdf.pages) <= MAX_PAGES["own"]
    printed = (report / "supplement.html").read_text(encoding="utf-8").partition("<body")[2].partition("<script")[0]
    assert not re.search("phantom|ISIC|the source reports", printed) and printed.count("<img") > 8
    assert "<tbody></tbody>" not in re.sub(r"\s", "", printed), "no table without a row"
    first = read_reports(planned)
    again = planned.medseg(*study)
    assert again.returncode == 0 and "executed" not in again.stderr and read_reports(planned) == first
    runs = [r for r in json.loads(planned.call("models", "--json").stdout) if r["dataset"] == "squares"]
    best = next(r for r in runs if r["name"] == "squares/best")
    mine = [r["dice"] for r in runs if r["model"] == best["model"]]
    assert len(runs) == 5 * 2 + 2 + 3 and 5 <= len(mine) <= 10, "folds of two networks, parts, hospitals"
    answer = planned.call("predict", "squares/best", "../squares/images/p00_0.png", "--out", "answers")
    assert answer.returncode == 0, answer.stderr
    made = {p.relative_to(planned.root / "answers").as_posix() for p in (planned.root / "answers").rglob("*.*")}
    assert made == {"p00_0.png", "pictures/p00_0.png", "predict.csv"}
    assert planned.call("predict", best["key"][:8], "../squares/images/p00_0.png", "--out", "same").returncode == 0
    assert "squares/ensemble is the mean of its 5 trainings" in done.stdout
    together = planned.call("predict", "squares/ensemble", "../squares/images/p00_0.png", "--out", "all",
                            "--uncertainty")
    assert together.returncode == 0 and (planned.root / "all" / "uncertainty" / "p00_0.png").is_file(), together.stderr
    assert "squares/ensemble         the mean of 5 runs" in planned.call("models").stdout


@pytest.mark.stress  # eight trainings, and five sections
def test_objects_are_told_apart(whole):
    add_cells(whole)
    study = ("study", "cells", "--minutes", "10", "-j", "2")
    dry = whole.medseg(*study, "--dry-run")
    assert dry.returncode == 0 and "a further U-Net learns maps that tell them apart" in dry.stdout, dry.stderr
    shorten_plan(whole, "cells")
    done = whole.medseg(*study)
    assert done.returncode == 0, done.stderr
    assert "U-Net (maps of objects) tells objects apart; next: medseg predict cells/best" in done.stdout
    assert "cells/ensemble" not in done.stdout
    page = (whole.root / "studies" / "cells" / "own" / "article.html").read_text(encoding="utf-8")
    assert "Objects told apart" in page and "phantom" not in page.lower() and "One U-Net learned several maps" in page
    supplement = (whole.root / "studies" / "cells" / "own" / "supplement.html").read_text(encoding="utf-8")
    assert "U-Net (maps of objects)" in supplement and "unet_heads" not in running_text(page)
    answer = whole.medseg("predict", "cells/best", "../cells/images/p00_0.png", "--out", "answers")
    assert answer.returncode == 0, answer.stderr
    assert "objects" in (whole.root / "answers" / "predict.csv").read_text().splitlines()[0]


@pytest.fixture
def timed(monkeypatch) -> None:
    "Networks are taken to be as fast as they were measured once"
    speeds = dict(unet=50., residual_unet=60., unet_lite0=20., fcn=90., unet_heads=80.)
    monkeypatch.setattr("medseg_nb.training.study_plan.measure_study_throughput", lambda *_: speeds)


@pytest.fixture
def mapped(whole, timed) -> Project:
    "Cells, and the plan of their study"
    add_cells(whole)
    dry = whole.call("study", "cells", "--minutes", "30", "-j", "2", "--dry-run")
    assert dry.returncode == 0 and "180 s, in windows of 64 pixels at" in dry.stdout, dry.stdout + dry.stderr
    whole.env["MEDSEG_OWN_PLAN"] = str(whole.root / "studies" / "cells" / "plan.yaml")
    return whole


def test_a_plan_of_objects_parts_patients(mapped):
    "Whoever is tested is neither learned from nor asked for settings, whatever of his pictures it is"
    split = json.loads((mapped.root / "own" / "data" / "cells" / "splits.json").read_text(encoding="utf-8"))["folds"]
    with mapped.inside():
        runs, people = list_runs("own", ["cells"]), [c.patient for c in load_cases("cells")]
        assert [(c.model, c.fold, c.seed) for c in runs] == [("unet_heads", k, 0) for k in range(5)]
        assert {c.steps for c in runs} == {3 * 60 * 80 // 4} and len(set(people)) == 15
        for c, fold in zip(runs, split):
            tested, (learned, chosen) = split_of(c).test, training_and_tuning(c)
            assert {people[i] for i in tested} == set(fold["test"]) and len(tested) == 2 * len(fold["test"])
            assert {people[i] for i in learned} | {people[i] for i in chosen} == set(fold["train"])
            assert not {people[i] for i in tested} & {people[i] for i in (*learned, *chosen)}
            assert not {people[i] for i in learned} & {people[i] for i in chosen} and chosen


def test_a_network_of_objects_answers_at_the_resolution_of_a_picture(mapped):
    with mapped.inside():
        run = run_training(replace(list_runs("own", ["cells"])[0], steps=200), weights=True)
        name_run("cells/best", run.name)
        settings = read_rows(run).query("method == 'distance'").settings.unique()
    picture, truth = draw_cells(np.random.default_rng(9), 96, 150)
    Image.fromarray(picture).save(mapped.root / "new.png")
    answer = mapped.call("predict", "cells/best", "new.png", "--out", "answers")
    assert answer.returncode == 0 and len(settings) == 1, answer.stderr
    found = np.asarray(Image.open(mapped.root / "answers" / "new.png"))
    assert found.shape == truth.shape and found.max() == 3, "an object a number"
    assert instance_scores(found.astype(int), truth.astype(int))["pq"] > .7
    for words, fault in (
        (("explain", "cells/best", "new.png", "--target", "class:1", "--out", "why"),
         "answers with maps of objects and not with classes"),
        (("export", "cells/best", "--to", "onnx", "--out", "made"), "whose answers need more than its network"),
        (("bench", "cells/best"), "whose answers need more than its network")):
        refused = mapped.call(*words)
        assert refused.returncode == 2 and fault in refused.stderr and len(refused.stderr.splitlines()) == 1, refused


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups that can be killed at once")
@pytest.mark.stress  # minutes of trainings between kills
def test_a_study_interrupted_five_times_ends_with_equal_bytes(whole, tmp_path):
    "A plan that was killed while it trained, scored and reported gives the report of one that was left alone"
    add_squares(whole)
    study = ("study", "squares", "--minutes", "10", "-j", "2")
    assert whole.medseg(*study, "--dry-run").returncode == 0
    shorten_plan(whole, "squares")
    other = whole.copy(tmp_path / "other" / "project")
    for seconds in (9, 16, 23, 30, 40):
        process = other.start(*study)
        try: process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired: os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    for project in (whole, other):
        done = project.medseg(*study)
        assert done.returncode == 0, done.stderr
    first, second = read_reports(whole), read_reports(other)
    assert first.keys() == second.keys() and not [k for k in first if first[k] != second[k]]


def test_volumes_have_a_study_of_their_own(whole):
    add_volumes(whole)
    study = ("study", "boxes", "--minutes", "8", "-j", "2")
    dry = whole.medseg(*study, "--dry-run")
    assert dry.returncode == 0 and "22×18×14" in dry.stdout and "grid 32×32×16" in dry.stdout, dry.stdout + dry.stderr
    shorten_plan(whole, "boxes", images=20, width=8)
    done = whole.medseg(*study)
    assert done.returncode == 0, done.stderr
    page = (whole.root / "studies" / "boxes" / "own" / "article.html").read_text(encoding="utf-8")
    assert "voxels wide there" in page and "A constant mask stands beside them" in page and "Thresholds" not in page
    assert "cases.svg" in page and "phantom" not in page.lower()
    answer = whole.medseg("predict", "boxes/best", "../boxes/images/v00.nii.gz", "--out", "answers")
    assert answer.returncode == 0, answer.stderr
    written = nibabel.load(whole.root / "answers" / "v00.nii.gz")
    assert written.shape == (22, 18, 14) and np.allclose(written.affine, np.diag([1, 1, 2, 1]))
    sizes = (whole.root / "answers" / "predict.csv").read_text().splitlines()[0]
    assert sizes == "file,status,reason,foreground,label_1_mm3,label_2_mm3"


def test_a_plan_says_why_objects_are_told_apart_by_fields(whole, timed):
    "Numbers of objects that have gaps, as where some were deleted"
    place, draws = whole.root.parent / "gaps", np.random.default_rng(0)
    for name in ("images", "masks"): (place / name).mkdir(parents=True)
    for k in range(12):
        picture, labels = draw_cells(draws)
        Image.fromarray(picture).save(place / "images" / f"c{k:02}.png")
        Image.fromarray(2 * labels).save(place / "masks" / f"c{k:02}.png")
    added = whole.call("data", "add", str(place), "--id", "gaps", "--yes", "--set", "task=instance")
    assert added.returncode == 0, added.stderr
    dry = whole.call("study", "gaps", "--minutes", "8", "-j", "2", "--dry-run")
    assert dry.returncode == 0 and "further U-Nets tell them apart, by a mask, a field" in dry.stdout, dry.stderr
    line, = [line for line in dry.stdout.splitlines() if line.startswith("no network with all maps of objects: ")]
    assert line.endswith("has no object 1 though its numbers reach 6; number objects 1, 2, … without holes")
    whole.env["MEDSEG_OWN_PLAN"] = str(whole.root / "studies" / "gaps" / "plan.yaml")
    with whole.inside(): runs = list_runs("own", ["gaps"])
    assert {c.loss for c in runs} >= {"centre_field", "distance_field"} and {c.model for c in runs} == {"unet"}


def test_a_plan_names_the_folds_without_a_class(whole, timed):
    "Of three labels only one patient shows the third"
    place = whole.root.parent / "rare"
    draw_squares(place)
    for path in (place / "masks").iterdir():
        mask = np.asarray(Image.open(path)).copy()
        mask[:2] = 2
        if path.name == "p07_1.png": mask[-2:] = 3
        Image.fromarray(mask).save(path)
    assert whole.call("data", "add", str(place), "--id", "rare", "--yes").returncode == 0
    dry = whole.call("study", "rare", "--minutes", "13", "-j", "2", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    line, = [line for line in dry.stdout.splitlines() if line.startswith("label ")]
    split = json.loads((whole.root / "own" / "data" / "rare" / "splits.json").read_text(encoding="utf-8"))["folds"]
    fold, = [k for k, f in enumerate(split) if "p07" in f["test"]]
    others = ", ".join(str(k) for k in range(len(split)) if k != fold)
    assert len(split) == 5 and line.endswith(f" is missing from the test patients of folds {others} and from the "
                                             f"training patients of fold {fold}"), line


def draw_cases(place: Path, labels: list[bool | None]) -> None:  # None: without a mask
    "A picture a case, with a rectangle, without one, or without a mask"
    draws = np.random.default_rng(0)
    for name in ("images", "masks"): (place / name).mkdir(parents=True)
    for k, label in enumerate(labels):
        mask = np.zeros((48, 48), np.uint8)
        if label: mask[12:24, 12:24] = 1
        picture = (90 * mask + draws.integers(0, 80, mask.shape)).astype(np.uint8)
        Image.fromarray(picture).save(place / "images" / f"{k:03}.png")
        if label is not None: Image.fromarray(mask).save(place / "masks" / f"{k:03}.png")


def plan_cases(project: Project, labels: list[bool | None]):
    "What a dry run says of cases that are drawn and added"
    place = project.root.parent / "drawn"
    draw_cases(place, labels)
    added = project.call("data", "add", str(place), "--id", "drawn", "--yes")
    assert added.returncode in (0, 3), added.stderr
    return project.call("study", "drawn", "--minutes", "13", "-j", "2", "--dry-run")


def test_a_plan_says_which_images_have_no_mask(whole, timed):
    dry = plan_cases(whole, [True, None] * 12)
    assert dry.returncode == 0 and "unknown patients, 12 cases" in dry.stdout, dry.stderr
    assert ("left out when the data set was added: images/001.png: has no mask (or more than one); bring both under "
            "one name, or take it out (and so for 11 more, up to images/023.png)") in dry.stdout
    assert "patients are unknown: where two images are of one patient, scores are too good" in dry.stdout


def test_too_few_patients_are_counted_with_those_left_out(whole):
    done = plan_cases(whole, [True, None] * 6)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "has 6 images of the 10 that a study needs; left out: images/001.png: has no mask" in done.stderr


def test_one_patient_is_refused_in_one_line(whole):
    place = whole.root.parent / "alone"
    draw_cases(place, [True] * 12)
    (place / "patients.csv").write_text("\n".join(["image,patient", *(f"{k:03}.png,p1" for k in range(12))]))
    added = whole.call("data", "add", str(place), "--id", "alone", "--yes")
    assert added.returncode == 2 and "holds 1 patient or unit, so that nothing could be tested" in added.stderr
    (place / "patients.csv").write_text("\n".join(["image,patient", *(f"{k:03}.png,p{k % 4}" for k in range(12))]))
    assert whole.call("data", "add", str(place), "--id", "alone", "--yes").returncode == 0
    done = whole.call("study", "alone", "--minutes", "13", "--dry-run")
    assert done.returncode == 2 and done.stderr.endswith(
        "error: alone: has 4 patients of the 10 that a study needs; collect more, or train one network: medseg train\n")


def test_a_fold_without_a_label_is_left_out(whole, timed):
    "No training would learn from it, or could be scored on it, and the others go on"
    dry = plan_cases(whole, [True, True, True, *[False] * 17])
    split = json.loads((whole.root / "own" / "data" / "drawn" / "splits.json").read_text(encoding="utf-8"))["folds"]
    usable = [k for k, fold in enumerate(split) if {*fold["test"]} & {"000", "001", "002"}]
    others = [str(k) for k in range(len(split)) if k not in usable]
    assert len(split) == 5 and 2 <= len(usable) <= 3 and dry.returncode == 0, dry.stderr
    assert f"folds {', '.join(others)} left out: no image that would be tested, or none" in dry.stdout
    whole.env["MEDSEG_OWN_PLAN"] = str(whole.root / "studies" / "drawn" / "plan.yaml")
    with whole.inside():
        configs = list_default_runs("own", ["drawn"])
        assert {c.fold for c in configs} == {*usable}
        for c in (*configs, *list_curve_runs("own", "drawn")): training_pool(c)  # raises where a side shows nothing


def test_a_refused_study_leaves_nothing(whole):
    add_squares(whole)
    before = set(whole.root.rglob("*"))
    done = whole.call("study", "squares", "--minutes", "1", "--dry-run")
    assert done.returncode == 2 and "cannot hold one fold" in done.stderr
    left = {p.relative_to(whole.root).parts[0] for p in set(whole.root.rglob("*")) - before}
    assert left <= {"runs", "cache"}, left


@pytest.mark.parametrize("words, fault", {
    "too short": (["squares", "--minutes", "1"], "1 minutes cannot hold one fold; give --minutes 2 or more"),
    "no time": (["squares", "--minutes", "0"], "give a number above 0"),
    "unknown": (["circles"], "circles: unknown data set"),
    "a table": (["outcome_thoracic"], "outcome_thoracic: is a table without images, which fits no study"),
}.values(), ids=str)
def test_a_study_is_refused_in_one_line(whole, words, fault):
    if words[0] == "squares": add_squares(whole)
    done = whole.call("study", *words)
    assert done.returncode != 0 and fault in done.stderr.replace("\n", " "), done.stderr
    assert "Traceback" not in done.stderr and not (whole.root / "studies" / "squares" / "own").exists()


def add_other_nuclei(project: Project) -> None:
    "Bright blurred discs on dark ground, in pictures of one channel: what nuclei look like elsewhere"
    place, draws = project.root.parent / "other", np.random.default_rng(0)
    y, x = np.mgrid[:96, :96]
    for name in ("images", "masks"): (place / name).mkdir(parents=True)
    for k in range(14):
        mask = np.zeros((96, 96), bool)
        for row, column in draws.integers(10, 86, (9, 2)):
            mask |= (y - row)**2 + (x - column)**2 < draws.integers(30, 70)
        picture = scipy.ndimage.gaussian_filter(30. + 90 * mask, 1.5) + draws.normal(0, 9, mask.shape)
        Image.fromarray(mask.astype(np.uint8)).save(place / "masks" / f"n{k:02}.png")
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(place / "images" / f"n{k:02}.png")
    added = project.call("data", "add", str(place), "--id", "other", "--yes")
    assert added.returncode == 0, added.stderr


def test_a_network_of_a_study_starts_from_a_shipped_model(whole):
    add_other_nuclei(whole)
    study = ("study", "other", "--minutes", "4", "-j", "2", "--from", "nuclei")
    dry = whole.medseg(*study, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "networks U-Net, from_nuclei; 1 fold" in dry.stdout
    assert "from_nuclei: strided8_window pretrained on nuclei (nuclei_dsb2018_large)" in dry.stdout
    assert "stem.first new, for 1 channel and 2 classes" in dry.stdout, "nuclei has three channels"
    shorten_plan(whole, "other")
    done = whole.medseg(*study)
    assert done.returncode == 0, done.stderr
    report = whole.root / "studies" / "other" / "own"
    rows = read_table(report / "benchmark" / "cases.csv.xz").query("model in ['unet', 'from_nuclei']")
    starts = rows.groupby("model").start.unique().map(list).to_dict()
    assert starts == dict(unet=["random"], from_nuclei=["pretrained on nuclei"])
    dice = rows.groupby("model").dice.mean()
    assert dice.from_nuclei > max(dice.unet, .5), f"a second of training: {dice.to_dict()}"
    page = (report / "article.html").read_text(encoding="utf-8")
    assert "pretrained on nuclei" in page
    key, = set(rows.query("model == 'from_nuclei'").run)
    listed = next(r for r in json.loads(whole.call("models", "--json").stdout) if r["key"] == key)
    assert listed["start"] == "pretrained on nuclei"
    again = whole.call("study", "other", "--minutes", "4", "-j", "2", "--dry-run")
    assert again.returncode == 0 and "from_nuclei" not in again.stdout, "another plan without the flag"


@pytest.mark.parametrize("start, fault", {
    "nearly": ("nuclie", "nuclie: there is no such run with weights in runs/; did you mean nuclei?"),
    "unknown": ("zebra", "zebra: there is no such run with weights in runs/; train it"),
    "volumes": ("hippocampus", "hippocampus: is a model of volumes, and these are pictures; start from a model"),
}.values(), ids=str)
def test_a_start_that_does_not_fit_is_refused_in_one_line(whole, start, fault):
    done = whole.call("study", "phantom_skin", "--from", start)
    assert done.returncode == 2 and fault in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not list((whole.root / "own").glob("*.py"))
    assert not (whole.root / "studies" / "phantom_skin" / "own").exists()
