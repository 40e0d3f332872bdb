("Bad input gives one line with file, fault and remedy, exit code 2, and no result. Files that stock readers take in "
 "silence: test_corpus.py.")
import contextlib
import io
import json
import os
import shutil
import socket
import stat
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from conftest import Project, Tiny, add_tiny, dicom, refused
from medseg_nb.deployment.segmenter import Segmenter


def resize(path, size) -> None: Image.open(path).resize(size).save(path)
def cut(path) -> None: path.write_bytes(path.read_bytes()[:-20])
def relabel(path, value) -> None:
    Image.fromarray(np.where(np.asarray(Image.open(path)), value, 0).astype(np.uint8)).save(path)


def nan_image(t: Tiny) -> None:
    pixels = np.zeros((24, 20), np.float32); pixels[3, 4] = np.nan
    np.save(t.data / "images" / "p0.npy", pixels)
    t.table(lambda r: r | dict(image=r["image"].replace("p0.png", "p0.npy")))


def table_without(t: Tiny, column: str) -> None: t.table(lambda r: {k: v for k, v in r.items() if k != column})
def first(t: Tiny, **cells) -> None: t.table(lambda r: r | cells if r["case"] == "c0" else r)
def splits(t: Tiny, train: list, test: list) -> None:
    (t.manifest.parent / "splits.json").write_text(json.dumps(dict(folds=[dict(train=train, test=test)])))


# A data set, spoilt. name: (how, file that the line names, words of its fault)
SETS = {
    "missing image": (lambda t: (t.data / "images" / "p0.png").unlink(), "p0.png", "does not exist"),
    "missing mask": (lambda t: (t.data / "masks" / "p0.png").unlink(), "p0.png", "does not exist"),
    "text named png": (lambda t: (t.data / "images" / "p0.png").write_text("hello"), "p0.png", "damaged"),
    "colour image": (
        lambda t: Image.open(t.data / "images" / "p0.png").convert("RGB").save(t.data / "images" / "p0.png"), "p0.png",
        "channels"),
    "wrong hash of a pattern": (
        lambda t: t.declare(files=[dict(pattern="masks/*.png", sha256="0" * 64)]), "masks/*.png", "hash"),
    "wrong count": (lambda t: t.declare(files=[dict(pattern="images/*.png", count=7)]), "images/*.png", "6 files"),
    "listed file missing": (lambda t: t.declare(files=[dict(path="readme.txt")]), "readme.txt", "missing"),
    "unknown key": (lambda t: t.declare(colour="blue"), "dataset.yaml", "colour"),
    "unknown key below": (
        lambda t: t.declare(mask=dict(column="mask", kind="labels", colour="blue")), "dataset.yaml", "mask.colour"),
    "missing key": (lambda t: t.declare(licence=None), "dataset.yaml", "licence"),
    "no YAML": (lambda t: t.manifest.write_text("id: [tiny"), "dataset.yaml", "YAML"),
    "key twice": (lambda t: t.manifest.write_text(t.manifest.read_text() + "id: tiny\n"), "dataset.yaml", "twice"),
    "other id": (lambda t: t.declare(id="other"), "dataset.yaml", "other"),
    "missing mask column": (lambda t: table_without(t, "mask"), "table.csv", "mask"),
    "empty table": (lambda t: (t.data / "table.csv").write_text(""), "table.csv", "empty"),
    "case twice": (lambda t: first(t, case="c1"), "table.csv", "c1"),
    "no patient": (lambda t: first(t, patient=""), "table.csv", "patient"),
    "text for a number": (
        lambda t: t.declare(columns=[dict(name="age", column="case", type="number", known="before")]), "table.csv",
        "c0"), "path that leaves in the table": (lambda t: first(t, image="../../secret.png"), "table.csv", "leaves"),
    "absolute path in the table": (lambda t: first(t, mask="/etc/passwd"), "table.csv", "leaves"),
    "path that leaves in the manifest": (lambda t: t.declare(table="../table.csv"), "dataset.yaml", "leaves"),
    "pattern that leaves": (lambda t: t.declare(files=[dict(pattern="../*/images/*.png")]), "dataset.yaml", "leaves"),
    "Windows path that leaves": (lambda t: t.declare(files=[dict(path="..\\secret.png")]), "dataset.yaml", "leaves"),}
