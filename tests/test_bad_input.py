"Bad input gives one line with file, fault and remedy, exit code 2, and no result. Files that stock readers take in silence: test_corpus.py."
import json
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from conftest import Project, Tiny, add_tiny, refused


def resize(path, size) -> None: Image.open(path).resize(size).save(path)
def cut(path) -> None: path.write_bytes(path.read_bytes()[:-20])
def relabel(path, value) -> None: Image.fromarray(np.where(np.asarray(Image.open(path)), value, 0).astype(np.uint8)).save(path)


def nan_image(t: Tiny) -> None:
    pixels = np.zeros((24, 20), np.float32); pixels[3, 4] = np.nan
    np.save(t.data / "images" / "p0.npy", pixels)
    t.table(lambda r: r | dict(image=r["image"].replace("p0.png", "p0.npy")))


def table_without(t: Tiny, column: str) -> None: t.table(lambda r: {k: v for k, v in r.items() if k != column})
def first(t: Tiny, **cells) -> None: t.table(lambda r: r | cells if r["case"] == "c0" else r)
def splits(t: Tiny, train: list, test: list) -> None: (t.manifest.parent / "splits.json").write_text(json.dumps(dict(folds=[dict(train=train, test=test)])))


# A data set, spoilt. name: (how, file that the line names, words of its fault)
SETS = {
    "missing image": (lambda t: (t.data / "images" / "p0.png").unlink(), "p0.png", "does not exist"),
    "missing mask": (lambda t: (t.data / "masks" / "p0.png").unlink(), "p0.png", "does not exist"),
    "text named png": (lambda t: (t.data / "images" / "p0.png").write_text("hello"), "p0.png", "damaged"),
    "colour image": (lambda t: Image.open(t.data / "images" / "p0.png").convert("RGB").save(t.data / "images" / "p0.png"), "p0.png", "channels"),
    "wrong hash of a pattern": (lambda t: t.declare(files=[dict(pattern="masks/*.png", sha256="0" * 64)]), "masks/*.png", "hash"),
    "wrong count": (lambda t: t.declare(files=[dict(pattern="images/*.png", count=7)]), "images/*.png", "6 files"),
    "listed file missing": (lambda t: t.declare(files=[dict(path="readme.txt")]), "readme.txt", "missing"),
    "unknown key": (lambda t: t.declare(colour="blue"), "dataset.yaml", "colour"),
    "unknown key below": (lambda t: t.declare(mask=dict(column="mask", kind="labels", colour="blue")), "dataset.yaml", "mask.colour"),
    "missing key": (lambda t: t.declare(licence=None), "dataset.yaml", "licence"),
    "no YAML": (lambda t: t.manifest.write_text("id: [tiny"), "dataset.yaml", "YAML"),
    "key twice": (lambda t: t.manifest.write_text(t.manifest.read_text() + "id: tiny\n"), "dataset.yaml", "twice"),
    "other id": (lambda t: t.declare(id="other"), "dataset.yaml", "other"),
    "missing mask column": (lambda t: table_without(t, "mask"), "table.csv", "mask"),
    "empty table": (lambda t: (t.data / "table.csv").write_text(""), "table.csv", "empty"),
    "case twice": (lambda t: first(t, case="c1"), "table.csv", "c1"),
    "no patient": (lambda t: first(t, patient=""), "table.csv", "patient"),
    "text for a number": (lambda t: t.declare(columns=[dict(name="age", column="case", type="number", known="before")]), "table.csv", "c0"),
    "path that leaves in the table": (lambda t: first(t, image="../../secret.png"), "table.csv", "leaves"),
    "absolute path in the table": (lambda t: first(t, mask="/etc/passwd"), "table.csv", "leaves"),
    "path that leaves in the manifest": (lambda t: t.declare(table="../table.csv"), "dataset.yaml", "leaves"),
    "pattern that leaves": (lambda t: t.declare(files=[dict(pattern="../*/images/*.png")]), "dataset.yaml", "leaves"),
    "Windows path that leaves": (lambda t: t.declare(files=[dict(path="..\\secret.png")]), "dataset.yaml", "leaves"),
}
TRAINED = {
    "truncated image": (lambda t: cut(t.data / "images" / "p0.png"), "p0.png", "cut short"),
    "mask of another size": (lambda t: resize(t.data / "masks" / "p0.png", (20, 23)), "p0.png", "23 x 20"),
    "unknown label": (lambda t: relabel(t.data / "masks" / "p0.png", 7), "p0.png", "7 (64 pixels)"),
    "NaN pixels": (nan_image, "p0.npy", "NaN"),
    "wrong hash": (lambda t: t.declare(files=[dict(path="images/p0.png", sha256="0" * 64)]), "images/p0.png", "hash"),
    "patient in two splits": (lambda t: splits(t, ["p0", "p1", "p2", "p3"], ["p3", "p4", "p5"]), "splits.json", "p3 is in train and in test"),
    "stranger in a split": (lambda t: splits(t, ["p0", "p1", "p2", "p9"], ["p3", "p4", "p5"]), "splits.json", "p9"),
    "patient in no split": (lambda t: splits(t, ["p0", "p1", "p2"], ["p3", "p4"]), "splits.json", "p5"),
    "broken splits": (lambda t: (t.manifest.parent / "splits.json").write_text("{"), "splits.json", "JSON"),
}


