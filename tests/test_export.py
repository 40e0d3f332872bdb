"Artefacts on the command line: what they answer, and what is refused with one line and leaves nothing behind."
import hashlib
import json
import shutil
import subprocess
import sys

import nibabel
import numpy as np
import onnx
import pytest
from PIL import Image

from conftest import PLAIN, refused

from medseg_nb.deployment.speed import (WHOLE_NETWORK, Variant, build_variants, compare_variants, score_variants,
                                        variant_networks)
from medseg_nb.study.realtime import bound_speed_ratios, measure_speed_ratios, summarize_variants
from medseg_nb.kit.execution import set_environment
from medseg_nb.training.training import Config


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory):
    "A project whose run was exported; `place` is the artefact"
    trained.place = tmp_path_factory.mktemp("export") / "lesions"
    done = trained.call("export", trained.key, "--to", "onnx", "--out", trained.place)
    assert done.returncode == 0 and "research use only" in done.stdout and done.stdout.count("parity at") == 3, (
        done.stderr)
    return trained


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)).save(tmp_path / "one.png")
    return tmp_path / "one.png"


def test_artefact_says_what_it_is(exported):
    told = json.loads((exported.place / "artefact.json").read_text())
    assert (told["run"] == exported.key and told["labels"]
            and told["normalise"] == "zscore" and len(told["parity"]) == 3 and told["use"] == "research use only")
    assert told["files"] == {"model.onnx": hashlib.sha256((exported.place / "model.onnx").read_bytes()).hexdigest()}


def test_artefact_answers_as_its_run_and_needs_no_torch(exported, picture):
    for model, out in ((exported.key, "run"), (exported.place, "artefact")):
        assert exported.call("predict", model, picture, "--out", picture.parent / out).returncode == 0
    ours, theirs = (np.asarray(Image.open(picture.parent / n / "one.png")) for n in ("artefact", "run"))
    assert ours.shape == (30, 40) and (ours == theirs).mean() > .999
    # an import of torch would fail
    code = "import sys; sys.modules['torch'] = None; from medseg_nb.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "predict", exported.place, picture, "--out", picture.parent / "alone"],
        env=PLAIN, capture_output=True, text=True)
    assert done.returncode == 0 and (np.asarray(Image.open(picture.parent / "alone" / "one.png")) == ours).all(), (
        done.stderr)


def rehash(place) -> None:
    told = json.loads((place / "artefact.json").read_text())
    told["files"] = {n: hashlib.sha256((place / n).read_bytes()).hexdigest() for n in told["files"]}
    (place / "artefact.json").write_text(json.dumps(told))


def external(place) -> None:
    "Weights that the file says lie elsewhere"
    model = onnx.load(place / "model.onnx")
    tensor = next(t for t in model.graph.initializer if t.raw_data)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd"); tensor.ClearField("raw_data")
    (place / "model.onnx").write_bytes(model.SerializeToString()); rehash(place)


def doubles(place) -> None:
    model = onnx.load(place / "model.onnx")
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    (place / "model.onnx").write_bytes(model.SerializeToString()); rehash(place)


def pickled(place) -> None: (place / "model.onnx").write_bytes(b"\x80\x04}\x94."); rehash(place)
def tell(place, **facts) -> None:
    (place / "artefact.json").write_text(json.dumps(json.loads((place / "artefact.json").read_text()) | facts))


SPOILT = {
    "changed file": (
        lambda p: (p / "model.onnx").write_bytes((p / "model.onnx").read_bytes()[:-1] + b"x"), "model.onnx",
        "hash differs"), "external data": (external, "model.onnx", "external data"),
    "pickle": (pickled, "model.onnx", "is no ONNX file"), "dtype": (doubles, "model.onnx", ""),
    "lost file": (lambda p: (p / "model.onnx").unlink(), "model.onnx", "is missing"),
    "lost card": (lambda p: (p / "artefact.json").unlink(), "lesions", "is no artefact"),
    "path that leaves": (lambda p: tell(p, files={"../../model.onnx": "0" * 64}), "artefact.json", "names other files"),
    "card without labels": (lambda p: tell(p, labels=None), "artefact.json", "labels"),
    "card of another width": (lambda p: tell(p, channels=["grey"]), "model.onnx", "1 channels"),
    "card is no JSON": (lambda p: (p / "artefact.json").write_text("{"), "artefact.json", "is damaged"),}


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_artefact(exported, picture, tmp_path, name):
    spoil, subject, fault = SPOILT[name]
    place = shutil.copytree(exported.place, tmp_path / "lesions")
    spoil(place)
    for command in (["predict", place, picture, "--out", tmp_path / "masks"], ["bench", place]):
        assert refused(exported.call(*command), subject, fault)
    assert not (tmp_path / "masks").exists()


