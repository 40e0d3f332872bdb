"`medseg new`: each template works before anything in it is changed."
import re
import shutil

import pytest
import yaml
from PIL import Image

import test_notebooks
from conftest import REPO, refused


@pytest.mark.long
def test_a_new_model_trains_and_is_scored(fresh):
    "As it is, on a phantom, and again from a folder of plug-ins"
    done = fresh.medseg("new", "model", "dilated")
    assert (done.returncode, done.stdout) == (
        0, "own/dilated.py; next: medseg train --profile own --data phantom_skin --model dilated\n"), done.stderr
    words = done.stdout.rstrip().partition("next: medseg ")[2].split()
    done = fresh.medseg(*words, "--steps", "2")
    assert done.returncode == 0, done.stderr
    assert (fresh.runs / done.stdout.strip() / "cases.csv.xz").is_file()
    (fresh.root / "own").rename(fresh.root / "elsewhere")
    again = fresh.medseg(*words, "--steps", "2", "--plugins", "elsewhere")
    assert (again.returncode, again.stdout) == (0, done.stdout), "a run's key does not know where its network lies"


@pytest.mark.long
def test_a_new_section_keeps_the_rules_and_enters_the_paper(fresh):
    done = fresh.medseg("new", "section", "shares")
    assert (done.returncode, done.stdout) == (0, "nbs/study/31_shares.ipynb; next: medseg run shares\n"), done.stderr
    path = fresh.notebook("shares")
    assert [f for rule in test_notebooks.RULES if rule is not test_notebooks.bound_prose for f in rule(path)] == []
    assert test_notebooks.bound_prose(path) == [], "each clause of its findings quotes a number"
    shutil.copytree(REPO / "data_manifests" / "phantom_lung", fresh.root / "data_manifests" / "phantom_lung")
    done = fresh.medseg("paper", "--only", "shares")
    assert done.returncode == 0 and "shares (smoke): executed" in done.stderr, done.stderr
    page = (fresh.reports / "smoke" / "article.html").read_text(encoding="utf-8")
    assert re.search(r"Masks of .*2 data sets.* cover up to", page)


def test_a_new_data_set_is_one_once_its_files_are_there(fresh):
    done = fresh.call("new", "dataset", "skin_mine")
    assert done.returncode == 0 and done.stdout.startswith("own/data/skin_mine/dataset.yaml; next: "), done.stderr
    card = (fresh.root / "own" / "data" / "skin_mine" / "README.md").read_text()
    header, example = re.search(r"^ {4}(case,.*)\n {4}(p01_1,.*)$", card, re.M).groups()
    place = fresh.root / "sets" / "skin_mine"
    for folder in ("images", "masks"): (place / folder).mkdir(parents=True)
    rows = [example.replace("p01", f"p{k:02}") for k in range(1, 7)]
    (place / "table.csv").write_text("\n".join([header, *rows]) + "\n")
    for k in range(1, 7):
        image = Image.new("L", (32, 24), 20 * k)
        image.save(place / "images" / f"p{k:02}_1.png")
        image = Image.new("L", (32, 24)); image.paste(255, (4, 4, 10 + k, 12)); image.save(
            place / "masks" / f"p{k:02}_1.png")
    fresh.env["MEDSEG_DATA"] = "sets"
    done = fresh.call("data", "verify", "skin_mine")
    assert done.returncode == 0 and "6 cases are as the manifest says" in done.stdout, done.stderr
    facts = yaml.safe_load((fresh.root / "own" / "data" / "skin_mine" / "dataset.yaml").read_text())
    assert facts["licence"]["status"] == "unverified", "nobody has read it"


@pytest.mark.parametrize("words, subject, fault", [
    (("model", "2d"), "2d", "is no name in code"), (("section", "a"), "a", "is a section already"),
    (("dataset", "phantom_skin"), "phantom_skin", "is a data set already"), (("modle", "x"), "modle", "unknown kind")])
def test_what_cannot_be_begun_is_refused(fresh, words, subject, fault):
    assert refused(fresh.call("new", *words), subject, fault)


def test_a_template_needs_a_name(fresh):
    done = fresh.call("new", "section")
    assert done.returncode == 2 and "medseg new section NAME" in done.stderr
