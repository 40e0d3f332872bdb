"The page: its API over a real server, and Debian's Chromium before it."
import contextlib
import io
import os
import socket
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pydicom
import pytest
from conftest import dicom, needs, png, refused
from PIL import Image
from pydicom.uid import CTImageStorage, JPEGLosslessSV1

from medseg_nb.deployment import app
from medseg_nb.data.annotations import read_seg
from medseg_nb.data.manifest import load_cases
from medseg_nb.deployment.dicom import read_series
from medseg_nb.images.files import Encoding, read_image, read_mask
from medseg_nb.deployment.segmenter import load_segmenter
from medseg_nb.kit.execution import set_environment
from medseg_nb.training.training import Config, run_training
from medseg_nb.deployment.web import Guard, listen, create_server

pytestmark = pytest.mark.long

SKIN = Config("phantom_skin", "unet", steps=20, size=32, width=4)
LUNG = Config("phantom_lung", "unet", steps=60, size=32, width=4)
MRI = Config("phantom_mri_volumes", "unet", steps=20, size=16, depth=8, width=4, augment="none")
GL = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    "Segmenters of three small runs, by data set"
    with set_environment(MEDSEG_RUNS=str(tmp_path_factory.mktemp("runs"))):
        yield {c.dataset: load_segmenter(run_training(c, weights=True).name) for c in (SKIN, LUNG, MRI)}


@contextlib.contextmanager
def served(model, limit=10 ** 7):
    "The page on a real server: its guard, its address, and who knows the token"
    with listen() as found:
        said = []
        guard = Guard(app.create_app(model), found.getsockname()[:2], limit, said.append)
        running = create_server(guard)
        thread = threading.Thread(target=running.run, kwargs=dict(sockets=[found]))
        thread.start()
        base = f"http://127.0.0.1:{guard.address[1]}"
        with httpx.Client(base_url=base, headers=dict(authorization=f"Bearer {guard.token}"),
                          trust_env=False, timeout=60) as client:
            try: yield SimpleNamespace(guard=guard, base=base, client=client, said=said)
            finally: running.should_exit = True; thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def skin(models):
    with served(models["phantom_skin"]) as found: yield found


@pytest.fixture(scope="module")
def lung(models):
    with served(models["phantom_lung"]) as found: yield found


def slices(place: Path, n=6, change=lambda k: {}) -> Path:
    "A series without symmetry: a lung phantom whose brightness grows from slice to slice"
    place.mkdir(parents=True)
    picture = load_cases("phantom_lung")[0].image().array.astype(np.uint16)
    for k in range(n):
        d = pydicom.dcmread(io.BytesIO(dicom(picture[:40, :56] + 10 * k)))
        d.SOPClassUID, d.SOPInstanceUID, d.StudyInstanceUID, d.FrameOfReferenceUID = (
            CTImageStorage, f"1.2.3.{k + 10}", "1.2.8", "1.2.9")
        d.file_meta.MediaStorageSOPInstanceUID, d.PatientID, d.Modality, d.SliceThickness = (
            d.SOPInstanceUID, "p", "CT", 2.5)
        d.ImagePositionPatient, d.RescaleIntercept = [10, 20, 30 + 2.5 * k], 0
        for name, value in change(k).items(): setattr(d, name, value)
        d.save_as(place / f"IM{n - k}", enforce_file_format=True)
    return place


def sent(*paths: Path) -> list: return [("files", (p.name, p.read_bytes())) for p in paths]
def post(page, *files): return page.client.post("/api/cases", files=[("files", f) for f in files])


def line(answer, status: int, *words: str) -> None:
    "Assert one line that says why"
    assert answer.status_code == status and set(answer.json()) == {"error"}, answer.text
    said = answer.json()["error"]
    assert all(w in said for w in words) and "\n" not in said and "Traceback" not in said and "/tmp" not in said, said


def alive(page) -> bool: return page.client.get("/api/model").status_code == 200


