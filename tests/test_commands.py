"Each command once, from the outside."
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from unittest.mock import patch

import nibabel
import numpy as np
import pandas as pd
import pytest
import typer
from PIL import Image
from safetensors.numpy import load_file

from conftest import COMMAND, PLAIN, REPO, Project, add_tiny, cell, read_table, refused, write_notebook
from medseg_nb.training.default_runs import list_runs
from medseg_nb.cli import app

HEAVY = {"torch", "torchvision", "monai", "accelerate", "matplotlib", "seaborn", "pandas",
         "scipy", "skimage", "SimpleITK", "pydicom", "nibabel", "pydantic", "papermill", "nbdev", "IPython", "typst"}


def commands(group=None, words=()) -> list[tuple]:
    "Every command of the command line, as words"
    group = group or typer.main.get_command(app)
    return [found for name, c in group.commands.items()
            for found in (commands(c, (*words, name)) if hasattr(c, "commands") else [(*words, name)])]


def modules_after(code: str) -> set[str]:
    "Top-level packages that a fresh interpreter imports for some code"
    done = subprocess.run([sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"],
                          env=PLAIN, capture_output=True, text=True, check=True)
    return {m.split(".")[0] for m in done.stdout.split()}


# Help, and what it costs

def test_command_line_imports_nothing_heavy(): assert modules_after("import medseg_nb.cli") & HEAVY == set()


def test_a_paper_is_set_without_torch(): assert "torch" not in modules_after("import medseg_nb.paper.build")


def test_metrics_import_no_torch(): assert "torch" not in modules_after("import medseg_nb.evaluation.metrics")


def test_kit_data_and_evaluation_import_no_torch():
    chapters = ("kit", "images", "data", "preparation", "evaluation")
    names = [f"{c}.{p.stem}" for c in chapters for p in sorted((REPO / "medseg_nb" / c).glob("[a-z]*.py"))]
    assert (len(names) > 10
            and {"torch", "monai", "matplotlib", "skimage",
                 "SimpleITK"} & modules_after("; ".join(f"import medseg_nb.{n}" for n in names)) == set())


def test_help_is_quick(fresh):
    def seconds():
        start = time.perf_counter()
        assert fresh.medseg("--help").returncode == 0
        return time.perf_counter() - start
    assert min(seconds() for _ in range(3)) < 2  # half a second on an idle machine


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_help_shows_an_example(fresh, words):
    done = fresh.call(*words, "--help")
    example, = re.findall(r"Example: medseg (.+)", done.stdout)
    found = shlex.split(example)
    assert done.returncode == 0 and tuple(found[:len(words)]) == words
    command = typer.main.get_command(app)
    for w in words: command = command.commands[w]
    assert command.make_context("medseg", found[len(words):])  # the example can be parsed


def test_every_interface_of_the_issue_is_there():
    assert {("paper",), ("run",), ("status",), ("diff",), ("train",), ("predict",), ("evaluate",), ("doctor",),
            *(("data", w) for w in ("list", "show", "fetch", "verify")),
            *(("readers", w) for w in ("new", "analyse"))} <= set(commands())


# data

def test_data_list(tiny_data):
    def here(): return {r["id"]: r["here"] for r in json.loads(tiny_data.project.call("data", "list", "--json").stdout)}
    assert here() == dict(phantom_skin=True, tiny=True)
    tiny_data.project.env["MEDSEG_DATA"] = "elsewhere"
    assert here() == dict(phantom_skin=True, tiny=False)
    assert "not here" in tiny_data.project.call("data", "list").stdout


def test_data_show(tiny_data):
    facts = json.loads(tiny_data.project.call("data", "show", "tiny", "--json").stdout)
    assert facts["labels"] == dict(background=0, lesion=1) and facts["licence"]["name"] == "Apache-2.0"
    assert "license   Apache-2.0 (verified)" in tiny_data.project.call("data", "show", "tiny").stdout.splitlines()


def test_fetch_of_a_set_that_must_be_asked_for(fresh):
    shutil.copytree(REPO / "data_manifests" / "lgg_kaggle3m", fresh.root / "data_manifests" / "lgg_kaggle3m")
    assert refused(fresh.call("data", "fetch", "lgg_kaggle3m"), "lgg_kaggle3m", "", code=4)


def test_fetched_phantoms_are_verified(trained):
    place = trained.call("data", "fetch", "phantom_skin").stdout.strip()
    assert (trained.root / place / "table.csv").is_file()
    assert "60 cases" in trained.call("data", "verify", "phantom_skin").stdout


def test_phantom_that_was_changed_is_seen(trained, tmp_path):
    project = trained.copy(tmp_path / "project")
    next(project.root.glob("cache/phantom_skin-*/images")).joinpath("extra.png").write_bytes(b"x")
    assert refused(project.call("data", "verify", "phantom_skin"), "phantom_skin", "61 files")


# train, predict, evaluate

def test_train_leaves_a_whole_run(trained):
    assert re.fullmatch("[0-9a-f]{16}", trained.key)
    place = trained.runs / trained.key
    config, rows = json.loads((place / "config.json").read_text()), read_table(place / "cases.csv.xz")
    assert (config["model"], config["dataset"], config["precision"]) == ("unet", "phantom_skin", "fp32")
    split = json.loads((REPO / "data_manifests" / "phantom_skin" / "splits.json").read_text())["folds"][0]
    assert set(rows.patient) == set(split["test"]) and rows.dice.between(0, 1).all()


def test_train_again_trains_nothing(trained):
    stamps = {p: p.stat().st_mtime_ns for p in trained.runs.rglob("*.csv")}
    done = trained.call("train", "--data", "phantom_skin", "--model", "unet")
    assert (done.stdout.strip() == trained.key
            and {p: p.stat().st_mtime_ns for p in trained.runs.rglob("*.csv")} == stamps)


def test_training_is_reproduced_to_the_byte(trained, fresh):
    assert fresh.call("train", "--data", "phantom_skin", "--model", "unet").stdout.strip() == trained.key
    for name in ("weights.safetensors", "history.csv.xz", "cases.csv.xz", "config.json"):
        assert (fresh.runs / trained.key / name).read_bytes() == (trained.runs / trained.key / name).read_bytes(), name


@pytest.fixture
def scans(trained, tmp_path):
    "Three phantoms and their label maps"
    drawn = next(trained.root.glob("cache/phantom_skin-*"))
    for name in ("scans", "truth"): (tmp_path / name).mkdir()
    for row in pd.read_csv(drawn / "table.csv").head(3).itertuples():
        shutil.copy(drawn / row.image, tmp_path / "scans" / f"{row.case}.png")
        Image.fromarray((np.asarray(Image.open(drawn / row.mask)) > 127).astype(np.uint8)).save(
            tmp_path / "truth" / f"{row.case}.png")
    return tmp_path


def test_predict_and_evaluate(trained, scans):
    done = trained.call("predict", trained.key, scans / "scans", "--out", scans / "masks")
    assert done.returncode == 0 and "3 of 3" in done.stdout and "research use only" in done.stdout
    done = trained.call("evaluate", scans / "masks", scans / "truth", "--out", scans / "scores.csv")
    scores = pd.read_csv(scans / "scores.csv")
    assert done.returncode == 0 and len(scores) == 3 and "hd95_px" in scores and "hd95_mm" not in scores
    for row in scores.itertuples():
        p, t = (np.asarray(Image.open(scans / d / f"{row.case}.png")) > 0 for d in ("masks", "truth"))
        assert p.shape == t.shape and row.dice == pytest.approx(2 * (p & t).sum() / (p.sum() + t.sum()), abs=1e-5)


def test_explain(trained, scans):
    image = next((scans / "scans").glob("*.png"))
    done = trained.call("explain", trained.key, image,
                        "--target", "pixel:30,9", "--method", "grad_cam_pp", "--out", scans / "why")
    assert done.returncode == 0 and "research use only" in done.stdout, done.stderr
    found = json.loads((scans / "why" / f"{image.stem}.pixel-30-9.json").read_text())
    assert (scans / "why" / f"{image.stem}.pixel-30-9.png").stat().st_size > 1000
    assert found["label"] in (0, 1) and found["pixels"] == 1 and found["forward"] + 2 * found["backward"] <= 4


@pytest.mark.parametrize("target, fault",
                         [("pixel:64,3", "lies outside of the image"),
                          ("class:2", "a class that the network does not know"),
                          ("instance:90", "was not found in the answer"),
                          ("nucleus", "is no target")])
def test_explain_refuses_a_target(trained, scans, target, fault):
    done = trained.call("explain", trained.key, next((scans / "scans").glob("*.png")),
                        "--target", target, "--out", scans / "why")
    assert refused(done, target, fault) and not (scans / "why").exists()


def test_suspected_shortcuts(trained, tmp_path):
    words = ("explain", trained.key[:6], "--shortcuts", "--data", "phantom_skin", "--out")
    first, again = (trained.call(*words, tmp_path / name) for name in ("a", "b"))
    assert first.returncode == 0 and "s here" in first.stderr and "research use only" in first.stdout, first.stderr
    assert "no proof of a shortcut" in first.stdout and first.stdout.splitlines()[:2] == again.stdout.splitlines()[:2]
    stored = [(tmp_path / name / "phantom_skin.shortcuts.json").read_bytes() for name in ("a", "b")]
    told = json.loads(stored[0])
    assert told["searched"] + told["tested"] <= told["test_images"] and stored[0] == stored[1]
    assert sum(line.endswith(("FLAGGED", "no")) for line in first.stdout.splitlines()) == len(told["suspects"])
    assert (tmp_path / "a" / "phantom_skin.shortcuts.png").is_file() == bool(told["suspects"])


@pytest.mark.parametrize("words, fault",
                         [(["one.png"], "the whole fold"), (["--target", "class:1"], "the whole fold"),
                          (["--method", "rise"], "the whole fold"), (["--data", "nosuch"], "unknown data set")])
def test_suspected_shortcuts_refuse(trained, tmp_path, words, fault):
    done = trained.call("explain", trained.key, "--shortcuts", *words, "--out", tmp_path / "why")
    assert done.returncode == 2 and fault in done.stderr and not (tmp_path / "why").exists(), done.stderr


def test_explain_asks_for_what_is_missing(trained, tmp_path):
    for words in ((), ("one.png",), ("one.png", "--target", "class:1"), ("--target", "class:1", "--out", tmp_path)):
        done = trained.call("explain", trained.key, *words)
        assert done.returncode == 2 and "give all three, or --shortcuts" in done.stderr, (words, done.stderr)
    done = trained.call("explain", trained.key, "one.png", "--data", "phantom_skin")
    assert done.returncode == 2 and "goes with --shortcuts" in done.stderr, done.stderr


def write_volume(path, array: np.ndarray, sides=(1., 1., 2.)):
    nibabel.save(nibabel.Nifti1Image(array, np.diag([*sides, 1.])), path)
    return path


@pytest.fixture
def region(tmp_path):
    "A volume and a mask of one voxel"
    mask = np.zeros((4, 5, 6), np.uint8); mask[1, 2, 3] = 1
    return write_volume(tmp_path / "scan.nii.gz", np.ones((4, 5, 6), np.float32)), mask


@pytest.mark.parametrize("change, fault",
                         [(lambda m: 0 * m, "has an empty mask"), (lambda m: m[1:], "the mask is 3 x 5 x 6"),
                          (lambda m: m * np.float32(.5), "is no label map"), (lambda m: 3 * m, "has no label 1 in")])
def test_radiomics_refuse_a_mask(fresh, region, tmp_path, change, fault):
    mask = write_volume(tmp_path / "mask.nii.gz", change(region[1]))
    done = fresh.call("radiomics", region[0], mask, "--label", "1", "--out", tmp_path / "out.csv")
    assert refused(done, ".nii.gz", fault) and not (tmp_path / "out.csv").exists()


def test_radiomics_refuse_another_geometry_and_what_is_no_volume(fresh, region, tmp_path):
    mask = write_volume(tmp_path / "mask.nii.gz", region[1], (2., 1., 2.))
    assert refused(fresh.call("radiomics", region[0], mask), "mask.nii.gz", "the affines of mask and image differ by 1")
    hole = write_volume(tmp_path / "hole.nii.gz", np.where(region[1] > 0, np.float32(np.nan), 1))
    mask = write_volume(tmp_path / "mask.nii.gz", region[1])
    assert refused(fresh.call("radiomics", hole, mask), "hole.nii.gz", "holds NaN or infinity in 1 of 120 values")
    assert refused(fresh.call("radiomics", "--data", "phantom_skin"), "phantom_skin", "is no volume")
    assert refused(fresh.call("radiomics", region[0], mask, "--channel", "0"), "scan.nii.gz", "has one channel")
    done = fresh.call("radiomics", region[0], mask, "--out", mask)
    assert refused(done, "mask.nii.gz", "is one of the images and masks")


def test_radiomics_ask_for_what_is_missing(fresh, region, tmp_path):
    for words, fault in (((), "give both, or --data"), (("--data", "x"), "--data names the images")):
        done = fresh.call("radiomics", region[0], *words)
        assert done.returncode == 2 and fault in done.stderr, done.stderr
    mask = write_volume(tmp_path / "mask.nii.gz", region[1])
    with patch.dict(sys.modules, mirp=None, **{n: None for n in sys.modules if n.startswith("mirp.")}):
        done = fresh.call("radiomics", region[0], mask)
    assert done.returncode == 4 and done.stderr == 'error: mirp: is not installed; pip install "medseg_nb[radiomics]"\n'


def test_evaluate_names_the_unit_of_a_distance(trained, scans):
    assert trained.call("evaluate", scans / "truth", scans / "truth",
                        "--out", scans / "s.csv", "--spacing", "2,1").returncode == 0
    scores = pd.read_csv(scans / "s.csv")
    assert "hd95_mm" in scores and (scores.dice == 1).all() and (scores.hd95_mm == 0).all()


def test_batch_with_a_reject(trained, scans):
    (scans / "scans" / "bad.png").write_bytes(b"")
    done = trained.call("predict", trained.key, scans / "scans", "--out", scans / "masks")
    table = pd.read_csv(scans / "masks" / "predict.csv").set_index("file")
    assert (done.returncode == 3 and table.status["bad.png"] == "rejected"
            and "0 bytes" in table.reason["bad.png"] and (table.status == "done").sum() == 3)
    assert len(list((scans / "masks").glob("*.png"))) == 3


@pytest.fixture
def reading(trained, tmp_path):
    "A small reader study, filled in as a person would not: every rating is 3, every reading takes a minute"
    done = trained.call("readers", "new", "--data", "phantom_skin",
                        "--readers", "2", "--cases", "6", "--repeats", "2", "--seed", "5", "--out", tmp_path / "study")
    assert done.returncode == 0 and "need local approval" in done.stdout, done.stderr
    design = pd.read_csv(tmp_path / "study" / "design.csv",
                         dtype=str, keep_default_na=False).assign(rating="3", seconds="60.5")
    design.loc[0, "rating"] = "5"
    design.to_csv(tmp_path / "study" / "filled.csv", index=False)
    return tmp_path / "study", design


def analysed(project: Project, place) -> subprocess.CompletedProcess:
    return project.call("readers", "analyse", place / "filled.csv", "--key", place / "key.csv", "--out", place / "out")


def test_reader_study(trained, reading):
    place, design = reading
    text = (place / "design.csv").read_text() + "".join(p.read_text() for p in place.glob("*.md"))
    key = pd.read_csv(place / "key.csv", dtype=str)
    assert (len(design) == 2 * 2 * (6 + 2) == len(key)
            and not [c for c in {*key.case, *key.patient, "phantom_skin"} if c in text])
    assert ("TEMPLATE" in (place / "consent_template.md").read_text()
            and "TEMPLATE" in (place / "ethics_template.md").read_text())
    assert analysed(trained, place).returncode == 0
    effects = pd.read_csv(place / "out" / "effects.csv").set_index(["effect", "outcome"])
    assert effects.value["aided", "time_ratio"] == 1 and len(pd.read_csv(place / "out" / "rows.csv")) == len(design)
    again = trained.call("readers", "new", "--data", "phantom_skin", "--readers", "2", "--out", place)
    assert refused(again, "design.csv", "is there already")


SPOILT = {"missing row": (lambda d: d[1:], "1 of 32 rows are missing"),
          "row twice": (lambda d: pd.concat([d, d[:1]]), "stands twice"),
          "unknown reader": (lambda d: d.replace({"reader": {"R1": "R7"}}), "reader R7 is not of this study"),
          "rating off the scale": (lambda d: d.replace({"rating": {"5": "9"}}), "is `9`"),
          "decimal comma": (lambda d: d.replace({"seconds": {"60.5": "60,5"}}), "is `60,5`"),
          "another study": (lambda d: d.assign(study="0123456789ab"), "is of study 0123456789ab")}


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_reader_study(trained, reading, name):
    place, design = reading
    SPOILT[name][0](design).to_csv(place / "filled.csv", index=False)
    assert refused(analysed(trained, place), "filled.csv", SPOILT[name][1]) and not (place / "out").exists()


def test_reader_study_from_another_spreadsheet(trained, reading):
    place, design = reading
    design.to_csv(place / "filled.csv", index=False, sep=";", decimal=",")
    assert refused(analysed(trained, place), "filled.csv", "separated by semicolons")
    design.to_csv(place / "filled.csv", index=False)
    key = (place / "key.csv").read_text()
    number = pd.read_csv(place / "key.csv", dtype=str).patient[0]
    (place / "key.csv").write_text(key.replace(f",{number},", f",{number.lstrip('s0')},"))
    assert refused(analysed(trained, place), "key.csv", "was changed") and not (place / "out").exists()


def test_evaluation_with_a_reject(trained, scans):
    shutil.copytree(scans / "truth", scans / "masks")
    lost = next((scans / "masks").iterdir())
    lost.unlink()
    done = trained.call("evaluate", scans / "masks", scans / "truth", "--out", scans / "s.csv")
    assert (done.returncode == 3 and f"{lost.name}: has no prediction" in done.stderr
            and len(pd.read_csv(scans / "s.csv")) == 2)


# status, diff, doctor

def test_status_of_a_current_study(built):
    done = built.call("status", "--json")
    assert (done.returncode == 0 and {r["section"]: r["state"] for r in json.loads(done.stdout)}
            == dict(a="current", b="current", c="current"))


def test_dry_run_of_a_fresh_study(fresh):
    done = fresh.call("paper", "--dry-run")
    assert done.returncode == 1 and done.stdout.count("absent") == 3 and not fresh.files() and not fresh.runs.exists()


@pytest.fixture
def committed(project) -> Project:
    "The executed study, committed with git"
    (project.root / ".gitignore").write_text("runs/\ncache/\n")
    for words in ("init -q", "add -A", "-c user.name=t -c user.email=t@example.org commit -q -m x"):
        subprocess.run(["git", *words.split()], cwd=project.root, check=True)
    return project


def test_diff_of_equal_states(committed):
    done = committed.call("diff", "--json")
    assert done.returncode == 0 and json.loads(done.stdout) == []


@pytest.mark.parametrize("tolerance", [[], ["--tolerance"]], ids=["exact", "tolerance"])
def test_number_edited_by_hand_moves_diff(committed, tolerance):
    "On one machine no tolerance hides it"
    path = committed.reports / "smoke" / "b" / "results.json"
    stored = json.loads(path.read_text())
    stored["numbers"]["value.mean"]["value"] += 1e-5
    path.write_text(json.dumps(stored, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    done = committed.call("diff", *tolerance, "--json")
    row, = json.loads(done.stdout)
    assert done.returncode == 1 and (row["place"], row["what"], row["counts"]) == ("smoke/b", "value.mean", True)


@pytest.mark.parametrize("name", ["a/cases.csv.xz", "a/values.csv", "a/curve.svg", "c/notebook.ipynb",
                                  "supplement.html"])
def test_file_edited_by_hand_moves_diff(committed, name):
    with open(committed.reports / "smoke" / name, "a", encoding="utf-8") as f: f.write(" ")
    done = committed.call("diff", "--tolerance")
    assert done.returncode == 1 and name.split("/")[-1] in done.stdout


def test_lost_file_moves_diff(committed):
    (committed.reports / "smoke" / "a" / "values.csv").unlink()
    assert committed.call("diff").returncode == 1


def test_doctor(built):
    done = built.call("doctor", "--json")
    rows = {r["what"]: r for r in json.loads(done.stdout)}
    assert ({"python", "machine", "cores", "memory", "locked versions"} <= set(rows)
            and done.returncode == (0 if all(r["ok"] for r in rows.values()) else 4))


def test_doctor_sees_another_version(fresh):
    (fresh.root / "requirements.lock").write_text("numpy==0.1\n")
    done = fresh.call("doctor")
    assert done.returncode == 4 and re.search(r"MISSING.*numpy \S+, locked ==0.1", done.stdout)


# Plug-ins, and profile own

PLUGIN = """from torch import nn

from medseg_nb.kit.keys import register


@register("mine")
class Mine(nn.Module):
    def __init__(self, channels, classes, ndim=2, width=16):
        super().__init__()
        self.layer = nn.Conv2d(channels, classes, 3, padding=1)

    def forward(self, x): return self.layer(x)
"""


def keys(project: Project, profile: str) -> dict:
    "Run keys by model"
    with project.inside(): return {c.model: c.key for c in list_runs(profile, ["phantom_skin"])}


def test_plugin_changes_only_its_own_key(fresh):
    own, smoke, plugin = keys(fresh, "own"), keys(fresh, "smoke"), fresh.root / "own" / "mine.py"
    plugin.parent.mkdir()
    plugin.write_text(PLUGIN)
    added = keys(fresh, "own")
    assert keys(fresh, "smoke") == smoke and {k: v for k, v in added.items() if k != "mine"} == own and "mine" in added
    plugin.write_text(PLUGIN.replace("    def forward", "    # a comment\n    def forward"))
    assert keys(fresh, "own") == added
    plugin.write_text(PLUGIN.replace("3, padding=1", "5, padding=2"))
    changed = keys(fresh, "own")
    assert [k for k in changed if changed[k] != added[k]] == ["mine"]


BENCHMARK = """#| study
report = Report("benchmark", profile)
rows = fit_runs(list_runs(profile, datasets), profile)
report.cases(rows)
report.numbers({"models.count": rows.model.nunique()})"""


FLAT = """from torch import nn

from medseg_nb.kit.keys import register


@register("flat")
class Flat(nn.Module):
    def __init__(self, channels: int, classes: int, ndim: int = 2, width: int = 16):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, classes, 3, padding=1))

    def forward(self, x): return self.layers(x)
"""


@pytest.mark.long
def test_two_processes_train_one_run(fresh):
    """Gradients of the halves of a batch, averaged, are those of the whole, where no layer looks at several cases; one
    process writes"""
    (fresh.root / "own").mkdir()
    (fresh.root / "own" / "flat.py").write_text(FLAT)
    words = ["train", "--data", "phantom_skin", "--model", "flat", "--profile", "own"]
    alone = fresh.call(*words)
    both = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", COMMAND, *words],
                          capture_output=True, text=True, cwd=fresh.root, timeout=300,
                          env=fresh.environment() | dict(MEDSEG_RUNS="two", OMP_NUM_THREADS="1"))
    assert (alone.returncode, both.returncode) == (0, 0) and both.stdout.strip() == alone.stdout.strip(), both.stderr
    ours, theirs = (fresh.root / runs / alone.stdout.strip() for runs in ("runs", "two"))
    a, b = (load_file(place / "weights.safetensors") for place in (ours, theirs))
    assert a.keys() == b.keys() and all(np.allclose(a[k], b[k], atol=1e-5) for k in a)
    assert (ours / "history.csv.xz").read_bytes() != (theirs / "history.csv.xz").read_bytes(), "each saw its part"


@pytest.mark.long
def test_own_data_and_an_added_model(fresh):
    "A user's data set is benchmarked; a model added later is the only one that is trained"
    tiny = add_tiny(fresh)
    shutil.move(tiny.manifest.parent, fresh.root / "own" / "data" / "tiny")
    imports = cell(
        "from medseg_nb.training.default_runs import list_runs\nfrom medseg_nb.kit.report import Report\nfrom "
        "medseg_nb.training.training import fit_runs")
    write_notebook(fresh.root / "nbs" / "study" / "01_benchmark.ipynb",
                   [cell("# Benchmark\n\n> Which model?"), cell("## Article\n\nOne paragraph."),
                    cell('profile = "smoke"\ndatasets = ["phantom_skin"]', "parameters"), imports, cell(BENCHMARK)])
    (fresh.root / "nbs" / "study.yaml").write_text("sections: [{section: benchmark}]")
    # this benchmark is not the study's, so neither is the article
    (fresh.root / "nbs" / "paper" / "article.md").write_text(
        "---\ntitle: Own\nabstract: A test.\n---\n\n# Results\n\n{{ results }}\n")
    def trained(): return {p.parent.name: p.stat().st_mtime_ns for p in fresh.runs.glob("*/cases.csv.xz")}
    for model in ("cnn", "fcn", "unet"):
        assert fresh.call("train", "--data", "tiny", "--model", model, "--profile", "own").returncode == 0
    first = trained()
    (fresh.root / "own" / "mine.py").write_text(PLUGIN)
    done = fresh.medseg("paper", "--profile", "own", "--data", "tiny")
    assert done.returncode == 0, done.stderr
    assert len(first) == 3 and len(trained()) == 4 and first.items() <= trained().items()
    assert (set(read_table(fresh.reports / "own" / "benchmark" / "cases.csv.xz").model)
            == {"cnn", "fcn", "unet", "mine"})
    assert "own profile" in (fresh.reports / "own" / "supplement.html").read_text(encoding="utf-8")
