"A round trip through Orthanc, in a network namespace of its own; called by test_dicom.py as a program: ORTHANC FOLDER."
import base64
import fcntl
import json
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pydicom

from medseg_nb.annotations import read_seg
from medseg_nb.dicom import Peer, read_series, serve, slice_files
from test_dicom import fake, push, slices, wait

HTTP, DICOM, NODE = 8042, 4242, 11112


def up() -> None:
    "Switch the loopback interface on"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", 1 | 64))  # SIOCSIFFLAGS: up, running


def ask(path: str, body: bytes | None = None, password: str = "right") -> bytes:
    head = {"Authorization": "Basic " + base64.b64encode(f"kit:{password}".encode()).decode()}
    opened = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(urllib.request.Request(f"http://127.0.0.1:{HTTP}{path}", body, head), timeout=30)
    return opened.read()


def answers() -> bool:
    try: return bool(ask("/system"))
    except OSError: return False


def refused() -> int:
    try: ask("/system", password="wrong")
    except urllib.error.HTTPError as e: return e.code
    return 200


def segs() -> list[str]: return [i for i in json.loads(ask("/instances")) if json.loads(ask(f"/instances/{i}/simplified-tags"))["Modality"] == "SEG"]


def main(orthanc: str, place: Path) -> None:
    up()
    known = dict(kit=dict(AET="MEDSEG", Host="127.0.0.1", Port=NODE), scanner=dict(AET="SCANNER", Host="127.0.0.1", Port=104))
    config = dict(Name="test", StorageDirectory=str(place / "store"), IndexDirectory=str(place / "store"), HttpPort=HTTP, DicomPort=DICOM, DicomAet="PACS", RemoteAccessAllowed=False,
                  AuthenticationEnabled=True, RegisteredUsers=dict(kit="right"), DicomCheckCalledAet=True, DicomAlwaysAllowStore=False, DicomAlwaysAllowEcho=False,
                  DicomCheckModalityHost=True, DicomModalities=known, Plugins=[])
    (place / "orthanc.json").write_text(json.dumps(config)); (place / "orthanc.json").chmod(0o600)
    series = slices(place / "ct")
    image, heads = read_series(series)
    model = fake(lambda volume: (volume.array > 150).astype(np.int32))
    stop, log = threading.Event(), open(place / "orthanc.log", "w")
    server = subprocess.Popen([orthanc, str(place / "orthanc.json")], stdout=log, stderr=log)
    node = threading.Thread(target=serve, args=(model, place / "queue", ["PACS"], Peer("PACS", "127.0.0.1", DICOM)), kwargs=dict(port=NODE, stop=stop))
    try:
        wait(answers); node.start()
        assert refused() == 401, "a wrong password"
        assert push(series, DICOM, title="STRANGER", called="PACS") == [], "an unknown AE"
        assert push(series, DICOM, called="PACS") == [0] * 6
        came, = json.loads(ask("/series"))
        for _ in range(2):  # the second time changes nothing
            wait(lambda: bool(ask("/modalities/kit/store", came.encode())), 30)
            wait(segs)
        time.sleep(2)
        made, = segs()
        (place / "seg.dcm").write_bytes(ask(f"/instances/{made}/file"))
        assert (read_seg(place / "seg.dcm", image, dict(bright=1))[0] == (image.array > 150)).all()
        kept = {pydicom.dcmread(p).SOPInstanceUID: pydicom.dcmread(p).PixelData for p in (place / "queue").rglob("slices/*.dcm")}
        assert kept == {pydicom.dcmread(p).SOPInstanceUID: pydicom.dcmread(p).PixelData for p in slice_files(series)}
    finally:
        stop.set(); server.terminate(); server.wait(20)
        if node.is_alive(): node.join(20)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    print("equal")