# Who may ask

def test_token_host_and_origin(skin):
    bare = httpx.Client(base_url=skin.base, trust_env=False)
    for path in ("/", "/docs", "/app.js", "/openapi.json", "/api/cases", "/niivue.js"):
        line(bare.get(path), 401, "token")
    line(bare.get("/", headers=dict(authorization="Bearer " + "x" * 43)), 401, "token")
    line(skin.client.get("/", headers=dict(host="evil.example")), 403, "Host")
    line(skin.client.post("/api/cases", headers=dict(origin="http://evil.example")), 403, "another site")
    link = skin.guard.link
    assert bare.get(link).headers["location"] == "/" and bare.get("/").status_code == 200, "the cookie is enough"
    line(httpx.get(link, trust_env=False), 401, "newest link")
    assert ("Research use only" in bare.get("/").text
            and "Research use only" in bare.get("/docs").text and "research use only" in bare.get("/api/model").text)
    assert alive(skin)


def test_only_this_machine_can_reach_it(skin):
    with open("/proc/net/tcp") if Path("/proc/net/tcp").exists() else contextlib.nullcontext([]) as table:
        mine = [row.split()[1].split(":") for row in table if row.split()[3] == "0A"]
    assert not mine or {a for a, p in mine if int(p, 16) == skin.guard.address[1]} == {"0100007F"}


# Bad input, and the server goes on

def test_too_large_upload_is_stopped(skin):
    line(post(skin, ("a.png", bytes(2 * 10 ** 7))), 413, "larger than 10,000,000 bytes")
    def endless():
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        for _ in range(30): yield bytes(10 ** 6)
    line(skin.client.post("/api/cases", content=endless(), headers={"content-type": "multipart/form-data; boundary=x"}),
         413, "larger than")
    assert alive(skin) and skin.client.get("/api/cases").json() == []


def zipped(**files) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in files.items(): z.writestr(name, data)
    return out.getvalue()


def test_bad_uploads_are_one_line(skin, lung, tmp_path):
    good = load_cases("phantom_skin")[0].images[0].read_bytes()
    broken = png(8, 0, bytes(3), (60000, 60000))
    for name, data, words in [("../../a.png", good, ["no plain file name"]), ("a\\b.png", good, ["no plain file name"]),
                              ("a.png", good[:200], ["a.png: is damaged or cut short"]),
                              ("a.png", b"", ["a.png: is empty"]), ("a.png", broken, ["a.png", "too many pixels"]),
                              ("a.pkl", b"\x80\x04cos\nsystem\n.", ["no kind that the page opens"]),
                              ("a.png", b"\x80\x04cos\nsystem\n.", ["a.png"]),
                              ("a.npy", b"\x93NUMPY\x01\0v\0", ["no kind that"]),
                              ("a.nii.gz", b"\x1f\x8b\x08", ["a.nii.gz"]),
                              ("grey.png", load_cases("phantom_lung")[0].images[0].read_bytes(),
                               ["1 channels, the model takes 3"]),
                              ("z.zip", zipped(**{"../x": b"x"}), ["leaves the folder"]),
                              ("z.zip", zipped(a=bytes(10 ** 7)), ["unpacks to more than"]),
                              ("z.zip", b"PK\x05\x06" + bytes(18), ["holds no file"]),
                              ("z.zip", b"PK", ["no kind that"])]:
        line(post(skin, (name, data)), 400, *words)
    line(post(skin, ("a.png", good), ("b.png", good)), 400, "no DICOM file, and 2 files")
    line(skin.client.post("/api/cases", content=b"--x", headers={"content-type": "multipart/form-data"}), 400)
    line(skin.client.post("/api/cases", json={}), 422, "files")
    for name, change, words in [
        ("missing", lambda k: dict(ImagePositionPatient=[0, 0, 2.5 * (k + (k > 2))]), ["a slice is missing"]),
        ("twice", lambda k: dict(ImagePositionPatient=[0, 0, max(k, 1)]), ["same position"]),
        ("tilt", lambda k: dict(ImagePositionPatient=[0, k, 3 * k]), ["tilted gantry"]),
        ("mixed", lambda k: dict(SeriesInstanceUID=f"1.2.{k // 3}"), ["several series"]),
        ("short", lambda k: dict(PixelData=bytes(20)) if k == 2 else {}, ["IM4"])]:
        line(lung.client.post("/api/cases", files=sent(*slices(tmp_path / name, change=change).iterdir())), 400, *words)
    line(post(lung, ("a.dcm", dicom(np.ones((8, 8)), JPEGLosslessSV1, b"\xff\xd8\xff\xd9"))),
         400, "needs a decoder that is not installed")
    assert (alive(skin) and alive(lung)
            and skin.client.get("/api/cases").json() == lung.client.get("/api/cases").json() == [])