def test_image_that_the_model_was_not_made_for(exported, tmp_path):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "grey.png")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4)), tmp_path / "volume.nii.gz")
    assert refused(exported.call("predict", exported.place, tmp_path / "grey.png", "--out", tmp_path / "m"),
                   "grey.png", "1 channels, the model takes 3")
    assert refused(exported.call("predict", exported.place, tmp_path / "volume.nii.gz", "--out", tmp_path / "m"),
                   "volume.nii.gz", "3")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("words, subject, fault, code", [
    (["nope"], "nope", "no such run", 2), (["KEY", "--to", "tflite"], "tflite", "unknown target", 2),
    (["KEY", "--prune", "1"], "--prune", "is 1", 2),
    (["KEY", "--prune", "-1"], "--prune", "is -1", 2), (["KEY", "--out", "FULL"], "full", "is not empty", 2)],
                         ids=["key", "target", "share", "negative share", "folder"])
def test_export_refuses(exported, tmp_path, words, subject, fault, code):
    (tmp_path / "full").mkdir(); (tmp_path / "full" / "a").write_text("")
    words = [{"KEY": exported.key, "FULL": str(tmp_path / "full")}.get(w, w) for w in words]
    if "--out" not in words: words += ["--out", str(tmp_path / "new")]
    assert refused(exported.call("export", *words), subject, fault, code)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full"]


def test_tensorrt_is_not_run_where_it_cannot_be(exported, tmp_path):
    from medseg_nb.deployment.export import probe_tensorrt
    done = exported.call("export", exported.key, "--to", "tensorrt", "--out", tmp_path / "new")
    assert probe_tensorrt()["ok"] or refused(done, "tensorrt", "not run: ", 4) and not (tmp_path / "new").exists()


def test_pickled_weights_of_a_run_are_refused(exported, picture, tmp_path):
    import torch
    project = exported.copy(tmp_path / "project")
    torch.save(dict(a=torch.zeros(2)), project.runs / exported.key / "weights.safetensors")
    for words in (["predict", exported.key, picture, "--out", tmp_path / "m"],
                  ["export", exported.key, "--out", tmp_path / "m"], ["bench", exported.key]):
        done = project.call(*words)
        assert (done.returncode == 2 and "damaged" in done.stderr.splitlines()[-1]
                and "Traceback" not in done.stderr and not (tmp_path / "m").exists())


@pytest.mark.long
def test_variants_of_a_run(tmp_path):
    "An engine in full precision gives torch's labels; a pruned network in eight bits is smaller"
    with set_environment(MEDSEG_RUNS=str(tmp_path / "runs")):
        base = Config("phantom_skin", "unet", steps=30, size=32, width=8)
        made = list(build_variants(variant_networks(base), tmp_path, [WHOLE_NETWORK, Variant("whole", "onnx"),
                                                                      Variant("pruned", "openvino", "int8")]))
        rows = score_variants(base, made)
        peaks = dict(fp32=1e9, int8=4e9, bytes=1e12)  # of a processor that only arithmetic holds back
        bounds = bound_speed_ratios(made, measure_speed_ratios(made), peaks).set_index("variant")
    whole, pruned = bounds.loc["whole, torch fp32"], bounds.loc["pruned, openvino int8"]
    assert 3 < whole.operations / pruned.operations < 5, "half of the channels: about a quarter of the products"
    assert abs(whole.least - 1000 * whole.operations) < 1e-6 > abs(pruned.least - 250 * pruned.operations)
    assert abs(pruned.ratio_bound - whole.cpu / pruned.least) < 1e-9
    table, differences = summarize_variants(rows), compare_variants(rows)
    by = table.set_index(["network", "engine"])
    assert (by.equal["whole", "torch"] == 1 and by.equal["whole", "onnx"] > .9999
            and by.megabytes["pruned", "openvino"] < by.megabytes["whole", "torch"])
    assert len(differences) == 2 and differences.difference.abs().min() < 1e-3


@pytest.mark.long
def test_bench_of_an_artefact(exported):
    done = exported.call("bench", exported.place, "--within", "9000ms,90MB,1")
    assert (done.returncode == 0 and "whole, onnx fp32" in done.stdout
            and done.stdout.splitlines()[-1] in ("whole, onnx fp32", "whole, torch fp32")), done.stderr
    assert refused(exported.call("bench", exported.place, "--within", "soon"), "--within", "is no set of limits")
