"""The lessons: each teaches by pictures, formulas and exercises whose hidden answers are put to the same tests as a
student's; a wrong answer fails. Their images are small and attributed."""
import ast
import configparser
import csv
import hashlib
import json
import os
import re
from urllib.parse import unquote

import pytest
import yaml
from PIL import Image

from conftest import REPO
from medseg_nb.kit.core import data_folders

COURSE = REPO / "nbs" / "course"
IMAGES = COURSE / "images"
LESSONS = sorted(COURSE.glob("*.ipynb"))
by_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)


def cells(path, *tags):
    "Sources of code cells, or of those with all of some tags"
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in found
            if c["cell_type"] == "code" and set(tags) <= set(c["metadata"].get("tags", []))]


def prose(path):
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(c["source"]) for c in found if c["cell_type"] == "markdown")


def defined(sources):
    "Names that cells define"
    trees = [node for source in sources for node in ast.parse(source).body]
    found = {n.name for n in trees if isinstance(n, ast.FunctionDef)}
    return found | {n.targets[0].id for n in trees if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)}


# What every lesson has

def test_there_are_ten_lessons():
    assert [p.name[:3] for p in LESSONS] == [f"{k:02}_" for k in range(1, 11)]


@by_lesson
def test_a_lesson_has_formulas_pictures_and_something_to_change(path):
    text, code = prose(path), "\n".join(cells(path))
    assert text.count("$$") >= 4, "two formulas or more"
    assert len(re.findall(r"show_pictures\(|plt\.subplots\(|plt\.figure\(|show_maps\(", code)) >= 4
    assert "# change me" in code and "**Change and see:**" in text
    wanted = ["## What goes wrong, and why", "## Exercises", "## Where the study uses it", "## Answers"]
    places = [text.index(heading) for heading in wanted]
    assert places == sorted(places)


@by_lesson
def test_a_lesson_names_the_license_of_the_images_that_it_shows(path):
    text, code = prose(path), "\n".join(cells(path))
    for kind, license_name in (("nuclei", "CC0"), ("nodules", "CC BY 3.0"), ("hippocampus", "CC BY-SA 4.0")):
        if f'load_pictures("{kind}")' in code: assert license_name in text, kind
    assert "images/ATTRIBUTION.md" in text


@by_lesson
def test_links_and_citations_of_a_lesson_lead_somewhere(path):
    text = prose(path)
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in t]
    assert any("../study/" in t for t in targets) and any("../library/" in t for t in targets)
    assert [t for t in targets if not (COURSE / t.partition("#")[0]).exists()] == []
    known = set(re.findall(r"^@\w+\{([^,]+),", (REPO / "nbs/paper/references.bib").read_text(encoding="utf-8"), re.M))
    assert set(re.findall(r"@([a-z]+\d{4}\w*)", text)) <= known


def test_the_button_opens_a_lesson_of_this_repository():
    text = (COURSE / "README.md").read_text(encoding="utf-8")
    address, branch, lesson = re.search(r"mybinder\.org/v2/git/([^/]+)/(\w+)\?labpath=([^)]+)\)", text).groups()
    settings = configparser.ConfigParser()
    settings.read(REPO / "settings.ini")
    assert (unquote(address), branch) == (settings["DEFAULT"]["git_url"], settings["DEFAULT"]["branch"])
    assert (REPO / unquote(lesson)) in LESSONS
    extra = re.fullmatch(r"-e \.\[(\w+)\]\n", (REPO / ".binder" / "requirements.txt").read_text(encoding="utf-8"))[1]
    assert f"{extra}_requirements" in settings["DEFAULT"]
    lowest = settings["DEFAULT"]["min_python"]
    assert (REPO / ".binder" / "runtime.txt").read_text(encoding="utf-8") == f"python-{lowest}\n"


@by_lesson
def test_a_lesson_imports_what_the_button_installs(path):
    "Nothing of the extra `dev`"
    trees = [n for source in cells(path) for n in ast.walk(ast.parse(source))]
    names = {a.name for n in trees if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in trees if isinstance(n, ast.ImportFrom)}
    assert not {name.partition(".")[0] for name in names} & {"pytest", "hypothesis", "playwright"}


