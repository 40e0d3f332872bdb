"medseg transfer: a model on patients of another site, as it is and adapted without labels"
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml

from conftest import REPO, refused
from medseg_nb.data.manifest import ensure_dataset, load_cases, load_manifest
from medseg_nb.deployment import transfer
from medseg_nb.deployment.segmenter import load_segmenter
from medseg_nb.evaluation.metrics import score
from medseg_nb.kit.core import InputError
from medseg_nb.training.training import Config, run_training

METHODS = ["zero-shot", "batch statistics", "entropy", "histograms", "amplitudes"]


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    "Key of a network of the skin phantom, in a folder of runs of its own"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSEG_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield run_training(Config("phantom_skin", "unet", steps=120, size=48, width=4), weights=True).name


@pytest.fixture(scope="module")
def measured(key, tmp_path_factory):
    "What is measured of it elsewhere, and the folder of its tables"
    out = tmp_path_factory.mktemp("measured") / "out"
    return transfer.score_transfer(key, "phantom_skin_elsewhere", out), out


def test_zero_shot_is_what_predictions_score(key, measured):
    "The mean of the files that `medseg predict` would write, scored one by one"
    model, rows = load_segmenter(key), []
    for c in load_cases("phantom_skin_elsewhere"):
        truth = c.semantic_mask()
        dice = score(model.label_map(c.image(), c.id), truth, dict(lesion=[1]), None)[0]["dice"]
        rows.append(dict(case=c.id, patient=c.patient, dice=dice))
    table, scores = pd.DataFrame(rows), measured[0]
    mine = scores.rows[scores.rows.method == "zero-shot"].set_index("case").dice[table.case].to_numpy()
    assert np.allclose(mine, table.dice, atol=.01), "kept in half precision: single pixels may differ"
    assert table.dice.mean() > .3, "a network that finds nothing would agree with any other"
    summary = scores.summary.set_index("method").loc["zero-shot"]
    assert np.isclose(summary.dice, table.groupby("patient").dice.mean().mean(), atol=1e-3)
    assert summary.dice_low < summary.dice < summary.dice_high and summary.n == 40


def test_each_adaptation_is_compared_on_the_same_patients(measured):
    scores, out = measured
    table = scores.summary.set_index("method")
    assert [*table.index] == ["source domain", *METHODS] and [*table.n] == [10] + [40] * 5
    means = scores.rows.groupby(["method", "patient"]).dice.mean().unstack(0)
    for name in METHODS[1:]:
        assert np.isclose(table.difference[name], (means[name] - means["zero-shot"]).mean(), atol=1e-5), name
        assert table.difference_low[name] <= table.difference[name] <= table.difference_high[name]
        assert table.p[name] <= table.p_holm[name] <= 1
    assert (means[METHODS[1:]].sub(means["zero-shot"], axis=0).abs().max() > 1e-3).all(), "nothing was adapted"
    assert pd.read_csv(out / "transfer.csv").method.tolist() == [*table.index]
    assert len(pd.read_csv(out / "cases.csv")) == 5 * len(load_cases("phantom_skin_elsewhere"))


def test_nobody_is_adapted_to_and_tested(key, monkeypatch):
    t, pairs = transfer.prepare_transfer(key, "phantom_skin_elsewhere"), []
    patients = np.array([c.patient for c in load_cases(t.dataset)])
    def adapt(net, images):
        pairs.append({patients[i] for i in range(len(patients)) for x in images if np.array_equal(x, t.images[i])})
        return net
    def score_nothing(config, net, dataset, chosen):
        assert not pairs[-1] & set(patients[chosen]) and len(pairs[-1]) == 20
        return pd.DataFrame(dict(case=[load_cases(dataset)[i].id for i in chosen]))
    monkeypatch.setattr(transfer, "score_on_dataset", score_nothing)
    rows = transfer.score_network_adaptation(t, adapt)
    assert sorted(rows.case) == sorted(c.id for c in load_cases(t.dataset))


def test_a_shipped_model_stands_beside_its_card():
    table = transfer.score_transfer("phantom", "phantom_skin").summary.set_index("method")
    card = json.loads((REPO / "models" / "phantom" / "card.json").read_text())
    at_home = next(s for s in card["scores"] if (s["variant"], s["score"]) == ("shipped", "dice"))
    assert np.allclose(table.loc["source domain", ["dice", "dice_low", "dice_high"]].to_numpy(float),
                       [at_home[k] for k in ("mean", "low", "high")], atol=1e-4)
    assert np.isclose(table.dice["zero-shot"], at_home["mean"], atol=1e-3), "on its held-out patients it is the same"


