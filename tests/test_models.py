"The models of the package: whole, licensed, as good as their cards say, and of use from the command line"
import json
import shutil
import subprocess
import sys
from configparser import ConfigParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image as Picture
from sklearn.metrics import log_loss

from conftest import REPO, read_table, refused
from medseg_nb.data.manifest import ensure_dataset, load_cases
from medseg_nb.deployment.model_cards import models_page, read_calibration, score_examples, write_examples
from medseg_nb.deployment.segmenter import load_segmenter
from medseg_nb.images.files import Image
from medseg_nb.paper.lessons import load_pictures
from medseg_nb.paper.readme import replace_block
from medseg_nb.training.shipped_models import load_shipped_plan, read_model_card, shipped_config

MODELS = REPO / "models"
NAMES = sorted(load_shipped_plan().models)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    "Five pictures of nuclei; their masks lie in the folder beside theirs"
    place = tmp_path_factory.mktemp("examples") / "nuclei"
    write_examples("nuclei", place)
    return sorted((place / "images").iterdir())[:5]


@pytest.fixture
def user(fresh):
    "A place outside of the checkout, where the models and manifests are those of the package"
    fresh.env |= dict(MEDSEG_MODELS=str(MODELS), MEDSEG_DATA_MANIFESTS=str(REPO / "data_manifests"))
    return fresh


@pytest.fixture
def changed(user):
    "The same with a copy of the models, which may be spoilt"
    shutil.copytree(MODELS, user.root / "models")
    user.env["MEDSEG_MODELS"] = "models"
    return user


# What is committed

