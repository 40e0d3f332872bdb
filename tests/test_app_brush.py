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

import httpx
import numpy as np
import pikepdf
import pytest
from PIL import Image
from scipy import ndimage
from test_app import chromium, choose, desk, line, models, post, saved, served, shot, slices  # noqa: F401 (fixtures)

from medseg_nb.data.manifest import load_cases
from medseg_nb.deployment.correction import QUICK_METHODS
from medseg_nb.deployment.dicom import read_series
from medseg_nb.data.annotations import read_seg
from medseg_nb.images.files import Encoding, read_image, read_mask
from medseg_nb.methods import watched


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
    for what in ("pixel", "instance"):
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
    line(skin.client.post(at, json=dict(x=int(background[1]), y=int(background[0]), what="instance")), 400,
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


def asked(page, case: dict, **facts):
    "Lines of an explanation that is watched, as they come"
    with page.client.stream("POST", f"/api/cases/{case['id']}/explanation/steps", json=facts) as answer:
        assert answer.status_code == 200, answer.read()
        yield from map(json.loads, answer.iter_lines())


@pytest.fixture
def slow_networks():
    "Each pass of a network that is watched takes a while; gives how many there were"
    passes, see = [], watched.Watch.see
    def see_slowly(self, images, logits):
        time.sleep(.05); passes.append(len(images)); see(self, images, logits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watched.Watch, "see", see_slowly)
        yield passes


def picture_of(step: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(step["picture"].split(",")[1]))))


def is_still(passes: list) -> bool:
    "Whether nothing passes through the network any more"
    before = len(passes); time.sleep(.2)
    return len(passes) == before


@pytest.mark.parametrize("method", ["quadtree", "rise", "kernel_shap", "occlusion"])
def test_a_slow_explanation_tells_how_far_it_is(skin, slow_networks, method):
    case = post(skin, (lesion().name, lesion().read_bytes())).json()
    y, x = (int(v) for v in np.argwhere(labels(skin, case)[0])[0])
    *steps, last = asked(skin, case, x=x, y=y, what="region", method=method)
    shares, pictures = [s["step"]["done"] for s in steps], [s["step"] for s in steps if s["step"]["picture"]]
    assert shares == sorted(shares) and shares[0] < .1 and all(s < 1 for s in shares)
    assert picture_of(pictures[0]).shape == (*case["shape"], 4) and picture_of(pictures[-1])[..., 3].any()
    assert last["found"]["target"] == f"region@{x},{y}" and last["found"]["score_is"] == "mean log-odds"
    assert [r["facts"]["method"] for r in skin.client.get("/api/log").json()] == [last["found"]["method"]]


def test_a_cancelled_explanation_stops_within_a_second_and_blocks_nobody(skin, slow_networks):
    case = post(skin, (lesion().name, lesion().read_bytes())).json()
    facts = dict(x=3, y=3, method="quadtree", session="a")
    lines = asked(skin, case, **facts)
    assert "step" in next(lines)
    with httpx.Client(base_url=skin.base, headers=dict(skin.client.headers), trust_env=False, timeout=60) as other:
        assert other.post(f"/api/cases/{case['id']}/explanation", json=dict(x=3, y=3, session="b")).status_code == 200
        assert other.get(f"/api/cases/{case['id']}/image/0.png").status_code == 200 and not is_still(slow_networks)
        assert other.delete("/api/explanation?session=c").json() == dict(cancelled=0)
        begun = time.monotonic()
        assert other.delete("/api/explanation?session=a").json() == dict(cancelled=1)
        *_, last = lines
    assert time.monotonic() - begun < 1 and last == dict(error="explanation: was cancelled; ask again")
    assert is_still(slow_networks)


def test_a_second_question_of_a_session_replaces_the_first(skin, slow_networks):
    case = post(skin, (lesion().name, lesion().read_bytes())).json()
    first = asked(skin, case, x=3, y=3, method="rise", session="a")
    next(first)
    with httpx.Client(base_url=skin.base, headers=dict(skin.client.headers), trust_env=False, timeout=60) as other:
        found = other.post(f"/api/cases/{case['id']}/explanation", json=dict(x=5, y=4, session="a")).json()
    assert found["target"] == "pixel:5,4" and [*first][-1] == dict(error="explanation: was cancelled; ask again")


def test_who_reads_no_more_ends_the_work(skin, slow_networks):
    case = post(skin, (lesion().name, lesion().read_bytes())).json()
    lines = asked(skin, case, x=3, y=3, method="quadtree")
    next(lines); lines.close()
    end = time.monotonic() + 1
    while time.monotonic() < end and not is_still(slow_networks): pass
    assert is_still(slow_networks) and sum(slow_networks) < 400 and skin.client.get("/api/log").json() == []