# Exercises

@by_lesson
def test_a_lesson_has_exercises_with_hidden_answers(path):
    names = [{n.partition("_")[2] for n in defined(cells(path, tag)) if n.startswith(prefix)}
             for tag, prefix in (("exercise", "your_"), ("check", "check_"), ("solution", "solution_"))]
    assert names[0] == names[1] == names[2] and len(names[0]) in (2, 3)
    assert len(cells(path, "solution", "hide-cell")) == len(names[0])
    assert all("..." in s for s in cells(path, "exercise"))
    sources = json.loads(path.read_text(encoding="utf-8"))["cells"]
    heading = next(k for k, c in enumerate(sources) if "## Answers" in "".join(c["source"]))
    assert all(k > heading for k, c in enumerate(sources) if "solution" in c["metadata"].get("tags", []))


WRONG = {
    "01_masks": ("lambda share: share", "lambda masks, level: (np.mean(masks, axis=0) >= level).astype(int)"),
    "02_metrics": ("lambda d: d / 2", "lambda d, worst: (np.isinf(d).sum(), np.mean([x for x in d if x < np.inf]))"),
    "03_patients": ("lambda patients, test: np.arange(len(patients)) % 2 == 0", "lambda a, b: sorted(set(a) | set(b))"),
    "04_unet": ("lambda a, b, k: a * b * k * k", "lambda layers: 1 + sum(k - 1 for k, _ in layers)"),
    "05_attention": ("lambda scores: np.exp(scores) / np.exp(scores).sum()", "lambda size, side: (size // side)**2"),
    "06_touching": ("lambda iou, p, t: sum(iou) / max(len(iou), 1)",
                    "lambda predicted, true: len(np.unique(true)) - len(np.unique(predicted))"),
    "07_explanation": ("lambda values, box: values[box].sum() / (values.sum() or 1)",
                       "lambda score, image, box: score(image) - score(np.where(box, image.mean(), image))"),
    "08_gains": ("lambda values, draws, random: np.quantile(values, [.025, .975])",
                 "lambda gain, control: 'gain' if gain[0] > 0 else 'undecided'",
                 "lambda u, coverage: u <= np.quantile(u, coverage)"),
    "09_own": ("lambda name: name.split('_')[0]", "lambda tp, fp, fn, alpha: tp / (tp + fn + fp)"),
    "10_clinic": ("lambda risks, events: np.corrcoef(risks, events)[0, 1]",
                  "lambda slices: sorted(name for name, _ in slices)")}


def exercises(path):
    """The checks and answers of a lesson by the names of the exercises, without running the lesson: a check needs
    imports alone"""
    scope = {}
    for source in cells(path):
        if isinstance(ast.parse(source).body[0], (ast.Import, ast.ImportFrom)): exec(source, scope)
    for source in cells(path, "check"): exec(re.sub(r"^check_answer\(.*$", "", source, flags=re.M), scope)
    for source in cells(path, "solution"):
        functions = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)]
        exec(compile(ast.Module(functions, []), path.name, "exec"), scope)
    calls = re.findall(r"^check_answer\((\w+), (\w+)\)$", "\n".join(cells(path, "check")), re.M)
    answers = [scope[n] for n in scope if n.startswith("solution_")]
    return scope, [scope[test] for test, _ in calls], answers


@by_lesson
def test_a_wrong_answer_fails_and_the_hidden_one_does_not(path, monkeypatch, capsys):
    for name in [n for n in os.environ if n.startswith("MEDSEG_")]: monkeypatch.delenv(name)
    scope, checks, answers = exercises(path)
    assert len(checks) == len(answers) == len(WRONG[path.stem])
    for check, answer, wrong in zip(checks, answers, WRONG[path.stem]):
        check(answer)
        with pytest.raises(AssertionError): check(eval(wrong, scope))
        scope["check_answer"](check, lambda *arguments, **named: ...)
        assert "Not answered yet" in capsys.readouterr().out


