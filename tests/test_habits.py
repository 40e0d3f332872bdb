"Doubts of a newcomer: what a command says where nothing, or something unexpected, is to be done"
import json
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import PLAIN, REPO, refused
from test_own_study import draw_squares

BLOCKED = "import sys; sys.modules['torch'] = None; from medseg_nb.cli import main; main()"  # an import of torch fails


@pytest.fixture
def own_set(fresh, tmp_path):
    "A project with a set of its user's own, and the folder of its files"
    fresh.env["MEDSEG_OWN"] = str(tmp_path / "own")
    draw_squares(place := tmp_path / "scans")
    assert fresh.call("data", "add", place, "--id", "mine", "--yes").returncode == 0
    return fresh, place


def test_an_own_set_that_changed_is_to_be_added_anew(own_set):
    project, place = own_set
    image = sorted((place / "images").iterdir())[0]
    for change in (lambda: image.write_bytes(b"other"), image.unlink):
        change()
        done = project.call("data", "verify", "mine")
        assert done.returncode == 2 and "data remove mine, then medseg data add" in done.stderr, done.stderr
        assert "fetch" not in done.stderr and len(done.stderr.splitlines()) == 1


def test_results_that_came_with_the_repository_are_committed(project):
    shutil.rmtree(project.runs / "stamps")
    done = project.medseg("status", "--json")
    assert done.returncode == 1 and {r["state"] for r in json.loads(done.stdout)} == {"committed"}
    project.edit("b", "before + 1", "before + 5")
    rows = {r["section"]: r for r in json.loads(project.medseg("status", "--json").stdout)}
    assert rows["a"]["state"] == "committed" and rows["b"]["state"] == "stale"
    assert rows["b"]["why"] == ["not executed here yet", "code"]


def test_a_dry_run_always_prints(project):
    done = project.call("paper", "--dry-run")
    assert done.returncode == 0 and done.stdout.startswith("nothing would be executed: ")
    project.edit("b", "before + 1", "before + 5")
    done = project.call("paper", "--dry-run")
    assert done.returncode == 1 and "b " in done.stdout and "code" in done.stdout


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="Windows has no such clock")
def test_an_interrupted_command_says_that_finished_work_is_kept(own_set):
    project, _ = own_set
    code = ("import signal; signal.signal(signal.SIGALRM, signal.default_int_handler); "
            "signal.setitimer(signal.ITIMER_REAL, 2, 5); "  # again, since an import may swallow the first
            "from medseg_nb.cli import main; main()")
    done = subprocess.run([sys.executable, "-c", code, "study", "mine", "--minutes", "60"], cwd=project.root,
                          env=project.environment(), capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr.splitlines()[-1].startswith("error: interrupted; "), done.stderr


def test_a_set_is_shown_on_one_screen(own_set):
    project, place = own_set
    done = project.call("data", "show", "mine")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) <= 25 and max(map(len, lines)) <= 200, done.stdout
    shown = {line[:10].strip(): line[10:] for line in lines[1:]}
    assert shown["holds"] == "60 cases of 30 patients" and shown["split"] == "5 folds by patient: train 24, test 6"
    assert shown["images"].startswith("64×64 (8 were read), unknown spacing") and shown["files"] == str(place)
    assert "guessed   patient: " in done.stdout and shown["manifest"].endswith("mine/dataset.yaml")
    assert json.loads(project.call("data", "show", "mine", "--json").stdout)["mask"]["column"] == "mask"
    shutil.rmtree(place)
    assert "holds     not on this machine" in project.call("data", "show", "mine").stdout


@pytest.mark.parametrize("words, nearest", [
    (["stduy"], "Did you mean 'study'?"), (["data", "convret"], "Did you mean 'convert'?"),
    (["paper", "--profle"], "Possible options: --profile")])
def test_what_is_misspelt_is_answered_with_the_nearest(fresh, words, nearest):
    done = fresh.call(*words)
    assert done.returncode == 2 and nearest in done.stderr, done.stderr


@pytest.mark.parametrize("words", [
    ("data", "show"), ("data", "audit"), ("study",), ("train", "--model", "unet", "--data")])
def test_a_misspelt_data_set_is_answered_with_the_nearest(fresh, words):
    for id in ("phantom_skn", "Phantom_Skin"):
        done = fresh.call(*words, id)
        assert refused(done, id, "unknown data set")
        assert done.stderr.endswith("; did you mean phantom_skin? medseg data list lists all\n"), done.stderr
    far = fresh.call(*words, "zebra").stderr
    assert far.endswith("one of your own is entered by medseg data add FOLDER --id zebra\n"), far


