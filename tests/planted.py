("Names, ids and dates planted in every text element of good and bad files, through prediction, explanation, the page "
 "and the node; called by test_dicom.py as a program: FOLDER.")
import datetime
import io
import itertools
import logging
import os
import sys
import threading
import warnings
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pydicom
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from medseg_nb.cli import main
from medseg_nb.deployment.dicom import DimseArchive, run_dicom_node
from medseg_nb.deployment.segmenter import load_segmenter
from medseg_nb.training.training import Config, run_training
from test_app import served
from test_dicom import archive, fake, free_port, push, slice_files, slices, wait

TEXT = ("LO", "SH", "LT", "ST", "UT", "UC", "PN", "AE", "CS", "DA", "TM", "DT", "UI", "UR")
GROUPS = (0x0008, 0x0010, 0x0012, 0x0018, 0x0020, 0x0032, 0x0038, 0x0040)
NEEDED = """SOPClassUID Modality ImageType PhotometricInterpretation SpecificCharacterSet FrameOfReferenceUID \
StudyInstanceUID SeriesInstanceUID SOPInstanceUID PatientSex
LossyImageCompression""".split()
COUNT = itertools.count(1)
PLANTED = []


def plant(vr: str) -> str:
    "A value that no other element has"
    n = next(COUNT)
    value = dict(DA=(datetime.date(1861, 1, 1) + datetime.timedelta(n)).strftime("%Y%m%d"),
                 TM=f"2359{n % 60:02}.{n:06}", UI=f"1.3.77777.{n}",
                 DT=f"{datetime.date(1861, 1, 1) + datetime.timedelta(n):%Y%m%d}2359",
                 CS=f"ZQ{n}X", UR=f"http://zq{n}x", PN=f"Zq{n}x").get(vr, f"Zq{n}x")
    PLANTED.append(value)
    return value


def rich(d, depth: int = 0) -> None:
    "Plant every text element, in sequences and private blocks too"
    for tag, (vr, vm, _, retired, keyword) in DicomDictionary.items():
        if vr in TEXT and tag >> 16 in GROUPS and keyword not in NEEDED: d.add_new(tag, vr, plant(vr))
    d.private_block(0x11, plant("LO"), create=True).add_new(1, "LO", plant("LO"))
    if depth: return
    for name in ("OtherPatientIDsSequence", "RequestAttributesSequence", "ReferencedStudySequence"):
        inner = pydicom.Dataset(); rich(inner, 1) if name[0] == "O" else inner.add_new("PatientName", "PN", plant("PN"))
        setattr(d, name, [inner])


def raw(d, name: str, text: str, vr: str = "") -> None:
    "An element whose text no writer would take"
    PLANTED.extend(w for w in text.replace("\\", " ").split() if w.lower().startswith("zq"))
    data = text.encode() + b" " * (len(text) % 2)
    d[name] = RawDataElement(Tag(name), vr or pydicom.datadict.dictionary_VR(name), len(data), data, 0, False, True)


BAD = {  # name of a case: what is done to each slice
    "forged": lambda d: raw(d, "PatientName", "Zqforged^A\r\nerror: forged line\x1b[31m"),
         "date": lambda d: raw(d, "StudyDate", "Zqdate"), "sex": lambda d: raw(d, "PatientSex", "Zqsex"),
    "charset": lambda d: raw(d, "SpecificCharacterSet", "Zqcharset"),
         "kind": lambda d: raw(d, "SOPClassUID", "1.3.77777.5 "), "id": lambda d: raw(d, "PatientID", "Zqid" * 30),
    "thickness": lambda d: raw(d, "SliceThickness", "Zqthick"),
         "place": lambda d: raw(d, "ImagePositionPatient", "Zqa\\Zqb\\Zqc"),
         "slope": lambda d: raw(d, "RescaleSlope", "Zqslope"),
    "rows": lambda d: raw(d, "Rows", "Zqrows", "LO"),
         "bits": lambda d: raw(d, "HighBit", "Zqbits", "LO"), "uid": lambda d: raw(d, "StudyInstanceUID", "Zquid^Name"),
    "photometric": lambda d: raw(d, "PhotometricInterpretation", "ZQPHOTO "),
         "short": lambda d: setattr(d, "PixelData", d.PixelData[:20]),
         "spacing": lambda d: raw(d, "PixelSpacing", "Zqs\\Zqt"),
    "same": lambda d: d.update(dict(SOPInstanceUID="1.2.3.4")),
         "series": lambda d: raw(d, "SeriesInstanceUID", f"Zqseries{next(COUNT)}"),
         "patient": lambda d: raw(d, "PatientID", f"Zqp{next(COUNT)}"),
    "good": lambda d: None}