def test_each_target_is_answered_or_refused_in_one_line(skin):
    case = post(skin, (lesion().name, lesion().read_bytes())).json()
    offered = [t["name"] for t in skin.client.get("/api/explanations").json()["targets"]]
    mask, at = labels(skin, case)[0], f"/api/cases/{case['id']}/explanation"
    y, x = (int(v) for v in np.argwhere(ndimage.binary_erosion(mask, iterations=2))[0])
    for what in offered:
        answer = skin.client.post(at, json=dict(x=x, y=y, what=what))
        assert answer.status_code == 200, (what, answer.text)
        assert answer.json()["target"].split("@")[0] == dict(pixel=f"pixel:{x},{y}", instance="instance:1",
                                                             **{"class": "class:1"}).get(what, what), answer.text
    assert {"region", "boundary", "contrast", "uncertainty", "uncertainty:region"} < set(offered)
    against = skin.client.post(at, json=dict(x=x, y=y, what="contrast", against=0)).json()
    assert against["label"] == "lesion and not background" and against["target"] == f"contrast:0@{x},{y}"
    by, bx = (int(v) for v in np.argwhere(mask == 0)[0])
    for facts, status, words in [(dict(x=10 ** 5), 400, "lies outside of the image"),
                                 (dict(what="contrast", against=1), 400, "against itself"),
                                 (dict(what="contrast", against=9), 400, "the network does not know"),
                                 (dict(what="region", against=0), 400, "ask for a contrast"),
                                 (dict(what="uncertainty", method="counterfactual"), 400, "does not explain an unc"),
                                 (dict(what="mood"), 422, "what"), (dict(method="magic"), 400, "unknown explanation"),
                                 *[(dict(x=bx, y=by, what=w), 400, "lies on the background")
                                   for w in ("region", "boundary", "uncertainty:region")],
                                 (dict(x=bx, y=by, what="instance"), 400, "lies in no object")]:
        for route in (at, f"{at}/steps"): line(skin.client.post(route, json=dict(x=x, y=y) | facts), status, words)


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
    with tab.expect_response("**/explanation/steps"): tab.keyboard.press("Enter")
    tab.wait_for_selector("body[data-why=shown]")
    asked = [r["facts"]["target"] for r in skin.client.get("/api/log").json() if r["what"] == "explain"]
    place = [tuple(map(int, t.removeprefix("pixel:").split(","))) for t in asked]
    assert len(place) == 2 and place[1][0] < place[0][0] and place[1][1] == place[0][1] and abs(place[0][0] - x) <= 1
    assert seconds < 1.5, "the click, the answer, and the picture of it"


def test_a_slow_explanation_is_watched_and_ended_by_keys(skin, desk, slow_networks):
    "The share that is done grows, a provisional map is there, Escape ends it, and a contrast is asked for"
    tab = desk(skin)
    choose(tab, lesion())
    tab.wait_for_selector(f"body[data-explains='{len(QUICK_METHODS)}']")
    assert tab.is_hidden("#against") and "class of one pixel" in tab.inner_text("#meaning")
    tab.select_option("#method", "quadtree"); tab.keyboard.press("x")
    tab.keyboard.press("Shift+ArrowLeft"); tab.keyboard.press("Enter")
    tab.wait_for_selector("body[data-why=provisional]")
    first, end = float(tab.get_attribute("#done", "value")), time.monotonic() + 20
    while time.monotonic() < end and float(tab.get_attribute("#done", "value") or 0) <= first + .05: time.sleep(.05)
    assert first + .05 < float(tab.get_attribute("#done", "value")) < 1; shot(tab, "provisional")
    assert tab.is_visible("#explained") and "%, provisional map" in tab.inner_text("#so-far").replace(" %", "%")
    tab.focus("#method"); begun = time.monotonic(); tab.keyboard.press("Escape")
    tab.wait_for_selector("body[data-why=none]")
    assert time.monotonic() - begun < 2 and is_still(slow_networks), "a second on the server, and the page's own time"
    assert tab.is_hidden("#progress") and tab.is_hidden("#explained") and "was cancelled" in tab.inner_text("#reason")
    tab.select_option("#method", "grad_cam"); tab.select_option("#what", "contrast")
    assert tab.is_visible("#against")
    tab.select_option("#against", "1"); tab.focus("#layers"); tab.keyboard.press("Enter")
    tab.wait_for_selector("#reason:has-text('not'):has-text('mean log-odds'), #reason:has-text('against itself')")
    tab.select_option("#what", "uncertainty"); tab.focus("#layers"); tab.keyboard.press("Enter")
    tab.wait_for_selector("#reason:has-text('mean entropy')")
    shot(tab, "uncertainty")


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
