("Fifty series of a hundred slices from eight senders, through the node to Orthanc, while the node is killed twice and "
 "Orthanc is away for a minute; in a network namespace of its own, called by test_load.py: ORTHANC FOLDER.")
import json
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pydicom

from medseg_nb.deployment.dicom import SeriesQueue, read_series
from orthanc_trip import DICOM, HTTP, NODE, answers, ask, segs, up
from test_dicom import Node, push, slices, wait

SERIES, SLICES, SIDE, SENDERS = 50, 100, 192, 8
KILLS, AWAY, AWAY_SECONDS = (9, 27), 18, 60  # after so many series were sent; when Orthanc goes, and for how long
LIMIT = 900                                  # seconds


class Load:
    "What happens while the senders send"
    def __init__(self, orthanc: str, place: Path):
        self.orthanc, self.place, self.sent, self.lock = orthanc, place, [], threading.Lock()
        self.queue, self.peaks, self.server = place / "queue", [], None
        self.begin_archive(); self.begin_node()

    def begin_archive(self) -> None:
        log = open(self.place / "orthanc.log", "a")
        self.server = subprocess.Popen([self.orthanc, str(self.place / "orthanc.json")], stdout=log, stderr=log)
        wait(answers)

    def begin_node(self) -> None: self.node = Node(self.queue, f"PACS@127.0.0.1:{DICOM}", "answers", NODE, "SCANNER")

    def memory_mb(self) -> float:
        "Most memory that the node has held"
        lines = Path(f"/proc/{self.node.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

    def send(self, number: int) -> None:
        "A series, again and again until every slice was taken"
        folder = slices(self.place / "sent" / str(number), SLICES, f"1.2.3.{number}", rows=SIDE, columns=SIDE)
        end = time.monotonic() + LIMIT
        while push(folder, NODE) != [0] * SLICES:
            assert time.monotonic() < end, f"series {number} was not taken"
            time.sleep(.5)
        with self.lock: self.sent.append(number)

    def disturb(self) -> None:
        "Kill the node twice, and take Orthanc away"
        for count in sorted((*KILLS, AWAY)):
            wait(lambda: len(self.sent) >= count, LIMIT)
            if count == AWAY:
                self.server.terminate(); self.server.wait(20); time.sleep(AWAY_SECONDS); self.begin_archive()
            else: self.peaks.append(self.memory_mb()); self.node.kill(); time.sleep(1); self.begin_node()


def referenced() -> Counter:
    "SEGs in the archive, by the series that they are of"
    objects = [pydicom.dcmread(pydicom.filebase.DicomBytesIO(ask(f"/instances/{i}/file")), stop_before_pixels=True)
               for i in segs()]
    return Counter(d.ReferencedSeriesSequence[0].SeriesInstanceUID for d in objects)


def main(orthanc: str, place: Path) -> None:
    up()
    known = dict(kit=dict(AET="MEDSEG", Host="127.0.0.1", Port=NODE))
    config = dict(Name="load", StorageDirectory=str(place / "store"), IndexDirectory=str(place / "store"),
                  HttpPort=HTTP, DicomPort=DICOM, DicomAet="PACS", RemoteAccessAllowed=False,
                  AuthenticationEnabled=True, RegisteredUsers=dict(kit="right"), DicomAlwaysAllowStore=False,
                  DicomModalities=known)
    (place / "orthanc.json").write_text(json.dumps(config)); (place / "orthanc.json").chmod(0o600)
    begin, load = time.monotonic(), Load(orthanc, place)
    numbers = iter(range(SERIES))
    def work():
        while True:
            with load.lock: number = next(numbers, None)
            if number is None: return
            load.send(number)
    threads = [threading.Thread(target=f) for f in (*[work] * SENDERS, load.disturb)]
    try:
        for t in threads: t.start()
        for t in threads: t.join(LIMIT)
        assert sorted(load.sent) == list(range(SERIES)) and not any(t.is_alive() for t in threads)
        wait(lambda: len(segs()) >= SERIES and not SeriesQueue(load.queue).list_unsent(), LIMIT)
        counts = referenced()
        assert counts == Counter({f"1.2.3.{k}": 1 for k in range(SERIES)}), counts
        image, _ = read_series(place / "sent" / "0")
        assert image.shape == (SIDE, SIDE, SLICES) and "Traceback" not in load.node.said()
        peaks = [*load.peaks, load.memory_mb()]  # of each of the node's lives
        print(json.dumps(dict(series=SERIES, slices=SERIES * SLICES, segs=sum(counts.values()), kills=len(KILLS),
                              peaks_mb=[round(p) for p in peaks], series_mb=round(SIDE**2 * SLICES * 2 / 2**20, 1),
                              seconds=round(time.monotonic() - begin))))
    finally:
        load.node.kill(); load.server.terminate(); load.server.wait(20)
        shutil.rmtree(place / "sent", ignore_errors=True)


if __name__ == "__main__": main(sys.argv[1], Path(sys.argv[2]))