TRAINED = {
    "truncated image": (lambda t: cut(t.data / "images" / "p0.png"), "p0.png", "cut short"),
    "mask of another size": (lambda t: resize(t.data / "masks" / "p0.png", (20, 23)), "p0.png", "23 x 20"),
    "unknown label": (lambda t: relabel(t.data / "masks" / "p0.png", 7), "p0.png", "7 (64 pixels)"),
    "NaN pixels": (nan_image, "p0.npy", "NaN"),
    "wrong hash": (lambda t: t.declare(files=[dict(path="images/p0.png", sha256="0" * 64)]), "images/p0.png", "hash"),
    "patient in two splits": (
        lambda t: splits(t, ["p0", "p1", "p2", "p3"], ["p3", "p4", "p5"]), "splits.json", "p3 is in train and in test"),
    "stranger in a split": (lambda t: splits(t, ["p0", "p1", "p2", "p9"], ["p3", "p4", "p5"]), "splits.json", "p9"),
    "patient in no split": (lambda t: splits(t, ["p0", "p1", "p2"], ["p3", "p4"]), "splits.json", "p5"),
    "broken splits": (lambda t: (t.manifest.parent / "splits.json").write_text("{"), "splits.json", "JSON"),}


# A study, spoilt

def study(text: str): return lambda p: (p.root / "nbs" / "study.yaml").write_text(text, encoding="utf-8")


STUDIES = {
    "no YAML": (study("sections: [{section: a"), "study.yaml", "YAML"),
    "no mapping": (study("- a\n"), "study.yaml", "mapping"),
    "no sections": (study("section: []"), "study.yaml", "section"),
    "a number of sections": (study("sections: 3"), "study.yaml", "sections"),
    "names alone": (study("sections: [a, b]"), "study.yaml", "section a"),
    "unknown key": (study("sections: [{section: a, budgets: {}}]"), "study.yaml", "budgets"),
    "wrong order": (study("sections: [{section: b, upstream: [a]}, {section: a}]"), "study.yaml", "before"),
    "section twice": (study("sections: [{section: a}, {section: a}]"), "study.yaml", "twice"),
    "unknown profile": (study("sections: [{section: a, profiles: [gpu]}]"), "gpu", "profile"),
    "no such notebook": (study("sections: [{section: a}, {section: nosuch}]"), "nosuch", "notebook"),
    "unknown parameter": (study("sections: [{section: a, parameters: {smoke: {sed: 2}}}]"), "sed", "parameter"),
    "no study.yaml": (lambda p: (p.root / "nbs" / "study.yaml").unlink(), "study.yaml", "does not exist"),
    "broken notebook": (lambda p: p.notebook("b").write_text("{"), "20_b.ipynb", "is not a notebook"),
    "notebook without cells": (lambda p: p.notebook("b").write_text("{}"), "20_b.ipynb", "is not a notebook"),
    "budget in words": (study("sections: [{section: a, budget: {smoke: {minutes: ten}}}]"), "study.yaml", "budget"),
    "parameters as a list": (study("sections: [{section: a, parameters: [seed]}]"), "study.yaml", "parameters"),
    "upstream as a word": (study("sections: [{section: a}, {section: b, upstream: a}]"), "study.yaml", "upstream"),
}


# A plug-in, spoilt. name: (its code, file or name in the line, words of the fault)

NET = ("from torch import nn\nfrom medseg_nb.kit.keys import register\n@register('{name}')\nclass Mine(nn.Module):\n  "
       "  def __init__(self, channels, classes, width):\n        super().__init__()\n        self.layer = "
       "nn.Conv2d(channels, {classes}, 1)\n    def forward(self, x): return self.layer(x)\n")
PLUGINS = {
    "syntax error": ("class Mine(", "mine.py", "cannot be read as Python (line 1"),
    "missing import": ("import nosuch\n" + NET.format(name="mine", classes="classes"), "mine.py", "nosuch"),
    "name of the kit": (NET.format(name="unet", classes="classes"), "unet", "own.mine"),
    "too many classes": (NET.format(name="mine", classes="classes + 1"), "mine", "answers with (4, 3"),
    "name twice": (
        NET.format(name="mine", classes="classes")
        + NET.format(name="mine", classes="classes").replace("Mine", "Other"), "mine.py", "registers mine twice"),
    "name computed": (
        NET.format(name="mine", classes="classes").replace("'mine'", "'mi' + 'ne'"), "mine.py", "plain name"),}


def plugin(code: str):
    def put(p: Project) -> None:
        add_tiny(p)
        (p.root / "own").mkdir(exist_ok=True)
        (p.root / "own" / "mine.py").write_text(code)
    return put


# Label maps, spoilt

def label_maps(p: Project) -> None:
    "masks/m.png and truth/m.png"
    for name in ("masks", "truth"):
        (p.root / name).mkdir()
        Image.fromarray(np.eye(9, dtype=np.uint8)).save(p.root / name / "m.png")


def volumes(change):
    "masks/m.nii.gz and truth/m.nii.gz instead"
    def spoil(p: Project) -> None:
        import nibabel
        for name in ("masks", "truth"):
            (p.root / name / "m.png").unlink()
            values = np.zeros((4, 5, 6), np.float32); values[1:3, 1:3, 1:3] = 1
            nibabel.save(nibabel.Nifti1Image(change(values) if name == "masks" else values, np.eye(4)),
                         p.root / name / "m.nii.gz")
    return spoil


