"The brush of the page: a person accepts, corrects and asks why, in Debian's Chromium and by the API."
# ruff: noqa: F811 (a fixture has the name of what is imported)
import base64
import io
import json
import statistics
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pikepdf
import pytest
from PIL import Image
from test_app import chromium, choose, desk, line, models, post, saved, served, shot, slices  # noqa: F401 (fixtures)

from medseg_nb.data.manifest import load_cases
from medseg_nb.deployment.correction import QUICK_METHODS
from medseg_nb.deployment.dicom import read_series
from medseg_nb.data.annotations import read_seg
from medseg_nb.images.files import Encoding, read_image, read_mask


@pytest.fixture
def skin(models):
    with served(models["phantom_skin"]) as found: yield found


@pytest.fixture
def lung(models):
    with served(models["phantom_lung"], 2 ** 26) as found: yield found


def lesion() -> Path: return load_cases("phantom_skin")[0].images[0]


def packed(planes: np.ndarray) -> str: return base64.b64encode(zlib.compress(planes.tobytes(), 1)).decode()


def labels(page, case: dict) -> np.ndarray:
    "The mask that stands, as planes"
    rows = case["shape"] if case["kind"] == "picture" else case["shape"][::-1]
    found = page.client.get(f"/api/cases/{case['id']}/labels").content
    return np.frombuffer(found, "<u2").reshape(case["slices"], *rows[-2:])


def correct(page, case: dict, planes: np.ndarray, **more):
    body = dict(kind="correct", mask=packed(planes.astype("<u2")), shape=planes.shape) | more
    return page.client.post(f"/api/cases/{case['id']}/review", json=body)


# By the API

def test_bad_corrections_are_one_line_and_change_nothing(skin):
    case = post(skin, (lesion().name, lesion().read_bytes())).json()
    before, planes = labels(skin, case), labels(skin, case)
    for sent, status, words in [(dict(mask="x"), 400, ["damaged or cut short"]), (dict(mask=None), 400, ["damaged"]),
                                (dict(shape=[1, 2, 3]), 400, ["has the size 1×2×3"]),
                                (dict(kind="paint"), 422, ["kind"]), (dict(extra=1), 422, ["extra"]),
                                (dict(mask=packed(planes + 40000)), 400, ["holds the label 40000"])]:
        line(correct(skin, case, planes, **sent), status, *words)
    assert (labels(skin, case) == before).all() and skin.client.get("/api/log").json() == []
    line(skin.client.post("/api/cases/none/review", json=dict(kind="accept")), 404, "not open")


def test_the_log_names_no_file_and_is_only_added_to(skin, models, tmp_path):
    with served(models["phantom_skin"]) as page:
        case = post(page, ("Jane_Doe_1950.png", lesion().read_bytes())).json()
        correct(page, case, labels(page, case) * 0)
        for kind in ("accept", "restore"): page.client.post(f"/api/cases/{case['id']}/review", json=dict(kind=kind))
        pdf = page.client.get(f"/api/cases/{case['id']}/report.pdf")
        rows = page.client.get("/api/log").json()
        assert [r["what"] for r in rows] == ["correct", "accept", "restore", "report"] and len({r["case"]
                                                                                                for r in rows}) == 1
        assert "Jane" not in json.dumps(rows) and all(r["who"] and r["time"] > 0 for r in rows)
        assert "Jane" not in pdf.headers["content-disposition"] and b"Jane" not in pdf.content
        text = b"".join(s.read_bytes() for s in pikepdf.open(io.BytesIO(pdf.content)).objects
                        if isinstance(s, pikepdf.Stream) and s.get("/Subtype") != "/Image")
        assert b"Jane" not in text


def test_a_large_corrected_volume_is_saved_within_a_second(models, tmp_path):
    import nibabel
    with served(models["phantom_lung"], 2 ** 28) as page:
        volume = np.zeros((240, 240, 24), np.int16)
        data = nibabel.Nifti1Image(volume, np.diag([1., 1, 1, 1])).to_bytes()
        case = post(page, ("v.nii", data)).json()
        planes = (np.indices((24, 240, 240)).sum(0) % 7 == 0).astype("<u2")
        begun = time.process_time()
        answer = correct(page, case, planes)
        seconds = time.process_time() - begun
        assert answer.status_code == 200 and (labels(page, case) == planes).all()
        print(f"a mask of {planes.size:,} voxels was saved in {seconds:.2f} s")
        assert seconds < 1