# A study, spoilt

def study(text: str): return lambda p: (p.root / "nbs" / "study.yaml").write_text(text, encoding="utf-8")


STUDIES = {
    "no YAML": (study("sections: [{section: a"), "study.yaml", "YAML"), "no mapping": (study("- a\n"), "study.yaml", "mapping"),
    "no sections": (study("section: []"), "study.yaml", "section"), "a number of sections": (study("sections: 3"), "study.yaml", "sections"),
    "names alone": (study("sections: [a, b]"), "study.yaml", "section a"), "unknown key": (study("sections: [{section: a, budgets: {}}]"), "study.yaml", "budgets"),
    "wrong order": (study("sections: [{section: b, upstream: [a]}, {section: a}]"), "study.yaml", "before"),
    "section twice": (study("sections: [{section: a}, {section: a}]"), "study.yaml", "twice"), "unknown profile": (study("sections: [{section: a, profiles: [gpu]}]"), "gpu", "profile"),
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

NET = "from torch import nn\nfrom medseg_nb.keys import register\n@register('{name}')\nclass Mine(nn.Module):\n    def __init__(self, channels, classes, width):\n        super().__init__()\n        self.layer = nn.Conv2d(channels, {classes}, 1)\n    def forward(self, x): return self.layer(x)\n"
PLUGINS = {
    "syntax error": ("class Mine(", "mine.py", "cannot be read as Python (line 1"), "missing import": ("import nosuch\n" + NET.format(name="mine", classes="classes"), "mine.py", "nosuch"),
    "name of the kit": (NET.format(name="unet", classes="classes"), "unet", "own.mine"), "too many classes": (NET.format(name="mine", classes="classes + 1"), "mine", "answers with (4, 3"),
    "name twice": (NET.format(name="mine", classes="classes") + NET.format(name="mine", classes="classes").replace("Mine", "Other"), "mine.py", "registers mine twice"),
    "name computed": (NET.format(name="mine", classes="classes").replace("'mine'", "'mi' + 'ne'"), "mine.py", "plain name"),
}


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
            nibabel.save(nibabel.Nifti1Image(change(values) if name == "masks" else values, np.eye(4)), p.root / name / "m.nii.gz")
    return spoil


def with_nan(values): values[0, 0, 0] = np.nan; return values


MAPS = {
    "missing": (lambda p: (p.root / "masks" / "m.png").unlink(), "masks", "no file could be scored"), "no folder": (lambda p: shutil.rmtree(p.root / "truth"), "truth", "does not exist"),
    "truncated": (lambda p: cut(p.root / "masks" / "m.png"), "m.png", "cut short"), "zero-byte": (lambda p: (p.root / "truth" / "m.png").write_bytes(b""), "m.png", "0 bytes"),
    "another size": (lambda p: resize(p.root / "masks" / "m.png", (8, 9)), "m.png", "9 x 8"), "NaN in a volume": (volumes(with_nan), "m.nii.gz", "NaN"),
    "halves in a volume": (volumes(lambda v: v / 2), "m.nii.gz", "not whole"), "another volume": (volumes(lambda v: v[1:]), "m.nii.gz", "3 x 5 x 6"),
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
CALLS |= {f"train: {k}": Call("train --data tiny --model cnn", s, f, prepare=tiny(g)) for k, (g, s, f) in TRAINED.items()}
CALLS |= {f"paper: {k}": Call("paper", s, f, prepare=g) for k, (g, s, f) in STUDIES.items()}
CALLS |= {f"train: plug-in with {k}": Call("train --data tiny --model mine --profile own", s, f, prepare=plugin(g)) for k, (g, s, f) in PLUGINS.items()}
CALLS |= {f"evaluate: {k}": Call(SCORE, s, f, prepare=maps(g)) for k, (g, s, f) in MAPS.items()}
CALLS |= {f"evaluate --spacing {v!r}": Call([*SCORE.split(), "--spacing", v], "--spacing", prepare=label_maps) for v in ("1,one", "0,1", "nan,1", "")}
CALLS |= {f"evaluate --out {v}": Call(f"evaluate masks truth --out {v}", v.split("/")[0], "cannot be written", prepare=maps(wall)) for v in ("wall/scores.csv", "truth")}
CALLS |= {w: Call(w, "nosuch", "unknown", known) for w, known in {
    "data show nosuch": "phantom_skin", "data verify nosuch": "phantom_skin", "data fetch nosuch": "phantom_skin", "train --data nosuch --model unet": "phantom_skin",
    "train --data phantom_skin --model nosuch": "unet", "train --data phantom_skin --model unet --profile nosuch": "smoke", "paper --profile nosuch": "smoke",
    "paper --only nosuch": "a, b, c", "paper --executor nosuch": "slurm", "run nosuch": "a, b, c", "run a --profile nosuch": "smoke", "status --profile nosuch": "smoke"}.items()}
CALLS |= {"run a --profile own --data nosuch": Call("run a --profile own --data nosuch", "nosuch", "unknown data set", prepare=lambda p: p.edit("a", "seed = 1", "seed = 1\ndatasets = []")),
          "predict nosuch": Call("predict nosuch masks --out out", "nosuch", "", "medseg train", prepare=label_maps), "diff nosuch": Call("diff nosuch", "nosuch", "", "HEAD")}


def results(project: Project) -> dict:
    "Without locks, drawn phantoms, prepared arrays and compiled plug-ins, which are no results"
    return {k: v for k, v in project.files(".").items() if not k.startswith(("cache/", "runs/prepared/", "own/__pycache__/")) and not k.endswith("lock")}


@pytest.mark.parametrize("name", CALLS)
def test_refused(fresh, name):
    call = CALLS[name]
    (call.prepare or nothing)(fresh)
    before = results(fresh)
    done = fresh.call(*(call.words.split() if isinstance(call.words, str) else call.words))
    assert refused(done, call.subject, call.fault) and call.remedy in done.stderr.rpartition("; ")[2]
    assert results(fresh) == before


@pytest.mark.parametrize("name", ["data verify: missing image", "train: patient in two splits", "paper: no YAML", "run nosuch", "evaluate: another size", "status --profile nosuch"])
def test_refused_by_a_process_of_its_own(fresh, name):
    "The same again with everything that a fresh interpreter may say"
    call = CALLS[name]
    (call.prepare or nothing)(fresh)
    assert refused(fresh.medseg(*call.words.split()), call.subject, call.fault)


# What is not refused at once, or not in one line

def test_whole_set_passes(tiny_data):
    done = tiny_data.project.call("data", "verify", "tiny")
    assert done.returncode == 0 and "6 cases" in done.stdout


@pytest.mark.parametrize("words", [[], ["data"], ["claims"], ["nosuch"], ["train"], ["paper", "--nosuch"], ["run", "a", "--limit", "soon"], ["run", "a", "--data", "tiny"]], ids=" ".join)
def test_bad_call(fresh, words):
    done = fresh.call(*words)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and not done.stdout and not fresh.files()


def test_section_refuses_a_spoilt_set(tiny_data):
    "The error of a notebook's kernel arrives as the same line"
    project = tiny_data.project
    cut(tiny_data.data / "images" / "p0.png")
    (project.root / "nbs" / "study.yaml").write_text("sections: [{section: a, parameters: {cpu: {datasets: [tiny]}}}]")
    project.edit("a", "seed = 1", "seed = 1\ndatasets = []")
    project.edit("a", "values = rng(seed, ", "from medseg_nb.data import cases\nfor d in datasets: [c.image() for c in cases(d)]\nvalues = rng(seed, ")
    done = project.medseg("paper", "--profile", "cpu")
    line, = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert done.returncode == 2 and "Traceback" not in done.stderr and "p0.png" in line and "cut short" in line and "; copy it again" in line
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
    for name in ("one", "two"): Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.mark.parametrize("spoil, subject, fault", [
    (lambda f: (f / "one.png").unlink(), "one.png", "does not exist"), (lambda f: cut(f / "one.png"), "one.png", "cut short"),
    (lambda f: (f / "masks").write_text("a file"), "masks", "cannot be written")], ids=["missing", "truncated", "cannot write"])
def test_predict_refuses(trained, photographs, spoil, subject, fault):
    spoil(photographs)
    assert refused(trained.call("predict", trained.key, photographs / "one.png", "--out", photographs / "masks"), subject, fault)
    assert not (photographs / "masks").is_dir()


@pytest.mark.parametrize("name", ["weights.safetensors", "config.json"])
def test_predict_refuses_a_damaged_run(trained, photographs, name):
    project = trained.copy(photographs / "project")
    cut(project.runs / trained.key / name)
    assert refused(project.call("predict", trained.key, photographs / "one.png", "--out", photographs / "masks"), name, "")
    assert not (photographs / "masks").exists()