def put(place: Path, number: int, spoil) -> Path:
    "A planted series"
    folder = slices(place, n=4, series=f"1.2.826.0.1.3680043.10.{number}", rows=24, columns=24)
    about = pydicom.Dataset(); rich(about)
    for p in slice_files(folder):
        d = pydicom.dcmread(p)
        for e in about: d.add(e)
        d.ImageType, d.SliceThickness, d.RescaleSlope, d.RescaleIntercept = ["ORIGINAL", "PRIMARY", "AXIAL"], 2.5, 1, 0
        spoil(d)
        d.preamble = b"Zqpreamble".ljust(128)
        d.save_as(p)
    PLANTED.append("Zqpreamble")
    return folder


def command(*words) -> None:
    with patch.object(sys, "argv", ["medseg", *map(str, words)]):
        try: main()
        except SystemExit as e: print("exit", words[0], e.code or 0)


def page(model, folders: list[Path]) -> list[str]:
    "What the page's server says on its terminal"
    with served(model) as found:
        for folder in folders:
            for some in ([p.read_bytes() for p in slice_files(folder)], [slice_files(folder)[0].read_bytes()]):
                answer = found.client.post("/api/cases",
                                           files=[("files", (f"{k}.dcm", data)) for k, data in enumerate(some)])
                if answer.status_code == 201: answer = found.client.get(f"/api/cases/{answer.json()['id']}/mask.dcm")
                assert answer.status_code in (200, 400), (folder.name, answer.text)
                for case in found.client.get("/api/cases").json(): found.client.delete(f"/api/cases/{case['id']}")
        return found.said


def node(place: Path, folders: list[Path]) -> None:
    "Each series through the network"
    stop, port = threading.Event(), free_port()
    with archive() as (got, to):
        running = threading.Thread(target=run_dicom_node,
                                   args=(fake(lambda image: (image.array > 100).astype(np.int32)),
                                         place, ["SCANNER"], DimseArchive("PACS", "127.0.0.1", to)),
                                   kwargs=dict(port=port, stop=stop, quiet=1.))
        running.start()
        wait(lambda: (place / "lock").exists())
        for folder in folders:
            try: push(folder, port)
            except Exception as e: print("not sent", folder.name, type(e).__name__)
        wait(lambda: len(list(place.glob("series/*/answer.json"))) >= len(folders) - 3, 90)
        stop.wait(3); stop.set(); running.join()
        assert len(got) >= 3, len(got)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    os.environ["MEDSEG_RUNS"] = str(place / "runs")
    log = io.StringIO()
    logging.basicConfig(level=logging.DEBUG, handlers=[logging.StreamHandler(), logging.StreamHandler(log)])
    config = Config("phantom_lung", "unet", steps=1, size=32, width=4, augment="none")
    key = run_training(config, weights=True).name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of this program's own writing
        logging.disable()
        pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
        folders = [put(place / "in" / name, n, spoil) for n, (name, spoil) in enumerate(BAD.items(), 1)]
        logging.disable(logging.NOTSET)
    warnings.filterwarnings("always", append=True)
    command("predict", key, *folders, "--out", place / "series")
    for folder in folders: command("predict", key, slice_files(folder)[0], "--out", place / "single" / folder.name)
    for folder in folders:
        command("explain", key, slice_files(folder)[0], "--target",
                "pixel:3,3", "--method", "grad_cam_pp", "--out", place / "why")
    said = page(load_segmenter(key), folders)
    node(place / "queue", folders)
    notes = [p for pattern in ("*/predict.csv", "single/*/predict.csv", "why/*.json",
                               "queue/series/*/*.json", "queue/series/*/released") for p in place.glob(pattern)]
    assert ((place / "series" / "predict.csv") in notes and any(p.name == "answer.json" for p in notes)
            and any(p.suffix == ".json" for p in (place / "why").iterdir()))
    (place / "said.txt").write_text("\n".join([log.getvalue(), *said, *(p.read_text() for p in notes)]),
                                    encoding="utf-8")
    (place / "planted.txt").write_text("\n".join(sorted({p for p in PLANTED if len(p) > 3})), encoding="utf-8")
    print(len(PLANTED), "planted")