def with_nan(values): values[0, 0, 0] = np.nan; return values


MAPS = {
    "missing": (lambda p: (p.root / "masks" / "m.png").unlink(), "masks", "no file could be scored"),
    "no folder": (lambda p: shutil.rmtree(p.root / "truth"), "truth", "does not exist"),
    "truncated": (lambda p: cut(p.root / "masks" / "m.png"), "m.png", "cut short"),
    "zero-byte": (lambda p: (p.root / "truth" / "m.png").write_bytes(b""), "m.png", "0 bytes"),
    "another size": (lambda p: resize(p.root / "masks" / "m.png", (8, 9)), "m.png", "9 x 8"),
    "NaN in a volume": (volumes(with_nan), "m.nii.gz", "NaN"),
    "halves in a volume": (volumes(lambda v: v / 2), "m.nii.gz", "not whole"),
    "another volume": (volumes(lambda v: v[1:]), "m.nii.gz", "3 x 5 x 6"),
}


@dataclass
class Call:
    "A call that must be refused"
    words: str | list         # of the command line
    subject: str              # file or name that the line must name
    fault: str = ""           # words of the line before the remedy
    remedy: str = ""          # words behind it
    prepare: object = None    # what is done to the fixture study before


def tiny(spoil): return lambda p: spoil(add_tiny(p))
def maps(spoil): return lambda p: (label_maps(p), spoil(p))
def wall(p: Project) -> None: (p.root / "wall").write_text("a file")
def nothing(p: Project) -> None: pass


SCORE = "evaluate masks truth --out scores.csv"
CALLS = {f"data verify: {k}": Call("data verify tiny", s, f, prepare=tiny(g)) for k, (g, s, f) in SETS.items()}
CALLS |= {f"train: {k}": Call("train --data tiny --model cnn", s, f, prepare=tiny(g))
          for k, (g, s, f) in TRAINED.items()}
CALLS |= {f"paper: {k}": Call("paper", s, f, prepare=g) for k, (g, s, f) in STUDIES.items()}
CALLS |= {f"train: plug-in with {k}": Call("train --data tiny --model mine --profile own", s, f, prepare=plugin(g))
          for k, (g, s, f) in PLUGINS.items()}
CALLS |= {f"evaluate: {k}": Call(SCORE, s, f, prepare=maps(g)) for k, (g, s, f) in MAPS.items()}
CALLS |= {f"evaluate --spacing {v!r}": Call([*SCORE.split(), "--spacing", v], "--spacing", prepare=label_maps)
          for v in ("1,one", "0,1", "nan,1", "")}
CALLS |= {f"evaluate --out {v}": Call(f"evaluate masks truth --out {v}", v.split("/")[0],
                                      "cannot be written", prepare=maps(wall)) for v in ("wall/scores.csv", "truth")}
CALLS |= {w: Call(w, "nosuch", "unknown", known) for w, known in {
    "data show nosuch": "data add FOLDER --id nosuch", "data verify nosuch": "data add FOLDER --id nosuch",
    "data fetch nosuch": "data add FOLDER --id nosuch",
    "train --data nosuch --model unet": "data add FOLDER --id nosuch",
    "train --data phantom_skin --model nosuch": "unet",
    "train --data phantom_skin --model unet --profile nosuch": "smoke", "paper --profile nosuch": "smoke",
    "paper --only nosuch": "a, b, c", "paper --executor nosuch": "slurm",
    "run nosuch": "a, b, c", "run a --profile nosuch": "smoke", "status --profile nosuch": "smoke"}.items()}
CALLS |= {f"serve dicom --to {to}": Call(f"serve dicom nosuch --allow CT --to {to}", subject, fault, remedy)
          for to, subject, fault, remedy in (
    ("PACS", "PACS", "is no address", "PACS@127.0.0.1:4242"),
    ("http://me:secret@pacs/dicom-web", "pacs/dicom-web", "carries a user or a password", "MEDSEG_DICOMWEB_PASSWORD"),
    ("PACS@127.0.0.1:104", "nosuch", "", "medseg models"))}
CALLS |= {
    "run a --profile own --data nosuch": Call(
        "run a --profile own --data nosuch", "nosuch", "unknown data set",
        prepare=lambda p: p.edit("a", "seed = 1", "seed = 1\ndatasets = []")),
    "predict nosuch": Call("predict nosuch masks --out out", "nosuch", "", "medseg models", prepare=label_maps),
    "diff nosuch": Call("diff nosuch", "nosuch", "", "HEAD")}