def test_models_are_those_of_the_plan_and_small():
    assert sorted(p.name for p in MODELS.iterdir()) == NAMES
    assert sum(p.stat().st_size for p in MODELS.rglob("*") if p.is_file()) < 2.2e6


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_what_its_rows_say(name):
    card, rows = read_model_card(name), read_table(MODELS / name / "cases.csv.xz", dtype=dict(case=str, patient=str))
    assert {s.score for s in card.scores} == {"dice", "pq"} if card.grouping else {"dice"}
    for s in card.scores:
        part = rows[(rows.variant == s.variant) & (rows.region == s.region)]
        means = part.groupby("patient")[s.score].mean().dropna()
        assert s.mean == pytest.approx(means.mean(), abs=1e-4) and s.n == len(means) and s.low < s.mean < s.high
    lowest, shipped = card.strata[0], rows[(rows.variant == "shipped") & (rows.region == card.strata[0].region)]
    assert lowest.mean == min(s.mean for s in card.strata) <= max(s.mean for s in card.scores if s.variant == "shipped")
    if lowest.stratum == "smallest third":
        part = shipped.sort_values("size", kind="stable").head(len(shipped) // 3)
        assert lowest.mean == pytest.approx(part.groupby("patient").dice.mean().mean(), abs=.02)


@pytest.mark.parametrize("name", NAMES)
def test_held_out_patients_are_those_of_the_frozen_split(name):
    "None of them was trained on"
    config, rows = shipped_config(name), read_table(MODELS / name / "cases.csv.xz", dtype=str)
    split = json.loads((REPO / "data_manifests" / config.dataset / "splits.json").read_text())["folds"][0]
    assert set(rows.patient) == set(split["test"]) and not set(rows.patient) & set(split["train"])
    assert json.loads((MODELS / name / "config.json").read_text())["steps"] == config.steps


@pytest.mark.parametrize("name", NAMES)
def test_a_quantized_network_scores_like_the_unquantized_one(name):
    means = {(s.variant, s.score, s.region): s.mean for s in read_model_card(name).scores}
    for (variant, *what), mean in means.items():
        if variant == "shipped": assert abs(mean - means[("full precision", *what)]) < .005


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_what_its_probabilities_are_worth(name):
    bins, patients = read_calibration(name).bins, read_model_card(name).test_patients
    assert [b.low for b in bins] == [0, .05, .2, .4, .6, .8, .95]
    assert [b.high for b in bins[:-1]] == [b.low for b in bins[1:]]
    assert sum(b.share for b in bins) == pytest.approx(1, abs=1e-5)
    assert all(b.low <= b.predicted <= b.high and b.observed_low <= b.observed <= b.observed_high for b in bins)
    assert all(0 < b.n <= patients for b in bins)
    error, temperature = sum(b.share * abs(b.predicted - b.observed) for b in bins), read_calibration(name).temperature
    if name == "phantom": assert temperature == 1, "after ten seconds of training it is less sure than it could be"
    else: assert temperature > 1 and error < .02


def test_probabilities_of_the_phantom_model_are_those_of_its_card():
    "Counted and fitted again by other code; the card's table is of halves, with the temperature of the other half"
    bins, segmenter = read_calibration("phantom").bins, load_segmenter("phantom")
    ensure_dataset("phantom_skin")
    held_out = set(read_table(MODELS / "phantom" / "cases.csv.xz", dtype=str).case)
    told, truth, tables = [], [], []
    for case in (c for c in load_cases("phantom_skin") if c.id in held_out):
        p = segmenter.probabilities(segmenter.prepare_input(case.image(), case.id))[0, 1].ravel()
        mask = np.asarray(Picture.fromarray(case.semantic_mask()).resize(segmenter.shape, Picture.NEAREST)).ravel()
        told.append(p.astype(float)); truth.append(mask)
        for k, (low, high) in enumerate((b.low, b.high) for b in bins):
            inside = (p >= low) & (p < high)
            if inside.any(): tables.append((k, mask[inside].mean()))
    observed = pd.DataFrame(tables, columns=["bin", "observed"]).groupby("bin")["observed"].mean()
    for k, b in enumerate(bins): assert observed[k] == pytest.approx(b.observed, abs=.1), (k, b)
    logit = [np.log(p) - np.log1p(-p) for p in told]
    def loss(t): return np.mean([log_loss(m, 1 / (1 + np.exp(-x / t)), labels=[0, 1]) for m, x in zip(truth, logit)])
    assert loss(.8) < loss(1) < loss(1.25), "it could be surer, so its scores stay as they are"


@pytest.mark.parametrize("name", NAMES)
def test_the_license_lies_beside_the_weights(name):
    card, notice = read_model_card(name), (MODELS / name / "LICENSE.md").read_text(encoding="utf-8")
    assert card.license in notice and card.attribution in notice and "Research use only" in notice
    expected = dict(nuclei="CC0 1.0", skin="CC0 1.0", nodules="CC BY 3.0", hippocampus="CC BY-SA 4.0")
    assert card.license == expected.get(name, "Apache-2.0")


def test_the_page_is_that_of_the_cards():
    "Otherwise: medseg models build, or write_models_page()"
    text = (REPO / "docs" / "models.md").read_text(encoding="utf-8")
    assert replace_block("docs/models.md", text, "models", models_page()) == text


@pytest.mark.parametrize("name", ["nuclei", "hippocampus", "nodules"])
def test_dice_on_the_pictures_of_the_lessons(name):
    "Pictures that are in the repository, as the card says; another processor may round otherwise"
    expected = read_model_card(name).examples
    found = score_examples(load_segmenter(name), name)
    assert found["pictures"] == expected["pictures"] >= 5 and found["dice"] == pytest.approx(expected["dice"], abs=.003)


def test_why_the_nodules_of_the_lessons_score_less_than_the_card():
    "They are cut to a quarter of the area that the model learned from, so it sees them twice as large as it knows them"
    segmenter, plain, padded = load_segmenter("nodules"), [], []
    for p in load_pictures("nodules")[::2]:
        truth, wide = p.mask > 0, np.pad(p.image, 32, mode="reflect")
        assert truth.shape == (64, 64) and wide.shape == segmenter.shape == (128, 128)
        found = [segmenter.label_map(Image(a, None), p.id) > 0 for a in (p.image, wide)]
        scores = [2 * (f & truth).sum() / (f.sum() + truth.sum()) for f in (found[0], found[1][32:96, 32:96])]
        plain.append(scores[0]); padded.append(scores[1])
    card = next(s.mean for s in read_model_card("nodules").scores if s.variant == "shipped")
    assert np.mean(plain) < card - .1 and np.mean(padded) == pytest.approx(card, abs=.02)


# From the command line

def test_five_pictures_are_segmented_outside_of_the_checkout(user, pictures):
    done = user.call("predict", "nuclei", *pictures, "--out", "masks")
    assert done.returncode == 0 and "5 of 5" in done.stdout and "research use only" in done.stdout, done.stderr
    table = pd.read_csv(user.root / "masks" / "predict.csv")
    for row, picture in zip(table.itertuples(), pictures):
        found = np.asarray(Picture.open(user.root / "masks" / f"{picture.stem}.png"))
        truth = np.asarray(Picture.open(picture.parents[1] / "masks" / picture.name))
        assert found.shape == truth.shape and row.objects == len(np.unique(found[found > 0])) > 1
        assert 2 * ((found > 0) & (truth > 0)).sum() / ((found > 0).sum() + (truth > 0).sum()) > .7
    assert not (user.root / "runs").exists(), "a model of the package leaves no run"


def test_only_what_the_core_brings_is_imported(user, pictures):
    "A distribution of an extra that is missing on a user's machine is not needed"
    settings = ConfigParser(delimiters=["="])
    settings.read(REPO / "settings.ini", encoding="utf-8")
    extras = ("monai timm einops matplotlib seaborn sklearn accelerate segmentation_models_pytorch torchvision onnx "
              "onnxruntime openvino papermill nbdev psutil statsmodels shap captum scour typst pylidc mlcroissant")
    assert not {"matplotlib", "monai", "onnxruntime"} & set(settings["DEFAULT"]["requirements"].split())
    code = (f"import sys\nfor name in '{extras}'.split(): sys.modules[name] = None\n"
            "from medseg_nb.cli import main; main()")
    done = subprocess.run([sys.executable, "-c", code, "predict", "nuclei", pictures[0], "--out", "masks"],
                          cwd=user.root, env=user.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_models_are_listed_beside_own_runs(user):
    rows = json.loads(user.call("models", "--json").stdout)
    assert [r["name"] for r in rows] == NAMES and rows == json.loads(user.call("models", "list", "--json").stdout)
    assert all(.5 < r["dice"] < 1 and r["license"] for r in rows)
    assert "nuclei_dsb2018_large" in user.call("models").stdout


def test_a_card_is_shown(user):
    text, facts = (user.call("models", "card", "hippocampus", *flag).stdout for flag in ((), ("--json",)))
    assert "CC BY-SA 4.0" in text and "Where it fails" in text and json.loads(facts)["name"] == "hippocampus"
    assert refused(user.call("models", "card", "hipocampus"), "hipocampus", "unknown shipped model")
    assert "did you mean hippocampus" in user.call("models", "card", "hipocampus").stderr
    assert refused(user.call("models", "card", "mine/best"), "mine/best", "unknown shipped model")


def test_a_picture_of_another_kind_is_segmented_with_a_warning(user, pictures):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Picture.fromarray(noise).save(user.root / "noise.png")
    done = user.call("predict", "skin", "noise.png", "--out", "masks")
    reason = pd.read_csv(user.root / "masks" / "predict.csv").reason[0]
    assert done.returncode == 0 and "warning: noise.png: does not look like the images that skin" in done.stderr
    assert "texture" in reason and reason in done.stderr
    quiet = user.call("predict", "nuclei", pictures[0], "--out", "nuclei")
    assert quiet.returncode == 0 and "warning" not in quiet.stderr


@pytest.mark.parametrize("model, fault", [
    ("hippocampus", "has 2 axes, and the model takes 3"), ("skin", "1 channels, the model takes 3"),
    ("nuclie", "there is no such run")])
def test_what_a_model_cannot_take_is_refused(user, model, fault, pictures):
    done = user.call("predict", model, pictures[0], "--out", "masks")
    assert refused(done, model if model == "nuclie" else pictures[0].name, fault)
    if model == "nuclie": assert "did you mean nuclei?" in done.stderr


def test_a_changed_file_is_refused(changed, pictures):
    weights = changed.root / "models" / "nuclei" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    done = changed.call("predict", "nuclei", pictures[0], "--out", "masks")
    assert refused(done, "weights.safetensors", "its hash differs")
    done = changed.call("models", "verify")
    assert done.returncode == 2 and "weights.safetensors: is not the file that card.json names" in done.stderr
    assert "ok      phantom" in done.stdout and "nuclei" not in done.stdout, "the others are looked at all the same"


def test_a_dice_that_moved_is_seen(changed):
    for name in set(NAMES) - {"phantom"}: shutil.rmtree(changed.root / "models" / name)
    sound = changed.call("models", "verify")
    assert sound.returncode == 0 and "measured here" in sound.stdout, "phantoms are drawn"
    path = changed.root / "models" / "phantom" / "card.json"
    card = json.loads(path.read_text())
    for s in card["scores"]: s["mean"] -= .01
    path.write_text(json.dumps(card))
    moved = changed.call("models", "verify")
    assert moved.returncode == 1 and moved.stdout.startswith("MOVED")


def test_a_folder_of_pictures_may_have_a_model_s_name(user, pictures):
    (user.root / "nuclei").mkdir()
    shutil.copy(pictures[0], user.root / "nuclei")
    assert user.call("predict", "nuclei", "nuclei", "--out", "masks").returncode == 0


@pytest.mark.long
def test_an_object_is_explained_without_the_data(user, pictures):
    done = user.call("explain", "nuclei", pictures[0], "--target", "class:1", "--method", "grad_cam_pp", "--out", "why")
    assert done.returncode == 0, done.stderr
    found = json.loads(next((user.root / "why").glob("*.json")).read_text())
    assert found["model"] == "nuclei" and len(found["instances"]) > 1


def test_models_are_built_in_a_checkout_alone(user):
    (user.root / "nbs" / "study.yaml").unlink()
    assert refused(user.call("models", "build", "phantom"), "models build", "no checkout here")


@pytest.mark.stress
def test_a_model_is_exported_where_its_data_are(user):
    done = user.call("export", "phantom", "--to", "onnx", "--out", "artefact")
    assert done.returncode == 0, done.stderr
    assert json.loads((user.root / "artefact" / "artefact.json").read_text())["run"] == read_model_card("phantom").run