def test_an_explanation_is_quick_and_a_slow_one_can_be_cancelled(skin):
    case = post(skin, (lesion().name, lesion().read_bytes())).json()
    assert skin.client.get("/api/explanations").json()["quick"][0] == "grad_cam_coarse"
    y, x = (int(v) for v in np.argwhere(labels(skin, case)[0])[0])
    at, seconds = f"/api/cases/{case['id']}/explanation", []
    for what in ("pixel", "object"):
        begun = time.process_time()  # of the server, too, and not of what else runs on this machine
        found = skin.client.post(at, json=dict(x=x, y=y, what=what)).json()
        seconds.append(time.process_time() - begun)
        assert found["target"].startswith("pixel:" if what == "pixel" else "instance:"), found
        drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["picture"].split(",")[1]))))
        assert drawn.shape == (*case["shape"], 4) and drawn[..., 3].any()
    print(f"Grad-CAM of a pixel and of an object: {seconds[0]:.2f} s and {seconds[1]:.2f} s")
    assert max(seconds) < 1
    line(skin.client.post(at, json=dict(x=10 ** 6, y=0)), 400, "outside of the image")
    line(skin.client.post(at, json=dict(x=x, y=y, method="magic")), 400, "magic")
    background = np.argwhere(labels(skin, case)[0] == 0)[0]
    line(skin.client.post(at, json=dict(x=int(background[1]), y=int(background[0]), what="object")), 400,
         "in no object")
    answers = []
    def slow(): answers.append(skin.client.post(at, json=dict(x=x, y=y, method="quadtree")))
    asking = threading.Thread(target=slow)
    asking.start()
    end = time.monotonic() + 10
    while time.monotonic() < end and not skin.client.delete("/api/explanation").json()["cancelled"]: time.sleep(.005)
    asking.join(20)
    line(answers[0], 409, "was cancelled")
    assert skin.client.post(at, json=dict(x=x, y=y)).status_code == 200, "the next question is answered"


# In the browser

def stroke(tab, *places) -> None:
    "A stroke over parts of the canvas"
    box = tab.locator("#paint .layers").bounding_box()
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]
    tab.mouse.move(*points[0]); tab.mouse.down()
    for x, y in points[1:]: tab.mouse.move(x, y, steps=12)
    tab.mouse.up()


def press(tab, key: str, state: str = "shown") -> None:
    tab.keyboard.press(key)
    tab.wait_for_selector(f"body[data-state={state}]")


def begin(tab) -> None:
    press(tab, "c"); tab.wait_for_selector("body[data-mode=correct]")


def keep(tab) -> None:
    tab.keyboard.press("Control+s"); tab.wait_for_selector("body[data-review=corrected]:not([data-mode])")


def test_accept_correct_undo_save_export(skin, desk, tmp_path):
    tab = desk(skin)
    choose(tab, lesion())
    case, = skin.client.get("/api/cases").json()
    model = labels(skin, case)[0]
    press(tab, "a"); tab.wait_for_selector("body[data-review=accepted]")
    begin(tab)
    tab.keyboard.press("e"); stroke(tab, (.05, .1), (.95, .1)); tab.keyboard.press("b"); stroke(tab, (.5, .02),
                                                                                                (.5, .2))
    tab.wait_for_selector("body[data-strokes='2']"); shot(tab, "correct")
    tab.keyboard.press("z"); tab.wait_for_selector("body[data-strokes='1']")
    tab.keyboard.press("y"); tab.wait_for_selector("body[data-strokes='2']")
    tab.keyboard.press("z"); tab.wait_for_selector("body[data-strokes='1']")
    keep(tab); shot(tab, "corrected")
    kept = labels(skin, case)[0]
    row = round(.1 * model.shape[0])
    assert not kept[row - 1:row + 1, 6:-6].any() and (kept <= model).all() and (kept != model).any(), (
        "the eraser takes away, and the stroke that was undone is gone")
    back = read_mask(saved(tab, "png", tmp_path), Encoding(kind="labels"), read_image(lesion()))
    assert (back == kept).all(), "it is exported like the model's own"
    removed = int((kept < model).sum())
    assert f"0 pixels added, {removed} removed" in tab.inner_text("#verdict")
    assert f"{int((kept > 0).sum()):,}\u00a0px" in tab.inner_text("#sizes")
    with tab.expect_download() as found: tab.click("#report")
    found.value.save_as(tmp_path / "report.pdf")
    assert len(pikepdf.open(tmp_path / "report.pdf").pages) in (1, 2)
    tab.click("#restore"); tab.wait_for_selector("body[data-review='']")
    assert (labels(skin, case)[0] == model).all()
    rows = skin.client.get("/api/log").json()
    assert [r["what"] for r in rows] == ["accept", "correct", "report",
                                         "restore"] and rows[1]["facts"]["removed"] == removed
    assert rows[1]["facts"]["undone"] == 2


