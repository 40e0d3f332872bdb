"One graph from raw pixels to the label map: the same answer in Python without the kit, and in a browser."
import contextlib
import functools
import http.server
import re
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

from conftest import PLAIN, REPO, needs, refused

from medseg_nb.data.videos import simulate_video
from medseg_nb.deployment.export import resize_linear
from medseg_nb.deployment.whole_export import run_whole, whole_graph
from medseg_nb.deployment.segmenter import load_segmenter
from medseg_nb.images.files import Image
from medseg_nb.kit.core import folder, sha256

SHAPES = ((1, 64, 64), (3, 50, 37), (2, 72, 129), (1, 256, 256), (2, 97, 40))  # case, row, column
ORT_WEB, ORT_WEB_SHA256 = "1.30.0", "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    "The graph of the shipped phantom model, as a file"
    (data,), rows = whole_graph("phantom")
    assert len(rows) == 5 and all(r["equal"] == 1 for r in rows)
    place = tmp_path_factory.mktemp("graph") / "lesions.onnx"
    place.write_bytes(data)
    return place


@pytest.fixture(scope="module")
def kit(): return load_segmenter("phantom")


def picture(seed: int, rows: int, columns: int) -> np.ndarray:
    return simulate_video("endoscopy", 1, max(rows, columns), seed).frames[0][:rows, :columns]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_graph_says_what_predict_says(graph, kit, shape):
    "Labels at each pixel, and probabilities to a ten-thousandth, for batches of any size"
    n, *size = shape
    images = np.stack([picture(k, *size) for k in range(n)])
    labels, shares = run_whole([graph.read_bytes()])(images)
    assert labels.dtype == np.uint8 and labels.shape == shape and shares.shape == (n, 2, *size)
    for image, label_map, share in zip(images, labels, shares):
        pixels = Image(image, None, channels=3)
        assert (label_map == kit.label_map(pixels, "x")).all()
        expected = resize_linear(kit.probabilities(kit.prepare_input(pixels, "x"))[0], size)
        assert np.abs(share - expected).max() < 1e-4
    assert labels.any()


@pytest.mark.stress
@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_volumes_are_one_graph_too(engine):
    parts, rows = whole_graph("hippocampus", engine)
    assert len(rows) == 5 and all(r["equal"] == 1 and r["difference"] < 1e-4 for r in rows)
    volume = np.random.default_rng(0).random((1, 30, 44, 37, 1)).astype(np.float32)
    labels, shares = run_whole(parts, engine)(volume)
    assert (labels[0] == load_segmenter("hippocampus").label_map(Image(volume[0, ..., 0], None), "x")).all()


def example() -> str:
    text = (REPO / "docs" / "deployment.md").read_text(encoding="utf-8")
    return re.search(r"## Without this kit\n.*?```python\n(.*?)```", text, re.S)[1]


def test_example_of_the_page_needs_no_kit(graph, kit, tmp_path):
    shutil.copy(graph, tmp_path)
    np.save(tmp_path / "picture.npy", picture(3, 80, 100))
    assert len(example().strip().splitlines()) <= 10 and "medseg_nb" not in example()
    code = f"import sys\nfor name in ('medseg_nb', 'torch', 'PIL', 'scipy'): sys.modules[name] = None\n{example()}"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=PLAIN, capture_output=True, text=True)
    assert done.returncode == 0 and "research use only" in done.stdout, done.stderr
    expected = kit.label_map(Image(picture(3, 80, 100), None, channels=3), "x")
    assert (np.load(tmp_path / "labels.npy") == expected).all()


@pytest.mark.parametrize("feed", [np.zeros((1, 20, 20, 1), np.float32), np.zeros((1, 20, 20, 3)),
                                  np.zeros((20, 20, 3), np.float32)], ids=["channels", "dtype", "axes"])
def test_wrong_input_is_refused_by_the_runtime(graph, feed):
    import onnxruntime
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match="(?i)invalid|unexpected|got"): session.run(None, {"image": feed})
    labels, _ = session.run(None, {"image": np.zeros((1, 20, 20, 3), np.float32)})
    assert labels.shape == (1, 20, 20)  # it goes on


def test_pixels_that_are_no_numbers_are_visible(graph):
    "The probabilities are no numbers then, so that a program can tell"
    image = picture(1, 30, 30)[None].astype(np.float32)
    image[0, 4, 4] = np.nan
    assert np.isnan(run_whole([graph.read_bytes()])(image)[1]).all()