# Images

def read_rows(name):
    with (IMAGES / name).open(encoding="utf-8") as file: return list(csv.DictReader(file))


def test_every_image_is_attributed_with_its_license():
    rows, sets = read_rows("table.csv"), {s["set"]: s for s in read_rows("sets.csv")}
    files = {p.relative_to(IMAGES).as_posix() for p in IMAGES.rglob("*") if p.is_file()}
    parts = [(row[kind], row["part"]) for row in rows for kind in ("image", "mask")]
    assert len(set(parts)) == len(parts), "each part of a file once"
    assert {name for name, _ in parts} == files - {"table.csv", "sets.csv", "ATTRIBUTION.md"}, "each file, and no other"
    assert {row["set"] for row in rows} == set(sets)
    text = (IMAGES / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for row in rows:
        line = next(x for x in text.splitlines() if x.startswith(f"| `{row['image'].partition('/')[0]}/`"))
        facts = sets[row["set"]]
        assert (facts["license"] in line and facts["source"].partition(" (")[0].partition(",")[0] in line
                and facts["changed"])


@pytest.mark.parametrize("folder, dataset", [("nuclei", "nuclei_dsb2018_large"), ("nodules", "lidc_nodule_volumes"),
                                             ("hippocampus", "hippocampus_msd")])
def test_the_attribution_says_of_a_license_what_the_manifest_says(folder, dataset):
    manifest = yaml.safe_load((REPO / "data_manifests" / dataset / "dataset.yaml").read_text(encoding="utf-8"))
    lines = (IMAGES / "ATTRIBUTION.md").read_text(encoding="utf-8").splitlines()
    _, _, _, license_name, status, _, _ = (part.strip() for part in
                                           next(x for x in lines if x.startswith(f"| `{folder}/`")).split("|"))
    assert manifest["licence"]["name"] in license_name and manifest["licence"]["status"] == status
    rows = [r for r in read_rows("sets.csv") if r["set"] == folder]
    assert {r["license"] for r in rows} == {manifest["licence"]["name"]}


def test_images_are_small():
    files = [p for p in IMAGES.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 5e6
    assert {Image.open(p).mode for p in files if p.suffix == ".png"} == {"L"}, "eight bits"


def files_below(*places):
    return [p for place in places for p in place.rglob("*") if p.is_file() and p.stat().st_size]


@pytest.mark.skipif(not data_folders(), reason="needs MEDSEG_DATA")
def test_no_file_is_a_copy_from_a_data_set():
    "Only files of a size that ours have are read"
    ours = files_below(*(REPO / name for name in ("nbs", "data_manifests", "docs", "reports")))
    sizes = {p.stat().st_size for p in ours}
    theirs = [p for p in files_below(*data_folders()) if p.stat().st_size in sizes]
    assert theirs, "some files have the same size by chance"
    digests = {hashlib.sha256(p.read_bytes()).digest() for p in theirs}
    assert [p for p in ours if hashlib.sha256(p.read_bytes()).digest() in digests] == []


def test_nuclei_are_parts_of_images():
    "An image of the set has 256 x 256 pixels or more"
    names = {(r["image"], r["mask"]) for r in read_rows("table.csv") if r["set"] == "nuclei"}
    count = sum(r["set"] == "nuclei" for r in read_rows("table.csv"))
    assert {Image.open(IMAGES / n).size for pair in names for n in pair} == {(192, 192 * count)} and len(names) == 1


def test_each_square_of_a_file_is_an_image_of_the_table():
    "None is left over, and none is beyond the end"
    parts = {}
    for r in read_rows("table.csv"):
        for kind in ("image", "mask") if r["part"] else (): parts.setdefault(r[kind], []).append(int(r["part"]))
    sizes = {name: Image.open(IMAGES / name).size for name in parts}
    assert len(parts) == 4 and {n: (w, h // w) for n, (w, h) in sizes.items()} == {
        n: (sizes[n][0], len(p)) for n, p in parts.items()}
    assert all(sorted(p) == list(range(len(p))) for p in parts.values())