def results(project: Project) -> dict:
    "Without locks, drawn phantoms, prepared arrays, kept answers and compiled plug-ins, which are no results"
    passing = ("cache/", "runs/prepared/", "runs/computed/", "own/__pycache__/")
    return {k: v for k, v in project.files(".").items() if not k.startswith(passing) and not k.endswith("lock")}


@pytest.mark.parametrize("name", CALLS)
def test_refused(fresh, name):
    call = CALLS[name]
    (call.prepare or nothing)(fresh)
    before = results(fresh)
    done = fresh.call(*(call.words.split() if isinstance(call.words, str) else call.words))
    assert refused(done, call.subject, call.fault) and call.remedy in done.stderr.rpartition("; ")[2]
    assert results(fresh) == before


@pytest.mark.parametrize("name", ["data verify: missing image", "train: patient in two splits",
                                  "paper: no YAML", "run nosuch", "evaluate: another size", "status --profile nosuch"])
def test_refused_by_a_process_of_its_own(fresh, name):
    "The same again with everything that a fresh interpreter may say"
    call = CALLS[name]
    (call.prepare or nothing)(fresh)
    assert refused(fresh.medseg(*call.words.split()), call.subject, call.fault)


# What is not refused at once, or not in one line

def test_whole_set_passes(tiny_data):
    done = tiny_data.project.call("data", "verify", "tiny")
    assert done.returncode == 0 and "6 cases" in done.stdout and "missing from" not in done.stderr


def test_a_label_that_nobody_shows_is_named(tiny_data):
    tiny_data.declare(labels=dict(background=0, lesion=1, rare=2))
    done = tiny_data.project.call("data", "verify", "tiny")
    assert done.returncode == 0 and "6 cases" in done.stdout
    where = "the test patients of folds 0, 1 and from the training patients of folds 0, 1"
    assert f"tiny: label rare is missing from {where}" in done.stderr


ONE = ["train", "--data", "phantom_skin", "--model", "unet"]
WRONG = [["data"], ["claims"], ["nosuch"], ["train"],
         ["paper", "--nosuch"], ["run", "a", "--data", "tiny"], ["run", "a", "--limit", "soon"],
         ["run", "a", "--limit", "9" * 400 + "h"],
         ["run", "a", "--limit", "9" * 5000 + "h"], [*ONE, "--limit", "1h"], [*ONE, "-j", "2"],
         ["train", "--packed", "nosuch"], ["train", "--missing", "--seed", "0"],
         ["pack", "nosuch", "--profile", "smoke"], ["unpack", "nosuch"],
         ["diff", "nbs"], ["serve", "dicom", "nosuch", "--allow", "CT", "--to", "http://["]]


@pytest.mark.parametrize("words", WRONG, ids=lambda w: " ".join(w)[:60])
def test_bad_call(fresh, words):
    done = fresh.call(*words)
    assert (done.returncode == 2 and done.stderr.startswith("error: ")
            and done.stderr.count("\n") == 1 and not done.stdout and not fresh.files())


def test_the_command_alone_shows_help(fresh):
    alone = fresh.call()
    assert alone.returncode == 0 and alone.stdout == fresh.call("--help").stdout and "Commands:" in alone.stdout


def test_section_refuses_a_spoilt_set(tiny_data):
    "The error of a notebook's kernel arrives as the same line"
    project = tiny_data.project
    cut(tiny_data.data / "images" / "p0.png")
    (project.root / "nbs" / "study.yaml").write_text("sections: [{section: a, parameters: {cpu: {datasets: [tiny]}}}]")
    project.edit("a", "seed = 1", "seed = 1\ndatasets = []")
    project.edit("a", "values = rng(seed, ",
                 "from medseg_nb.data.manifest import load_cases\nfor d in datasets: [c.image() for c in "
                 "load_cases(d)]\nvalues " "= rng(seed, ")
    done = project.medseg("paper", "--profile", "cpu")
    line, = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert (done.returncode == 2 and "Traceback" not in done.stderr
            and "p0.png" in line and "cut short" in line and "; copy it again" in line)
    assert not project.files()


def test_notebook_with_a_syntax_error(fresh):
    fresh.edit("b", "time.sleep(.2)", "time.sleep(.2")
    done = fresh.call("paper")
    line, = [x for x in done.stderr.splitlines() if x.startswith("error: ")] or [done.stderr]
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr and "20_b.ipynb" in line and "; " in line


# predict