TAKEN_NAMES = ("mask", "uncertainty", "image0", "image", "upload-000000")


@pytest.mark.parametrize("stem", TAKEN_NAMES)
def test_an_upload_is_never_given_back_as_an_answer(models, stem, tmp_path):
    """Whatever a file is called, alone or in a zip, the answers are those that it gets under another name, and its name
    leads nowhere on the disk"""
    picture, volume = load_cases("phantom_skin")[0].images[0], load_cases("phantom_mri_volumes")[0].images[0]
    series = slices(tmp_path / "ct")
    for path in series.iterdir():
        path.rename(path.with_name(f"{stem}.dcm" if path.name == "IM3" else f"{path.name}.dcm"))
    lone, ct = (series / f"{stem}.dcm").read_bytes(), [(p.name, p.read_bytes()) for p in sorted(series.iterdir())]
    def answers(page, *files):
        case = post(page, *files).json()
        told = [page.client.get(f"/api/cases/{case['id']}/{a}")
                for a in ("mask.png", "mask.nii.gz", "mask.dcm", "image.nii.gz", "uncertainty.nii.gz", "mask/0.png")]
        assert (page.client.delete(f"/api/cases/{case['id']}").status_code == 200
                and any(t.status_code == 200 for t in told))
        return [pydicom.dcmread(io.BytesIO(t.content)).pixel_array.tobytes() if t.content[128:132] == b"DICM"
                else (t.status_code, t.content if t.status_code == 200 else b"") for t in told]
    with served(models["phantom_skin"]) as page:
        data = picture.read_bytes()
        assert answers(page, (f"{stem}.png", data)) == answers(page, ("other.png", data)) == answers(
            page, ("z.zip", zipped(**{f"{stem}.png": data})))
    with served(models["phantom_mri_volumes"], 2 ** 26) as page:
        data, ending = volume.read_bytes(), "nii.gz" if volume.name.endswith(".gz") else "nii"
        assert answers(page, (f"{stem}.{ending}", data)) == answers(page, (f"other.{ending}", data))
    with served(models["phantom_lung"]) as page:
        assert (answers(page, (f"{stem}.dcm", lone)) == answers(page, ("other.dcm", lone))
                and answers(page, ("mask.dcm", lone))[2] != lone)
        assert answers(page, *ct) == answers(page, *[(f"{k}.dcm", d) for k, (_, d) in enumerate(ct)])


def test_a_refusal_names_what_was_sent(lung, tmp_path):
    place = slices(tmp_path / "ct", change=lambda k: dict(PixelData=bytes(20)) if k == 2 else {})
    packed = zipped(**{f"st/se/{p.name}": p.read_bytes() for p in place.iterdir()})
    for files in ([f for _, f in sent(*place.iterdir())], [("ct.zip", packed)]):
        answer = post(lung, *files)
        line(answer, 400, "IM4")
        assert "upload" not in answer.text, answer.text