def test_slices_of_a_volume_are_corrected_and_come_back_as_seg(lung, desk, tmp_path):
    "Strokes on two slices; NIfTI and DICOM SEG hold equal voxels; the letters on the edges stay"
    place = slices(tmp_path / "ct")
    image, _ = read_series(place)
    tab = desk(lung)
    choose(tab, *sorted(place.iterdir()))
    case, = lung.client.get("/api/cases").json()
    model = labels(lung, case)
    begin(tab)
    assert [tab.inner_text(f"#{e}") for e in ("left", "right", "top", "bottom")] == ["R", "L", "A", "P"]
    tab.fill("#slice", "1"); stroke(tab, (.1, .2), (.9, .2))
    press(tab, "ArrowUp"); tab.keyboard.press("]"); stroke(tab, (.1, .7), (.9, .7)); shot(tab, "correct_series")
    keep(tab)
    kept = labels(lung, case)
    changed = np.flatnonzero((kept != model).any((1, 2)))
    assert changed.tolist() == [1, 2], "each stroke is on its own slice"
    row = int((kept != model)[1].any(1).argmax()), int((kept != model)[2].any(1).argmax())
    assert row[0] < 12 < row[1], "up is up"
    volume = kept.transpose(2, 1, 0)
    assert (read_image(saved(tab, "nii.gz", tmp_path)).array == volume).all()
    path = saved(tab, "dcm", tmp_path)
    assert (read_seg(path, image, dict(nodule=1))[0] == volume).all() and path.name.endswith("corrected_mask.dcm")
    import pydicom
    seg = pydicom.dcmread(path)
    assert {s.SegmentAlgorithmType for s in seg.SegmentSequence} == {"SEMIAUTOMATIC"}
    line(lung.client.post(f"/api/cases/{case['id']}/send"), 400, "archive", "--to")


def test_explain_on_click_and_by_keys(skin, desk):
    tab = desk(skin)
    choose(tab, lesion())
    tab.wait_for_selector(f"body[data-explains='{len(QUICK_METHODS)}']")
    case, = skin.client.get("/api/cases").json()
    y, x = np.argwhere(labels(skin, case)[0]).mean(0)
    tab.keyboard.press("x"); box = tab.locator("#layers").bounding_box()
    session = tab.context.new_cdp_session(tab)
    session.send("Performance.enable", dict(timeDomain="threadTicks"))
    def spent() -> float:
        "Processor seconds of the server and of the page"
        metrics = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}
        return time.process_time() + metrics["TaskDuration"]
    begun = spent()
    tab.mouse.click(box["x"] + box["width"] * (x + .5) / case["shape"][1],
                    box["y"] + box["height"] * (y + .5) / case["shape"][0])
    tab.wait_for_selector("body[data-why=shown]")
    seconds = spent() - begun
    shot(tab, "explained"); print(f"explained with {seconds:.2f} s of the processor")
    assert tab.is_visible("#explained") and "Red speaks for it" in tab.inner_text("#reason")
    tab.keyboard.press("Shift+ArrowLeft")
    with tab.expect_response("**/explanation"): tab.keyboard.press("Enter")
    tab.wait_for_selector("body[data-why=shown]")
    asked = [r["facts"]["target"] for r in skin.client.get("/api/log").json() if r["what"] == "explain"]
    place = [tuple(map(int, t.removeprefix("pixel:").split(","))) for t in asked]
    assert len(place) == 2 and place[1][0] < place[0][0] and place[1][1] == place[0][1] and abs(place[0][0] - x) <= 1
    assert seconds < 1.5, "the click, the answer, and the picture of it"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [820, 1280])
def test_at_the_size_of_a_tablet_nothing_is_cut_off(skin, desk, width, scheme):
    tab = desk(skin)
    tab.emulate_media(color_scheme=scheme); tab.set_viewport_size(dict(width=width, height=1100))
    choose(tab, lesion()); begin(tab); stroke(tab, (.2, .2), (.8, .3)); shot(tab, f"correct_{width}_{scheme}")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    small = tab.evaluate("[...document.querySelectorAll('button')]"
                         ".filter(b => b.offsetParent && b.offsetHeight < 32).map(b => b.id)")
    assert not small, "a finger finds every button"
    tab.once("dialog", lambda d: d.accept())
    tab.click("#discard"); tab.wait_for_selector("body:not([data-mode])"); shot(tab, f"page_{width}_{scheme}")


def test_a_stroke_on_a_large_picture_is_drawn_within_50_ms(skin, desk, tmp_path):
    "The slowest step of a stroke on 512×512 pixels, of the median of five strokes"
    path = tmp_path / "large.png"
    Image.open(lesion()).convert("RGB").resize((512, 512)).save(path)
    tab = desk(skin)
    choose(tab, path); begin(tab); tab.fill("#size", "40")
    times = []
    for k in range(5):
        stroke(tab, (.2, .1 + k / 10), (.8, .2 + k / 10))
        tab.wait_for_selector(f"body[data-strokes='{k + 1}']")
        times.append(float(tab.get_attribute("body", "data-stroke")))
    print("slowest step of each stroke, ms:", times)
    assert statistics.median(times) < 50