@pytest.fixture
def photographs(tmp_path):
    "Two colour pictures that the trained run can segment"
    for name in ("one", "two"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.mark.parametrize("spoil, subject, fault", [
    (lambda f: (f / "one.png").unlink(), "one.png", "does not exist"),
    (lambda f: cut(f / "one.png"), "one.png", "cut short"),
    (lambda f: (f / "masks").write_text("a file"), "masks", "cannot be written")],
                         ids=["missing", "truncated", "cannot write"])
def test_predict_refuses(trained, photographs, spoil, subject, fault):
    spoil(photographs)
    assert refused(trained.call("predict", trained.key, photographs / "one.png", "--out", photographs / "masks"),
                   subject, fault)
    assert not (photographs / "masks").is_dir()


@pytest.mark.parametrize("name", ["weights.safetensors", "config.json"])
def test_predict_refuses_a_damaged_run(trained, photographs, name):
    project = trained.copy(photographs / "project")
    cut(project.runs / trained.key / name)
    assert refused(project.call("predict", trained.key, photographs / "one.png", "--out", photographs / "masks"),
                   name, "")
    assert not (photographs / "masks").exists()


# What is no regular file and no folder of the command's own is neither replaced nor written into

WRITING = {"evaluate": "evaluate masks truth --out", "claims audit": "claims audit table.csv --out",
           "predict": "predict {key} masks/m.png --out", "explain": "explain {key} masks/m.png --target class:1 --out",
           "export": "export {key} --out",
           "readers new": "readers new --data phantom_skin --readers 2 --cases 6 --repeats 1 --out",
           "readers analyse": "readers analyse filled.csv --key key.csv --out",
           "serve dicom": "serve dicom {key} --allow CT --to PACS@127.0.0.1:104 --queue"}
PLACES = ("device", "pipe", "socket", "link to a file",
          "link to a folder", "dangling link", "foreign folder", "", ".", "/", "../..")


@pytest.fixture(scope="module")
def odd_places(trained, tmp_path_factory) -> Project:
    """A trained project with one of each kind of place, whose folders none of the commands has written; devices are its
    own"""
    project = trained.copy(tmp_path_factory.mktemp("odd") / "a" / "b" / "project")
    root, project.key = project.root, trained.key
    label_maps(project)
    (root / "table.csv").write_text("model,dataset,dice,jaccard,accuracy,sensitivity,specificity\nA,B,0.8,0.667,,,\n")
    for name in ("filled.csv", "key.csv", "scores.csv"): (root / name).write_text("study,code\n")
    (root / "foreign folder").mkdir(); (root / "foreign folder" / "letter.txt").write_text("kept")
    for name, to in (("link to a file", "scores.csv"),
                     ("link to a folder", "foreign folder"), ("dangling link", "nowhere")):
        (root / name).symlink_to(to)
    os.mkfifo(root / "pipe")
    with contextlib.chdir(root), socket.socket(socket.AF_UNIX) as s: s.bind("socket")
    with contextlib.suppress(PermissionError): os.mknod(root / "device", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    return project


def everything(root) -> dict:
    return {p.relative_to(root): (os.lstat(p).st_mode, os.lstat(p).st_ino, os.lstat(p).st_rdev)
            for p in root.rglob("*") if "cache" not in p.parts}


@pytest.mark.skipif(os.name != "posix", reason="these kinds are POSIX's")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", WRITING)
def test_nothing_but_files_and_own_folders_is_written(odd_places, name, place):
    if place == "device" and not (odd_places.root / "device").exists(): pytest.skip("only root makes devices")
    before = everything(odd_places.root.parents[1])
    done = odd_places.call(*WRITING[name].format(key=odd_places.key).split(), place)
    line, = done.stderr.splitlines()
    assert (done.returncode == 2 and line.startswith("error: ")
            and any(w in line for w in ("cannot be written", "is not empty", "that you are in"))
            and not done.stdout), line
    assert everything(odd_places.root.parents[1]) == before


def test_tables_for_people_hold_no_formulas(fresh):
    "Names of files, models and comments come from others; numbers stay numbers"
    label_maps(fresh)
    for name in ("masks", "truth"): (fresh.root / name / "m.png").rename(fresh.root / name / "=1+cmd|' 'C'!A0.png")
    (fresh.root / "table.csv").write_text(
        "model,dataset,dice,jaccard,accuracy,sensitivity,specificity,=note\n"
        "=1+1,@A,0.8,0.667,,,,-1.5\n-B,+C,0.8,0.667,,,,x\n")
    assert (fresh.call("evaluate", "masks", "truth", "--out", "scores.csv").returncode == 0
            and fresh.call("claims", "audit", "table.csv", "--out", "verdicts.csv").returncode == 0)
    import csv
    cells = [c for name in ("scores.csv", "verdicts.csv")
             for row in csv.reader((fresh.root / name).read_text().splitlines()) for c in row]
    assert (not [c for c in cells if c.startswith(("=", "+", "-", "@")) and c != "-1.5"]
            and {"'=1+1", "'@A", "'-B", "'+C", "'=note", "-1.5", "'=1+cmd|' 'C'!A0"} <= set(cells))


# What hangs or exhausts a reader is refused at once

def header(text: str, voxels: int = 120) -> bytes:
    return f"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4 5 6\nencoding: raw\n{text}\n\n".encode() + bytes(voxels)


ENDLESS = (
    {"a photograph as a label map": (
        lambda p: [
            Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)).save(p.root / n / "m.png")
            for n in ("masks", "truth")], "m.png", "no label map"),
     **{
         f"a skip of {line}": (
             lambda p,
             line=line: [
                 (p.root / n / "m.png").unlink() or (p.root / n / "m.nrrd").write_bytes(header(line))
                 for n in ("masks", "truth")], "m.nrrd", f"{line.split(':')[0]} is {line.split()[-1]}")
         for line in ("byte skip: -2", "line skip: -2")},
     "a spacing of 1e30": (
         lambda p: [
             (p.root / n / "m.png").unlink() or (p.root / n / "m.nrrd").write_bytes(header("spacings: 1e30 1 1"))
             for n in ("masks", "truth")], "m.nrrd", "not from 1e-07 to 10000")})