def test_more_files_than_an_upload_may_have(lung, tmp_path):
    "The limit is told beforehand and is the one that holds; what is above it comes as a zip"
    most = lung.client.get("/api/model").json()["limits"]["files"]
    place = slices(tmp_path / "ct", most + 1)
    line(lung.client.post("/api/cases", files=sent(*place.iterdir())), 400, f"{most:,} files", "zip")
    case = post(lung, ("ct.zip", zipped(**{p.name: p.read_bytes() for p in place.iterdir()}))).json()
    assert case["slices"] == most + 1 and lung.client.delete(f"/api/cases/{case['id']}").status_code == 200


def test_a_fault_of_the_model_is_one_line(models):
    with served(models["phantom_skin"]) as page:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(app, "display_windows", lambda image: 1 / 0)
            line(page.client.post("/api/cases", files=sent(load_cases("phantom_skin")[0].images[0])),
                 500, "the server goes on")
        end = time.monotonic() + 10
        while not page.said and time.monotonic() < end: time.sleep(.02)
        said, = page.said
        assert (said.startswith("error: POST /api/cases: failed (ZeroDivisionError in app.py, line ")
                and "division by zero" not in said and alive(page))
        assert page.client.post("/api/cases", files=sent(load_cases("phantom_skin")[0].images[0])).status_code == 201


def test_occupied_port_and_outside_address(trained):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0)); s.listen()
        port = s.getsockname()[1]
        refused(trained.call("serve", "app", trained.key, "--port", port), f"127.0.0.1:{port}", "cannot be listened on")
    refused(trained.call("serve", "app", trained.key, "--bind", "0.0.0.0"), "0.0.0.0", "from other machines")


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_command_prints_the_link_and_leaves_nothing(trained, tmp_path):
    process = trained.start("serve", "app", trained.key, TMPDIR=str(tmp_path))
    link = process.stdout.readline().strip()
    base = link.split("/?token=")[0]
    token = process.stdout.readline().split()[-1]
    with httpx.Client(base_url=base, headers=dict(authorization=f"Bearer {token}"), trust_env=False) as client:
        assert client.post("/api/cases", files=sent(load_cases("phantom_skin")[0].images[0])).status_code == 201
    place, = tmp_path.glob("medseg-app-*")
    assert place.stat().st_mode & 0o77 == 0 and list(place.rglob("mask.raw"))
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert not list(tmp_path.glob("medseg-app-*")) and "Traceback" not in err, err


# In the browser

@pytest.fixture(scope="module")
def chromium():
    "Starts Chromium; with WebGL2 if asked"
    pytest.importorskip("playwright", reason="playwright is not installed")
    from playwright.sync_api import sync_playwright
    place = needs("chromium")
    with sync_playwright() as play:
        found = {}
        def start(gl):
            flags = ["--no-sandbox", "--disable-quic", "--disable-component-update",
                     "--disable-sync", *(GL if gl else ["--disable-gpu", "--disable-3d-apis"])]
            if gl not in found: found[gl] = play.chromium.launch(executable_path=place, args=flags)
            return found[gl]
        yield start
        for b in found.values(): b.close()


@pytest.fixture
def desk(chromium):
    "Opens the page of a server; at the end no request may have left this machine, and the console is clean"
    opened = []
    def visit(page, gl=False):
        context = chromium(gl).new_context(viewport=dict(width=1360, height=860))
        tab, asked, told = context.new_page(), [], []
        tab.on("request", lambda r: asked.append(r.url))
        tab.on("console", lambda m: told.append(m.text) if m.type == "error"
               and "status of 400" not in m.text else None)
        tab.on("pageerror", lambda e: told.append(str(e)))
        opened.append((context, page, asked, told))
        tab.goto(page.guard.link)
        tab.wait_for_selector("body[data-state=ready]")
        assert "token" not in tab.url and tab.locator(".note").inner_text() == "Research use only"
        return tab
    yield visit
    for context, page, asked, told in opened:
        context.close()
        outside = [u for u in asked if not u.startswith((page.base + "/", "data:", "blob:"))]
        assert asked and not outside and not told, (outside, told)


