"The statement of risk: what it says of a patient, and of whom it says nothing."
import base64
import contextlib
import functools
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from conftest import COMMAND, PLAIN, refused

from medseg_nb.cli import main, risk
from medseg_nb.data.manifest import load_cases
from medseg_nb.deployment import image_risk
from medseg_nb.deployment.risk import field_shap, fit_risk, patients_alike, read_patient, state_risk
from medseg_nb.kit.core import InputError

SET, OUTCOME = "phantom_mri", "simulated_complication"


@pytest.fixture(scope="module")
def model(): return fit_risk(SET, OUTCOME)


def patient(place, **changes):
    "A file with the fields of a training patient, some of them changed; None takes the column away"
    c = next(c for c in load_cases(SET) if all(c.fields[n] is not None for n in (
        "age", "sex", "comorbidity", "blood_group", "seizure", "performance")))
    row = {n: c.fields[n] for n in ("age", "sex", "comorbidity", "blood_group", "seizure", "performance")} | changes
    row = {n: v for n, v in row.items() if v is not None}
    path = place / "patient.csv"
    path.write_text(f"{','.join(row)}\n{','.join(map(str, row.values()))}\n")
    return path


@pytest.mark.parametrize("changes,words", [
    (dict(age=None), "age is missing; add the column"), (dict(age=""), "age is missing; fill it in"),
    (dict(age=119), "age 119 is outside of the training patients'"), (dict(age=-1),
                                                                      "column age: -1 is outside 0 to 120"),
    (dict(age="old"), "column age: 'old' is not a number"), (dict(seizure="maybe"), "'maybe' is neither yes nor no"),
    (dict(sex="unheard"), "sex 'unheard' is not among the training patients'"),
    (dict(simulated_success=1), "simulated_success is known only after surgery"),
    (dict(shoe_size=43), "shoe_size is no field of the model")])
def test_of_whom_nothing_is_said(model, tmp_path, changes, words):
    path = patient(tmp_path, **changes)
    with pytest.raises(InputError) as e: read_patient(path, SET, model.encoder)
    assert str(e.value).startswith(str(path)) and words in str(e.value) and "\n" not in str(e.value)


def test_one_patient_a_file(model, tmp_path):
    path = patient(tmp_path)
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    with pytest.raises(InputError, match="has 2 rows"): read_patient(path, SET, model.encoder)


def test_a_refusal_on_the_command_line_is_one_line(tmp_path):
    words = [COMMAND, "risk", str(patient(tmp_path, age=119)), "--data", SET, "--endpoint", OUTCOME]
    refused(subprocess.run(words, env=PLAIN, capture_output=True, text=True), "patient.csv", "age 119")
    with pytest.raises(InputError, match="--endpoint: "): fit_risk(SET)


def test_pushes_are_those_of_the_formula_and_add_up(model, tmp_path):
    case = read_patient(patient(tmp_path), SET, model.encoder)
    x, weight = model.encode(case).iloc[0], model.model.coef_[0]
    by_column = dict(zip(model.x.columns, weight * (x - model.x.mean())))
    pushed = field_shap(model, case)
    for f in model.encoder.fields:
        assert pushed[f.name] == pytest.approx(sum(by_column.get(c, 0) for c in f.columns), abs=1e-9)
    risk = state_risk(model, case)["risk"]
    logit = model.model.intercept_[0] + weight @ model.x.mean() + pushed.sum()
    assert logit == pytest.approx(np.log(risk / (1 - risk)))


def test_the_patient_itself_is_most_like_it(model):
    for case in model.cases[:3]:
        found = patients_alike(model, case)
        assert found.distance[0] == 0 and found.distance.is_monotonic_increasing
        assert found.event[0] == model.event[case.patient]


def test_the_statement_is_the_same_twice_and_hides_no_limit(tmp_path, capsys, monkeypatch):
    path, said = patient(tmp_path), []
    for as_json in (False, False, True):
        risk(path, data=SET, endpoint=OUTCOME, as_json=as_json)
        said.append(capsys.readouterr().out)
        if len(said) == 1:  # the second fit is also that of the third statement
            monkeypatch.setattr(image_risk, "state_patient", functools.cache(image_risk.state_patient))
    assert said[0] == said[1] and "must not decide" in said[0] and "95 % interval" in said[0]
    statement = json.loads(said[2])
    assert statement["low"] < statement["risk"] < statement["high"] and len(statement["alike"]) == 5
    assert f"Risk {100 * statement['risk']:.1f} %" in said[0] and statement["use"] == "Research use only"


PICTURES = "phantom_skin"
fit_once = functools.cache(fit_risk)


@pytest.fixture
def pictured(tmp_path, monkeypatch):
    "A file with the fields of a training patient whose picture and mask lie beside it; the fields are fitted once"
    monkeypatch.setattr(image_risk, "fit_risk", fit_once)
    names = [f.name for f in fit_once(PICTURES, OUTCOME).encoder.fields]
    c = next(c for c in load_cases(PICTURES) if all(c.fields[n] is not None for n in names))
    path, image, mask = (tmp_path / n for n in ("patient.csv", "photograph.png", "mask.png"))
    path.write_text(f"{','.join(names)}\n{','.join(str(c.fields[n]) for n in names)}\n")
    Image.fromarray(c.image().array.astype(np.uint8)).save(image)
    Image.fromarray((c.mask() > 0).astype(np.uint8)).save(mask)
    return path, image, mask


def test_an_image_is_a_source_beside_the_fields(pictured, tmp_path, capsys):
    path, image, mask = pictured
    page = tmp_path / "risk.html"
    risk(path, image, mask, PICTURES, OUTCOME, page, True)
    statement = json.loads(capsys.readouterr().out)
    assert "image" in statement["pushed"] and statement["low"] < statement["risk"] < statement["high"]
    assert statement["alike"][0]["distance"] < .5, "the patient itself, by one of its pictures"
    assert {"auc", "fields_auc", "difference_low"} <= set(statement["judged"])
    assert np.isclose(np.sum(statement["map"]), statement["pushed"]["image"], atol=1e-6), "cells add up to the image"
    html = page.read_text()
    assert f"risk {100 * statement['risk']:.1f} %" in html and "Fields alone: AUC" in html
    shown = Image.open(io.BytesIO(base64.b64decode(re.search("base64,([^\"]+)", html)[1])))
    assert shown.size == Image.open(image).size, "the page shows where the image pushed the risk"
    assert "Research use only" in html and not re.search("https?:|<script", html), "nothing is asked from outside"


def call(*words) -> subprocess.CompletedProcess:
    "The command within this process, where the fit is known"
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)):
        patch.setattr(sys, "argv", ["medseg", *map(str, words)])
        try: main()
        except SystemExit as e: code = e.code or 0
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def test_images_that_say_nothing_are_refused_in_one_line(pictured, tmp_path):
    path, image, mask = pictured
    gray, empty, large = (tmp_path / f"{n}.png" for n in ("gray", "empty", "large"))
    Image.open(image).convert("L").save(gray)
    Image.fromarray(np.zeros(np.asarray(Image.open(mask)).shape, np.uint8)).save(empty)
    Image.fromarray(np.ones(np.asarray(Image.open(mask)).shape, np.uint8)).save(large)
    for words, fault in (([image], "has no mask"), ([gray, "--mask", mask], "has 1 channels"),
                         ([image, "--mask", empty], "is empty"),
                         ([image, "--mask", large], "those of training cover"),
                         (["--mask", mask], "is the mask of no image")):
        refused(call("risk", path, *words, "--data", PICTURES, "--endpoint", OUTCOME), ".png", fault)