@pytest.mark.parametrize("name", ENDLESS)
def test_evaluate_refuses_what_misleads(fresh, name):
    prepare, subject, fault = ENDLESS[name]
    label_maps(fresh); prepare(fresh)
    assert refused(fresh.call(*SCORE.split()), subject, fault) and not (fresh.root / "scores.csv").exists()


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="there is no /dev/zero here")
@pytest.mark.parametrize("name, words",
                         {"endless table": "claims audit /dev/zero",
                          "many lines": "evaluate lines.nrrd lines.nrrd --out s.csv",
                          "deep JSON": "data add nested --id deep"}.items())
def test_what_never_ends_is_refused_at_once(fresh, name, words):
    "In a process of its own, so that a reader that hangs or fills the memory can be ended"
    (fresh.root / "lines.nrrd").write_bytes(header("line skip: 999999999"))
    nested = fresh.root.parent / "nested"; nested.mkdir(); (nested / "dataset.json").write_text("[" * 10 ** 6)
    process = fresh.start(*words.replace("nested", str(nested)).split())
    try: out, err = process.communicate(timeout=90)
    finally: process.kill()
    line, = err.splitlines()
    assert (process.returncode == 2 and line.startswith("error: ")
            and any(w in line for w in ("no regular file", "line skip is 999999999", "is not JSON")) and not out), err


# serve dicom

def test_serve_refuses_an_occupied_port_and_bad_names(trained, tmp_path):
    def serve(*words):
        return trained.call("serve", "dicom", trained.key,
                            "--to", "PACS@127.0.0.1:104", "--queue", tmp_path / "queue", *words)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0)); s.listen()
        busy = s.getsockname()[1]
        assert refused(serve("--allow", "CT", "--port", busy), f"127.0.0.1:{busy}", "cannot be listened on")
    assert refused(serve("--allow", "A" * 17, "--port", 0), "A" * 17, "is no AE title")
    assert refused(serve("--allow", "CT", "--port", 0, "--bind", "n" * 300), "n" * 300, "is no address")
    assert refused(serve("--allow", "CT", "--port", 0, "--bind", "192.0.2.1"), "192.0.2.1", "cannot be listened on")


# predict on DICOM: rows 24 to 34 of the list of bad inputs; the node's: test_dicom.py, through a data set:
# test_corpus.py