@pytest.mark.parametrize("words, subject, fault", [
    (["phantom", "--whole", "--out", "a.onnx", "--int8"], "--whole", "is written in full precision"),
    (["phantom", "--whole", "--out", "a.onnx", "--to", "openvino"], "a.onnx", "is no name of a graph"),
    (["phantom", "--whole", "--out", "a.onnx", "--to", "tensorrt"], "tensorrt", "unknown engine of a whole graph"),
    (["phantom", "--whole", "--out", "lesions"], "lesions", "is no name of a graph"),
    (["nothing", "--whole", "--out", "a.onnx"], "nothing", "no such run")])
def test_call_that_is_refused(fresh, words, subject, fault):
    fresh.env["MEDSEG_MODELS"] = str(REPO / "models")
    assert refused(fresh.call("export", *words), subject, fault) and not (fresh.root / "a.onnx").exists()


# In the browser

def bring_runtime():
    "The npm package of ONNX Runtime for browsers, at one version and with one hash; kept in the cache"
    place = folder("cache") / f"onnxruntime-web-{ORT_WEB}"
    if not place.is_dir():
        npm, new = needs("npm"), place.with_name(f".{place.name}")
        new.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([npm, "pack", "--silent", f"onnxruntime-web@{ORT_WEB}"], cwd=new, capture_output=True,
                              text=True)
        package = next(new.glob("*.tgz"), None)
        assert package, f"npm did not bring ONNX Runtime: {done.stderr[-200:]}"
        assert sha256(package) == ORT_WEB_SHA256
        shutil.unpack_archive(package, new)
        (new / "package" / "dist").rename(place)
        shutil.rmtree(new)
    return place


PAGE = """<!doctype html><meta charset="utf-8"><title>graph</title><body><script type="module">
import * as ort from "./ort.wasm.min.mjs";
ort.env.wasm.numThreads = 1;
const bytes = new Uint8Array(await (await fetch("picture.bin")).arrayBuffer());
const session = await ort.InferenceSession.create("lesions.onnx", {executionProviders: ["wasm"]});
const image = new ort.Tensor("float32", Float32Array.from(bytes), [1, 80, 100, 3]);
const {labels, probabilities} = await session.run({image});
window.labels = Array.from(labels.data);
window.probabilities = Array.from(probabilities.data);
document.body.dataset.state = "done";
</script>"""


@contextlib.contextmanager
def served(place):
    "The address of a folder, on this machine alone"
    class Quiet(http.server.SimpleHTTPRequestHandler):
        extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript"}
        def log_message(self, *_): pass
    handler = functools.partial(Quiet, directory=place)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_browser_says_what_python_says(graph, kit, tmp_path):
    pytest.importorskip("playwright", reason="playwright is not installed")
    from playwright.sync_api import sync_playwright
    place, runtime, image = needs("chromium"), bring_runtime(), picture(3, 80, 100)
    for name in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.wasm", "ort-wasm-simd-threaded.mjs"):
        shutil.copy(runtime / name, tmp_path)
    shutil.copy(graph, tmp_path)
    (tmp_path / "picture.bin").write_bytes(image.tobytes())
    (tmp_path / "index.html").write_text(PAGE)
    with served(tmp_path) as address, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=place, args=["--no-sandbox", "--disable-gpu", "--disable-sync"])
        tab, addresses, faults = browser.new_page(), [], []
        tab.on("request", lambda r: addresses.append(r.url))
        tab.on("pageerror", lambda e: faults.append(str(e)))
        tab.goto(address)
        tab.wait_for_selector("body[data-state=done]", state="attached", timeout=60_000)
        labels, shares = tab.evaluate("window.labels"), tab.evaluate("window.probabilities")
        browser.close()
    assert faults == [] and all(a.startswith((address, "blob:")) for a in addresses)
    ours, probabilities = run_whole([graph.read_bytes()])(image[None])
    assert (np.array(labels).reshape(80, 100) == ours[0]).all()
    assert (ours[0] == kit.label_map(Image(image, None, channels=3), "x")).all()
    assert np.abs(np.array(shares).reshape(probabilities[0].shape) - probabilities[0]).max() < 1e-4
