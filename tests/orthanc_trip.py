("A round trip through Orthanc, by C-STORE and by STOW-RS, in a network namespace of its own; called by test_dicom.py "
 "as a program: ORTHANC PLUGIN FOLDER.")
import base64
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import pydicom
from fastapi.testclient import TestClient

from medseg_nb.data.annotations import read_seg
from medseg_nb.deployment.app import create_app
from medseg_nb.deployment.dicom import PASSWORD, USER, SeriesQueue, parse_archive, read_series, slice_files
from medseg_nb.deployment.segmenter import Segmenter
from test_dicom import Node, push, slices, wait

HTTP, DICOM, NODE = 8042, 4242, 11112


def up() -> None:
    "Switch the loopback interface on"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", 1 | 64))  # SIOCSIFFLAGS: up, running


def ask(path: str, body: bytes | None = None, password: str = "right", method: str | None = None) -> bytes:
    head = {"Authorization": "Basic " + base64.b64encode(f"kit:{password}".encode()).decode()}
    opened = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
        urllib.request.Request(f"http://127.0.0.1:{HTTP}{path}", body, head, method=method), timeout=30)
    return opened.read()


def answers() -> bool:
    try: return bool(ask("/system"))
    except OSError: return False


def refused() -> int:
    try: ask("/system", password="wrong")
    except urllib.error.HTTPError as e: return e.code
    return 200


def segs() -> list[str]:
    return [i for i in json.loads(ask("/instances"))
            if json.loads(ask(f"/instances/{i}/simplified-tags"))["Modality"] == "SEG"]


def route(series: str) -> None:
    "Orthanc sends the series to the node"
    def sent():
        try: return bool(ask("/modalities/kit/store", series.encode()))
        except urllib.error.HTTPError: return False
    wait(sent, 30)


def main(orthanc: str, plugin: str, place: Path) -> None:
    up()
    known = dict(kit=dict(AET="MEDSEG", Host="127.0.0.1", Port=NODE),
                 scanner=dict(AET="SCANNER", Host="127.0.0.1", Port=104))
    config = dict(Name="test", StorageDirectory=str(place / "store"), IndexDirectory=str(place / "store"),
                  HttpPort=HTTP, DicomPort=DICOM, DicomAet="PACS", RemoteAccessAllowed=False,
                  AuthenticationEnabled=True, RegisteredUsers=dict(kit="right"),
                  DicomCheckCalledAet=True, DicomAlwaysAllowStore=False, DicomAlwaysAllowEcho=False,
                  DicomCheckModalityHost=True, DicomModalities=known,
                  Plugins=[plugin], DicomWeb=dict(Enable=True, Root="/dicom-web/", Ssl=False))
    (place / "orthanc.json").write_text(json.dumps(config)); (place / "orthanc.json").chmod(0o600)
    series, log = slices(place / "ct"), open(place / "orthanc.log", "w")
    server = subprocess.Popen([orthanc, str(place / "orthanc.json")], stdout=log, stderr=log)
    try:
        wait(answers)
        assert refused() == 401, "a wrong password"
        assert push(series, DICOM, title="STRANGER", called="PACS") == [], "an unknown AE"
        assert push(series, DICOM, called="PACS") == [0] * 6
        came, = json.loads(ask("/series"))
        made = [trip(place / way, to, series, came)
                for way, to in dict(c_store=f"PACS@127.0.0.1:{DICOM}",
                                    stow=f"http://127.0.0.1:{HTTP}/dicom-web").items()]
        assert made[0] == made[1], "the same answer is the same object, whichever way it goes"
        corrected = [corrected_trip(place / f"app_{way}", to, series)
                     for way, to in dict(c_store=f"PACS@127.0.0.1:{DICOM}",
                                         stow=f"http://127.0.0.1:{HTTP}/dicom-web").items()]
        assert corrected[0] == corrected[1] != made[0], "a corrected mask is an object of its own"
    finally: server.terminate(); server.wait(20)


def trip(place: Path, to: str, series: Path, came: str) -> str:  # UID of the SEG
    "Orthanc routes the series, the node is killed before it answers and started again, and its SEG arrives once"
    place.mkdir()
    def start(mode="answers", password="right"):
        return Node(place / "queue", to, mode, NODE, "PACS", **{USER: "kit", PASSWORD: password})
    first = start("blocks")
    route(came); wait((place / "queue" / "blocked").exists); first.kill()
    assert not segs() and len(slice_files(SeriesQueue(place / "queue").folders()[0] / "slices")) == 6, (
        "all slices are kept, nothing is answered")
    if to.startswith("http"):
        wrong = start(password="wrong")
        wait(lambda: "refuses user or password (status 401)" in wrong.said()); wrong.kill()
        assert not segs() and len(SeriesQueue(place / "queue").list_unsent()) == 2, "the answer is kept"
    node = start()
    try:
        wait(segs); wait(lambda: ": report sent" in node.said())
        route(came); time.sleep(2)  # a repeated send doubles nothing
        made, = segs()
        assert node.said().count(": sent") == node.said().count(": report sent") == 1 and "Traceback" not in node.said()
    finally: node.kill()
    image, _ = read_series(series)
    (place / "seg.dcm").write_bytes(ask(f"/instances/{made}/file"))
    assert (read_seg(place / "seg.dcm", image, dict(bright=1))[0] == (image.array > 150)).all()
    kept = {pydicom.dcmread(p).SOPInstanceUID: pydicom.dcmread(p).PixelData
            for p in (place / "queue").rglob("slices/*.dcm")}
    assert kept == {pydicom.dcmread(p).SOPInstanceUID: pydicom.dcmread(p).PixelData for p in slice_files(series)}
    ask(f"/instances/{made}", method="DELETE")
    return pydicom.dcmread(place / "seg.dcm").SOPInstanceUID


def corrected_trip(place: Path, to: str, series: Path) -> str:  # UID of the SEG
    "A mask that was corrected in the page goes to Orthanc, and comes back with equal voxels"
    place.mkdir()
    os.environ[USER], os.environ[PASSWORD] = "kit", "right"
    model = Segmenter("abc", ["grey"], (8, 8), "none", {1: "bright"}, False, None, None)
    object.__setattr__(model, "label_map", lambda image, subject: (image.array > 150).astype(np.int32))
    with TestClient(create_app(model, place / "log.sqlite", parse_archive(to))) as page:
        case = page.post("/api/cases", files=[("files", (p.name, p.read_bytes())) for p in slice_files(series)]).json()
        at = f"/api/cases/{case['id']}"
        planes = np.frombuffer(page.get(f"{at}/labels").content, "<u2").reshape(case["shape"][::-1]).copy()
        planes[1, 2:5, 3:9], planes[2, :4] = 1, 0
        sent = dict(kind="correct", shape=planes.shape, mask=base64.b64encode(zlib.compress(planes.tobytes())).decode())
        assert page.post(f"{at}/review", json=sent).status_code == 200
        told = page.post(f"{at}/send").json()
        assert [r["what"] for r in page.get("/api/log").json()] == ["correct", "send"], told
    made, = segs()
    (place / "seg.dcm").write_bytes(ask(f"/instances/{made}/file"))
    image, _ = read_series(series)
    back = read_seg(place / "seg.dcm", image, dict(bright=1))[0]
    assert (back == planes.transpose(2, 1, 0)).all() and (back != (image.array > 150)).any() and told["sent"] == \
        pydicom.dcmread(place / "seg.dcm").SOPInstanceUID
    ask(f"/instances/{made}", method="DELETE")
    return told["sent"]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    print("equal, equal")