@pytest.fixture
def grey(fresh, monkeypatch) -> Project:
    """A project in which a model of one grey channel answers what is brighter than 1000; its answer follows the
    picture, which that of a network after few steps does not"""
    def segment(x, sizes):
        return [x[0, 0][np.ix_(*[np.arange(n) * 32 // n for n in size])] * 255 > 1000 for size in sizes]
    model = Segmenter("grey", ["grey"], (32, 32), "none",
                      {1: "bright"}, False, lambda x, sizes: [m.astype(np.int32) for m in segment(x, sizes)], None)
    monkeypatch.setattr("medseg_nb.deployment.predict.load_segmenter", lambda name: model)
    fresh.key = "grey"
    return fresh


SPOT = np.random.default_rng(3).integers(0, 900, (20, 24), np.uint16)
SPOT[4:9, 6:17] = 3000
PLACE = dict(StudyInstanceUID="1.2.9", FrameOfReferenceUID="1.2.8", Modality="CT", SliceThickness=2.5, PatientID="p")
ACROSS = dict(ImageOrientationPatient=[.8, .6, 0, -.6, .8, 0], PixelSpacing=[.7, 2])


def slice_of(k: int = 0, pixels=SPOT, **tags) -> bytes:
    return dicom(np.roll(pixels, k, 1),
                 **PLACE | dict(SOPInstanceUID=f"1.2.3.{k}", ImagePositionPatient=[10, 20, 30 + 2.5 * k]) | tags)


def stack(change=lambda k: {}, n: int = 4):
    "A folder of slices; `change(k)` gives tags of slice k"
    def put(place):
        place.mkdir()
        for k in range(n): (place / f"s{n - k}.dcm").write_bytes(slice_of(k, **change(k)))
    return put


def file(*args, **tags): return lambda place: place.with_suffix(".dcm").write_bytes(slice_of(*args, **tags))
def at(z: float, y: float = 20) -> dict: return dict(ImagePositionPatient=[10, y, z])
def jpeg2000() -> bytes:
    out = io.BytesIO(); Image.fromarray(SPOT).save(out, "JPEG2000", no_jp2=True); return out.getvalue()
def bare(put, name=""):
    return lambda place: (put(place),
                          [p.write_bytes(p.read_bytes()[132:])
                           for p in [place / name if name else place.with_suffix(".dcm")]])


REFUSED = {  # how it is put, file that the line names, words of its fault, and of its remedy
    "24 short pixels": (file(PixelData=b"\0" * 10), "scan.dcm", "cut short", ""),
             "24 short pixels of a slice": (stack(lambda k: dict(PixelData=b"\0" * 10) if k == 2 else {}),
                                            "s2.dcm", "cut short", ""),
    "25 no preamble": (bare(file()), "scan.dcm", "preamble", ""),
             "25 slice without preamble": (bare(stack(), "s2.dcm"), "s2.dcm", "preamble", ""),
    "27 JPEG Lossless": (file(syntax="1.2.840.10008.1.2.4.70", encoded=b"\xff\xd8\xff\xd9"),
                         "scan.dcm", "JPEG Lossless", "pylibjpeg[all]"),
    "27 HTJ2K": (file(syntax="1.2.840.10008.1.2.4.201", encoded=b"\xff\x4f\xff\xd9"),
                 "scan.dcm", "High-Throughput JPEG 2000", "pylibjpeg[all]"),
    "27 JPEG Lossless series": (stack(lambda k: dict(syntax="1.2.840.10008.1.2.4.70", encoded=b"\xff\xd8\xff\xd9")),
                                "scan", "JPEG Lossless", "pylibjpeg[all]"),
    "28 missing slice": (stack(lambda k: at(30 + 2.5 * (k + (k > 1)))), "scan", "a slice is missing", "whole series"),
    "29 tilted gantry": (stack(lambda k: at(30 + 2.5 * k, 20 + .5 * k)), "scan", "tilted gantry", "resample"),
    "30 position twice": (stack(lambda k: at(30 + 2.5 * max(k, 1))), "scan", "at the same position", "keep one"),
    "32 two series": (stack(lambda k: dict(SeriesInstanceUID=f"1.2.{k // 3}")),
                      "scan", "s2.dcm and 2 more, s1.dcm and 0 more", "folder of its own"),
    "32 two patients": (stack(lambda k: dict(PatientID=f"p{k // 3}")), "scan", "several patients", ""),
    "32 two studies": (stack(lambda k: dict(StudyInstanceUID=f"1.2.{k // 3}")), "scan", "StudyInstanceUID", ""),
    "32 two orientations": (stack(lambda k: dict(ImageOrientationPatient=[1, 0, 0, 0, 0, 1]) if k == 1 else {}),
                            "s3.dcm", "ImageOrientationPatient differs", ""),
    "several frames": (file(NumberOfFrames=2), "scan.dcm", "several frames", "single frames"),
             "several frames in a series": (stack(lambda k: dict(NumberOfFrames=2)),
                                            "scan", "several frames", "single frames"),
    "no position in a series": (stack(lambda k: dict(ImagePositionPatient=None) if k == 2 else {}),
                                "s2.dcm", "ImagePositionPatient", "geometry"),
    "no frame of reference in a series": (stack(lambda k: dict(FrameOfReferenceUID="")),
                                          "s4.dcm", "has no FrameOfReferenceUID", "header"),
}


def ask(project: Project, place) -> object:
    found = place if place.is_dir() else place.with_suffix(".dcm")
    return project.call("predict", project.key, found, "--out", place.parent / "masks")


@pytest.mark.parametrize("name", REFUSED)
def test_predict_refuses_dicom(grey, tmp_path, name):
    put, subject, fault, remedy = REFUSED[name]
    put(tmp_path / "scan")
    done = ask(grey, tmp_path / "scan")
    assert (refused(done, subject, fault) and remedy in done.stderr.rpartition("; ")[2]
            and not (tmp_path / "masks").exists())


def inverted(k: int = 0, **tags) -> dict:
    "What shows the same values with white as zero"
    return dict(pixels=4095 - SPOT, PhotometricInterpretation="MONOCHROME1") | tags


TAKEN = {  # how it is put, and as what else the same is put
    "26 RLE": (file(syntax="1.2.840.10008.1.2.5"), file()),
           "26 JPEG-LS": (file(syntax="1.2.840.10008.1.2.4.80"), file()),
           "27 JPEG 2000": (file(syntax="1.2.840.10008.1.2.4.90", encoded=jpeg2000()), file()),
    "26 RLE series": (stack(lambda k: dict(syntax="1.2.840.10008.1.2.5")), stack()),
           "26 JPEG-LS series": (stack(lambda k: dict(syntax="1.2.840.10008.1.2.4.80")), stack()),
    "31 mixed rescale": (stack(lambda k: dict(RescaleIntercept=-1024 + 500 * k, pixels=SPOT // 2 + (1500 - 500 * k))),
                         stack(lambda k: dict(pixels=SPOT // 2 + 1500))),
    "34 MONOCHROME1": (lambda p: p.with_suffix(".dcm").write_bytes(slice_of(**inverted())), file()),
           "34 MONOCHROME1 series": (stack(inverted), stack()),
}


def segments_in(place) -> tuple:
    "Pixels of a SEG by the position of their slice"
    import pydicom
    seg = pydicom.dcmread(place)
    frames = np.reshape(seg.pixel_array, (-1, seg.Rows, seg.Columns))
    return {tuple(f.PlanePositionSequence[0].ImagePositionPatient): p.tolist()
            for f, p in zip(seg.PerFrameFunctionalGroupsSequence, frames)}


@pytest.mark.parametrize("name", TAKEN)
def test_predict_takes_dicom(grey, tmp_path, name):
    answers = []
    for place, put in zip((tmp_path / "a" / "scan", tmp_path / "b" / "scan"), TAKEN[name]):
        place.parent.mkdir()
        put(place)
        done = ask(grey, place)
        assert done.returncode == 0 and "1 of 1" in done.stdout, done.stderr
        answers.append(segments_in(place.parent / "masks" / "scan.dcm"))
    assert answers[0] == answers[1] and any(np.any(p) and not np.all(p) for p in answers[0].values()), (
        "equal, and the model says something")


def test_predict_keeps_oblique_geometry(grey, tmp_path):
    "33: a slice's label map is that of the same pixels in an upright square grid, and lies where the slice lies"
    import pydicom
    for place, tags in ((tmp_path / "a" / "scan", ACROSS), (tmp_path / "b" / "scan", {})):
        place.parent.mkdir(); stack(lambda k: tags)(place); assert ask(grey, place).returncode == 0
    seg, plain = (pydicom.dcmread(tmp_path / n / "masks" / "scan.dcm") for n in "ab")
    assert (seg.pixel_array == plain.pixel_array).all() and seg.pixel_array.any()
    shared = seg.SharedFunctionalGroupsSequence[0]
    assert (list(shared.PixelMeasuresSequence[0].PixelSpacing) == [.7, 2]
            and list(shared.PlaneOrientationSequence[0].ImageOrientationPatient) == ACROSS["ImageOrientationPatient"])


@pytest.mark.parametrize("lacks",
                         ["FrameOfReferenceUID", "ImagePositionPatient",
                          "ImageOrientationPatient", "PixelSpacing", "SliceThickness"])
def test_picture_without_a_place_gets_a_label_map(grey, tmp_path, lacks):
    "As radiographs and secondary captures; the numbers are those of the slice that has one"
    file()(tmp_path / "scan"); ask(grey, tmp_path / "scan")
    file(**{lacks: None})(tmp_path / "bare"); assert ask(grey, tmp_path / "bare").returncode == 0
    drawn = np.asarray(Image.open(tmp_path / "masks" / "bare.png"))
    assert [drawn.tolist()] == list(segments_in(tmp_path / "masks" / "scan.dcm").values()) and drawn.any()


def test_colour_capture_gets_a_label_map(trained, tmp_path):
    "A photograph that was stored as DICOM is answered as the same photograph in a PNG"
    colours = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    tags = dict(SOPClassUID="1.2.840.10008.5.1.4.1.1.7", SamplesPerPixel=3,
                PhotometricInterpretation="RGB", PlanarConfiguration=0, BitsAllocated=8, BitsStored=8, HighBit=7,
                PixelData=colours.tobytes(), Modality="OT",
                RescaleSlope=1, RescaleIntercept=0, FrameOfReferenceUID=None)
    (tmp_path / "scan.dcm").write_bytes(slice_of(pixels=colours[..., 0], **tags))
    Image.fromarray(colours).save(tmp_path / "photo.png")
    for name in ("scan.dcm", "photo.png"):
        assert trained.call("predict", trained.key, tmp_path / name, "--out", tmp_path / "masks").returncode == 0
    assert (tmp_path / "masks" / "scan.png").read_bytes() == (tmp_path / "masks" / "photo.png").read_bytes()