def test_images_of_training_patients_under_other_names_are_left_out(key, monkeypatch):
    cases = load_cases("phantom_skin")
    train = [c for c in cases if c.id in transfer_train(cases)]
    twins = [(train[0].id, load_cases("phantom_skin_elsewhere")[0].id)]
    monkeypatch.setattr(transfer, "shared_images", lambda a, b: twins)
    t = transfer.prepare_transfer(key, "phantom_skin_elsewhere")
    first = load_cases("phantom_skin_elsewhere")[0].patient
    assert first not in {load_cases(t.dataset)[i].patient for i in t.positions}
    assert "1 of 40 patients" in t.notes[0] and "nearly the same images" in t.notes[0]


def transfer_train(cases) -> set[str]:
    "Cases that fold 0 trains on"
    split = json.loads((REPO / "data_manifests" / "phantom_skin" / "splits.json").read_text())["folds"][0]
    return {c.id for c in cases if c.patient in set(split["train"])}


def test_without_the_training_images_the_rest_is_measured(key, monkeypatch):
    known = transfer.locate_dataset
    monkeypatch.setattr(transfer, "locate_dataset", lambda id: None if id == "phantom_skin" else known(id))
    scores = transfer.score_transfer(key, "phantom_skin_elsewhere")
    assert [*scores.summary.method] == ["source domain", *METHODS[:3]]
    assert "it is not known whether" in scores.notes[0] and "histograms, amplitudes" in scores.notes[1]


# What is refused

@pytest.mark.parametrize("model, dataset, fault",
                         [("KEY", "phantom_lung", "their labels differ"), ("KEY", "outcome_thoracic", "without images"),
                          ("KEY", "phantom_nuclei", "phantom_nuclei: counts objects"),
                          ("nuclei", "phantom_skin", "nuclei: counts objects"), ("KEY", "nosuch", "unknown data set"),
                          ("KEY+KEY", "phantom_skin", "is an ensemble of 2"),
                          ("nosuch", "phantom_skin", "no such run")])
def test_refused(key, tmp_path, model, dataset, fault):
    with pytest.raises(InputError, match=fault) as caught:
        transfer.score_transfer(model.replace("KEY", key), dataset, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("change, fault",
                         [(dict(image=dict(columns=["image"], channels=["blue", "green", "red"])), "channels differ"),
                          (dict(regions=dict(all=[1])), "scored regions differ"),
                          (dict(task="instance"), "counts objects")])
def test_a_manifest_that_does_not_fit_is_refused(key, change, fault):
    "The same set, had its manifest said otherwise"
    facts = yaml.safe_load((REPO / "data_manifests" / "phantom_skin_elsewhere" / "dataset.yaml").read_text())
    target = type(load_manifest("phantom_skin")).model_validate(facts | change)
    with pytest.raises(InputError, match=fault):
        transfer.check_kinds(load_segmenter(key), Config("phantom_skin", "unet"), target)


def test_too_few_patients_volumes_and_empty_masks(key, monkeypatch):
    whole = load_cases("phantom_skin_elsewhere")
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "select_unseen", lambda *a: ([i for i, c in enumerate(whole) if c.patient
                                                               == whole[0].patient], []))
        with pytest.raises(InputError, match="holds 1 patients from whom .* has not learned, and an interval takes 2"):
            transfer.prepare_transfer(key, "phantom_skin_elsewhere")
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "load_prepared_set", lambda *a: (None, np.zeros((len(whole), 4, 4), np.uint8)))
        with pytest.raises(InputError, match="no mask of its 40 patients shows anything"):
            transfer.prepare_transfer(key, "phantom_skin_elsewhere")
    ensure_dataset("phantom_mri_volumes")
    with pytest.raises(InputError, match="holds volumes, and m takes pictures"):
        transfer.check_dimensions("m", Config("phantom_mri", "unet"), "phantom_mri_volumes")


# The command

def test_command(trained, tmp_path):
    shutil.copytree(REPO / "data_manifests" / "phantom_skin_elsewhere",
                    trained.root / "data_manifests" / "phantom_skin_elsewhere", dirs_exist_ok=True)
    words = ("transfer", trained.key[:6], "--data", "phantom_skin_elsewhere")
    done = trained.call(*words, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 12 and lines[-1] == "research use only" and "40 patients, 63 images" in lines[0]
    assert [line.split("  ")[0] for line in lines[2:8]] == ["source domain", *METHODS]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"transfer.csv", "cases.csv"}
    rows = json.loads(trained.call(*words, "--json").stdout)
    assert [r["method"] for r in rows] == ["source domain", *METHODS] and rows[0]["difference"] is None
    assert f"{rows[1]['dice']:.3f} (" in lines[3]


def test_command_refuses(trained, tmp_path):
    done = trained.call("transfer", trained.key, "--data", "phantom_skim", "--out", tmp_path / "out")
    assert refused(done, "phantom_skim", "unknown data set") and not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir(); (tmp_path / "mine" / "scan.png").touch()
    done = trained.call("transfer", trained.key, "--data", "phantom_skin", "--out", tmp_path / "mine")
    assert refused(done, "mine", "is not empty")
    assert trained.call("transfer", trained.key).returncode == 2