def choose(tab, *paths: Path) -> None:
    tab.set_input_files("#file", [str(p) for p in paths])
    tab.wait_for_selector("body[data-state=shown], body[data-state=error]", timeout=60000)
    assert tab.get_attribute("body", "data-state") == "shown", tab.inner_text("#message")


def saved(tab, kind: str, to: Path) -> Path:
    with tab.expect_download() as found: tab.click(f"#exports a[href$='mask.{kind}']")
    found.value.save_as(to / found.value.suggested_filename)
    return to / found.value.suggested_filename


def shot(tab, name: str) -> None:
    "A picture of the page, where MEDSEG_SHOTS names a folder"
    if place := os.environ.get("MEDSEG_SHOTS"): tab.screenshot(path=f"{place}/{name}.png")


def redrawn(tab, does) -> bytes:
    "The stage after something was changed"
    does()
    tab.wait_for_selector("body[data-state=shown]")
    tab.wait_for_timeout(150)
    return tab.locator("#stage").screenshot()


def test_picture_open_see_export_reopen(skin, models, desk, tmp_path):
    path = load_cases("phantom_skin")[0].images[0]
    tab = desk(skin)
    choose(tab, path)
    whole = redrawn(tab, lambda: None)
    bare = redrawn(tab, lambda: tab.uncheck("#show-mask"))
    unsure = redrawn(tab, lambda: tab.check("#show-uncertainty"))
    assert len({whole, bare, unsure}) == 3, "mask and uncertainty can be seen"
    redrawn(tab, lambda: tab.check("#show-mask")); shot(tab, "picture")
    mask = models["phantom_skin"].label_map(read_image(path), "it")
    assert (f"{int((mask > 0).sum()):,}\u00a0px" in tab.inner_text("#sizes")
            and "a picture has no place in space" in tab.inner_text("#exports")
            and "this case has none" in tab.inner_text("#exports"))
    assert (read_mask(saved(tab, "png", tmp_path), Encoding(kind="labels"), read_image(path))
            == mask).all() and mask.any()
    tab.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": b"no picture"})
    tab.wait_for_selector("body[data-state=error]")
    shot(tab, "refused")
    assert "x.png" in tab.inner_text("#message")
    tab.click("#cases li button[title^=Close]")
    tab.wait_for_selector("body[data-state=ready]")
    assert skin.client.get("/api/cases").json() == []


def test_a_model_that_counts_says_that_it_gives_no_uncertainty(models, desk):
    with served(replace(models["phantom_skin"], instances=True, probabilities=None)) as page:
        tab = desk(page)
        choose(tab, load_cases("phantom_skin")[0].images[0])
        assert ("gives no uncertainty" in tab.inner_text("#remark")
                and tab.is_hidden("#sure") and "Objects" in tab.inner_text("thead"))
        case, = page.client.get("/api/cases").json()
        line(page.client.get(f"/api/cases/{case['id']}/uncertainty/0.png"), 400, "no probabilities")


def volume_trip(tab, path: Path, model, to: Path):
    "Export and reopen a volume that is shown"
    image = read_image(path)
    mask = model.label_map(image, "it")
    back = read_image(saved(tab, "nii.gz", to))
    assert (back.array == mask).all() and mask.any() and np.allclose(back.affine, image.affine, atol=1e-4)
    for r in [r for r in tab.locator("#sizes tr").all_inner_texts()]: assert "mm³" in r and "ml" in r and "px" not in r