@pytest.mark.long
def test_the_beginning_of_a_key_is_a_key(trained, tmp_path):
    done = trained.medseg("export", trained.key[:6], "--to", "onnx", "--out", str(tmp_path / "onnx"))
    assert done.returncode == 0, done.stderr
    assert trained.key in "".join(p.read_text() for p in (tmp_path / "onnx").glob("*.json"))
    unknown = "0" * 8 if not trained.key.startswith("0" * 8) else "1" * 8
    for words in (("explain", unknown, tmp_path / "x.png", "--target", "class:1", "--out", tmp_path / "w"),
                  ("bench", unknown), ("serve", "app", unknown), ("export", unknown, "--out", tmp_path / "e")):
        done = trained.call(*words)
        assert done.returncode == 2 and "there is no such run" in done.stderr, (words, done.stderr)


@pytest.mark.long
def test_models_say_on_how_many_cases_a_dice_stands(trained):
    from medseg_nb.kit.report import read_rows
    dice = read_rows(trained.runs / trained.key).dice
    row, = (r for r in json.loads(trained.call("models", "--json").stdout) if r["key"] == trained.key)
    assert row["cases"] == dice.count() > 0 and row["dice"] == pytest.approx(dice.mean())
    line, = (x for x in trained.call("models").stdout.splitlines() if x.startswith(trained.key))
    assert f"Dice {dice.mean():.3f} of {dice.count()} held-out cases" in line and "alone" not in line


@pytest.mark.parametrize("words", [
    ("export", "mine/ensemble", "--out", "e"), ("bench", "mine/ensemble"), ("dossier", "mine/ensemble", "--out", "d"),
    ("explain", "mine/ensemble", "x.png", "--target", "class:1", "--out", "w"),
    ("study", "phantom_skin", "--from", "mine/ensemble")], ids=lambda words: words[0])
def test_an_ensemble_is_refused_where_one_network_is_needed(fresh, words):
    (fresh.root / "own").mkdir()
    names = {"mine/best": "0" * 16, "mine/ensemble": "+".join(["0" * 16, "1" * 16])}
    (fresh.root / "own" / "models.json").write_text(json.dumps(names))
    done = fresh.call(*words)
    assert refused(done, "mine/ensemble", "is an ensemble of 2 networks, which cannot be exported, explained")
    assert done.stderr.endswith("; name mine/best\n"), done.stderr


def test_core_commands_need_no_torch(own_set, tmp_path):
    project, place = own_set
    masks = place / "masks"
    for words in (("data", "list"), ("data", "show", "mine"), ("data", "verify", "mine"), ("data", "audit", "mine"),
                  ("models",), ("evaluate", masks, masks, "--out", tmp_path / "scores.csv"), ("doctor", "--help"),
                  ("data", "remove", "mine"), ("data", "add", place, "--id", "again", "--yes")):
        done = subprocess.run([sys.executable, "-c", BLOCKED, *map(str, words)], cwd=project.root,
                              env=PLAIN | project.env, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stderr)


def test_one_word_leaves_cuda_out(tmp_path):
    "What make would do: processors' builds of torch first, and nothing of CUDA from the lock; a later call keeps to it"
    def recipe(*words):
        return subprocess.run(["make", "-n", "-B", "env", f"VENV={tmp_path / 'v'}", *words], cwd=REPO,
                              capture_output=True, text=True, check=True).stdout
    plain, cpu = recipe(), recipe("TORCH=cpu")
    assert "-r requirements.lock" in plain and "--torch-backend" not in plain
    assert "--torch-backend cpu" in cpu and "-r requirements.lock" not in cpu
    filtered = subprocess.run(["make", "-s", f"VENV={tmp_path / 'v'}", str(tmp_path / "v/cpu.lock")], cwd=REPO)
    kept = (tmp_path / "v/cpu.lock").read_text().splitlines()
    left_out = set((REPO / "requirements.lock").read_text().splitlines()) - set(kept)
    assert filtered.returncode == 0 and left_out and any(line.startswith("torch==") for line in kept)
    assert {line.split("-")[0].split("=")[0] for line in left_out} <= {"cuda", "nvidia", "triton"}
    assert recipe() == cpu