def test_volume_in_niivue(models, desk, tmp_path):
    if not app.niivue_path().is_file():
        needs("npm")
        with set_environment(MEDSEG_NIIVUE=str(tmp_path / "niivue")): app.bring_niivue()
    path = load_cases("phantom_mri_volumes")[0].images[0]
    with set_environment(MEDSEG_NIIVUE=str(app.niivue_path().parents[2] if app.niivue_path().is_file()
                                           else tmp_path / "niivue")), served(models["phantom_mri_volumes"]) as page:
        tab = desk(page, gl=True)
        choose(tab, path)
        assert tab.get_attribute("body", "data-view") == "niivue"
        whole = redrawn(tab, lambda: None); shot(tab, "niivue")
        assert whole != redrawn(tab, lambda: tab.uncheck("#show-mask")), "the mask can be seen"
        redrawn(tab, lambda: tab.check("#show-mask"))
        assert whole != redrawn(tab, lambda: tab.check("#show-uncertainty")); shot(tab, "niivue_uncertainty")
        volume_trip(tab, path, models["phantom_mri_volumes"], tmp_path)
        redrawn(tab, lambda: tab.select_option("#view", "pictures")); shot(tab, "volume_slices")
        assert tab.get_attribute("body", "data-view") == "pictures"


def test_volume_in_pictures_without_webgl(models, desk, tmp_path):
    path = load_cases("phantom_mri_volumes")[0].images[0]
    with served(models["phantom_mri_volumes"]) as page:
        tab = desk(page)
        choose(tab, path)
        assert (tab.get_attribute("body", "data-view") == "pictures"
                and "Slices as pictures" in tab.inner_text("#remark"))
        first = redrawn(tab, lambda: tab.fill("#slice", "3"))
        assert (first != redrawn(tab, lambda: tab.fill("#slice", "12"))
                and tab.get_attribute("body", "data-slice") == "12")
        assert first != redrawn(tab, lambda: tab.select_option("#channel", "3"))
        volume_trip(tab, path, models["phantom_mri_volumes"], tmp_path)


def test_series_open_see_export_reopen(lung, models, desk, tmp_path):
    place = slices(tmp_path / "ct")
    image, _ = read_series(place)
    mask = models["phantom_lung"].label_map(image, "it")
    tab = desk(lung)
    choose(tab, *sorted(place.iterdir()))
    shot(tab, "series")
    assert [tab.inner_text(f"#{e}") for e in ("left", "right", "top", "bottom")] == ["R", "L", "A", "P"]
    assert (read_seg(saved(tab, "dcm", tmp_path), image, dict(nodule=1))[0] == mask).all() and mask.any()
    assert (read_image(saved(tab, "nii.gz", tmp_path)).array == mask).all()
    packed = tmp_path / "ct.zip"
    packed.write_bytes(zipped(**{f"st/se/{p.name}": p.read_bytes() for p in place.iterdir()}))
    choose(tab, packed)
    tab.wait_for_selector("#title:has-text('ct.zip')")
    assert (read_seg(saved(tab, "dcm", tmp_path), image, dict(nodule=1))[0] == mask).all()
    shown = np.asarray(
        Image.open(
        io.BytesIO(lung.client.get(f"/api/cases/{lung.client.get('/api/cases').json()[0]['id']}/mask/2.png").content)))
    assert (shown == mask[:, :, 2].T).all(), "the picture is the slice, rows first"
    for c in lung.client.get("/api/cases").json(): assert lung.client.delete(f"/api/cases/{c['id']}").status_code == 200


def test_a_long_series_is_offered_as_a_zip(models, desk, tmp_path):
    "More slices than one upload may have: the page says so, packs them, and sends the pack"
    most = app.MAX_UPLOAD_FILES
    place = slices(tmp_path / "ct", most + 1)
    with served(models["phantom_lung"], 2 ** 26) as page:
        tab = desk(page)
        tab.set_input_files("#file", [str(p) for p in place.iterdir()])
        tab.wait_for_selector("body[data-state=error]", timeout=60000)
        assert f"{most + 1:,} files" in tab.inner_text("#message") and f"{most:,}" in tab.inner_text("#message")
        tab.click("#pack")
        tab.wait_for_selector("body[data-state=shown]", timeout=120000)
        case, = page.client.get("/api/cases").json()
        assert case["slices"] == most + 1 and case["name"] == f"{most + 1} slices.zip"
