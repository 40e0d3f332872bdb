"The hospital's node, over the network: a sender, the node in a process of its own, and an archive."
import contextlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pydicom
import pytest
from conftest import PLAIN, REPO, needs
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEGLosslessSV1, SegmentationStorage
from pynetdicom import AE, build_context, evt

from medseg_nb.data.annotations import read_seg
from medseg_nb.kit.core import InputError, ResourceError
from medseg_nb.deployment.dicom import (DimseArchive, SeriesQueue, DicomWebArchive, read_series, run_dicom_node,
                                        slice_files)

pytestmark = pytest.mark.long

SERIES = "1.2.826.0.1.3680043.10.77"
NODE = """import os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
from medseg_nb.deployment import dicom
from medseg_nb.images import files as images
_, place, port, to, mode, allow = sys.argv
def bright(image, subject):
    if mode == "blocks": Path(place, "blocked").touch(); time.sleep(600)
    if mode == "falls" and image.shape[2] == 6: os.kill(os.getpid(), signal.SIGKILL)
    return (image.array > 150).astype("int32")
if mode.startswith("dies"):  # after so many slices are on disk, before the sender hears of the last one
    real, left = dicom.SeriesQueue.store, [int(mode[4:])]
    def store(self, *what):
        found = real(self, *what); left[0] -= 1
        if not left[0]: os.kill(os.getpid(), signal.SIGKILL)
        return found
    dicom.SeriesQueue.store = store
if mode == "full":  # while the file `full` is there, so is the disk
    flush = os.fsync
    def fsync(handle):
        if Path(place, "full").exists(): raise OSError(28, "No space left on device")
        flush(handle)
    os.fsync = fsync
if mode == "small": dicom.MAX_SLICE_BYTES, images.MAX_PIXELS = 20_000, 400
dicom.run_dicom_node(SimpleNamespace(name="abc", labels={1: "bright"}, instances=False, label_map=bright), Path(place), [allow], dicom.parse_archive(to), port=int(port), quiet=3. if mode == "waits" else 1.)
"""


def fake(find):
    "A model that answers a volume by a function of it"
    return SimpleNamespace(name="abc", labels={1: "bright"},
                           instances=False, label_map=lambda image, subject: find(image))


def slices(folder, n=6, series=SERIES, change=lambda k: {}, rows=7, columns=5):
    "A series without symmetry on a turned grid"
    folder.mkdir(parents=True)
    for k in range(n):
        d = pydicom.Dataset()
        d.file_meta = pydicom.dataset.FileMetaDataset()
        d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        d.SOPClassUID, d.SOPInstanceUID, d.PatientID, d.PatientName, d.Modality = (
            CTImageStorage, f"{series}.{k + 1}", "p", "A^B", "CT")
        d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = f"{series}.90", series, f"{series}.91"
        d.Rows, d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation = rows, columns, 1, "MONOCHROME2"
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 12, 11, 0
        d.PixelSpacing, d.ImageOrientationPatient, d.ImagePositionPatient = [1.5, 2], [.8, .6, 0, -.6, .8, 0], [
            10, 20, 30 + 2.5 * k]
        d.PixelData = np.resize(np.arange(35) * 3 + 40 * k, rows * columns).astype(np.uint16).tobytes()
        for name, value in change(k).items(): setattr(d, name, value)
        d.save_as(folder / f"{n - k}.dcm", enforce_file_format=True)
    return folder


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait(true, seconds=180):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(.05)


@contextlib.contextmanager
def archive(port=0, status=0x0000):
    "An archive that keeps each object by its UID, and counts what comes"
    got, ae = [], AE(ae_title="PACS")
    ae.add_supported_context(SegmentationStorage, ExplicitVRLittleEndian)
    ae.require_called_aet, ae.require_calling_aet = True, ["MEDSEG"]
    def keep(event): got.append(event.encoded_dataset()); return status
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    try: yield got, server.socket.getsockname()[1]
    finally: server.shutdown()


class Node:
    "The node in a process of its own"
    def __init__(self, place, to, mode="answers", port=0, allow="SCANNER", **env):
        self.port = port or free_port()
        self.log = open(place.parent / "node.log", "a+")
        env = PLAIN | dict(PYTHONPATH=os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])) | env
        words = [sys.executable, "-c", NODE, str(place), str(self.port),
                 to if isinstance(to, str) else f"PACS@127.0.0.1:{to}", mode, allow]
        begun = self.said().count("listening on")
        self.process = subprocess.Popen(words, stderr=self.log, env=env)
        wait(lambda: self.said().count("listening on") > begun or self.process.poll() is not None)
    def said(self): return open(self.log.name).read()
    def kill(self): self.process.send_signal(signal.SIGKILL); self.process.wait(); self.log.close()


@pytest.fixture
def node(tmp_path):
    "Starts nodes on one queue; the last one is killed at the end"
    running = []
    def start(to, mode="answers"): running.append(Node(tmp_path / "queue", to, mode)); return running[-1]
    yield start
    for n in running:
        if n.process.poll() is None: n.kill()


def push(folder, port, title="SCANNER", called="MEDSEG", release=True) -> list[int | None]:
    "Statuses of what a scanner sends; empty where the node refuses to talk"
    ae = AE(ae_title=title)
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    link = ae.associate("127.0.0.1", port, ae_title=called)
    if not link.is_established: return []
    said = []
    for p in slice_files(folder):
        try: said.append(link.send_c_store(pydicom.dcmread(p)).get("Status"))
        except (RuntimeError, ValueError): said.append(None)
        if said[-1] is None: break
    link.release() if release else link.abort()
    return said


def right(data: bytes, folder, tmp_path) -> bool:
    "The SEG says of the series what the model says"
    image, _ = read_series(folder)
    (tmp_path / "got.dcm").write_bytes(data)
    return (read_seg(tmp_path / "got.dcm", image, dict(bright=1))[0] == (image.array > 150)).all()


def uid(data: bytes) -> str: return pydicom.dcmread(pydicom.filebase.DicomBytesIO(data)).SOPInstanceUID
def of(data: bytes) -> str:
    return pydicom.dcmread(pydicom.filebase.DicomBytesIO(data)).ReferencedSeriesSequence[0].SeriesInstanceUID


def test_round_trip_repeats_and_strangers(node, tmp_path):
    folder = slices(tmp_path / "ct")
    with archive() as (got, to):
        n = node(to)
        assert push(folder, n.port, title="STRANGER") == [] and push(folder, n.port, called="OTHER") == []
        assert not SeriesQueue(tmp_path / "queue").folders(), "a stranger left nothing"
        assert push(folder, n.port) == [0] * 6
        wait(lambda: got)
        assert right(got[0], folder, tmp_path)
        kept = sorted(p.stat().st_mtime_ns for p in (tmp_path / "queue").rglob("slices/*.dcm"))
        assert push(folder, n.port) == [0] * 6 and len(kept) == 6
        time.sleep(2)
        assert (len(got) == 1 and sorted(p.stat().st_mtime_ns for p in (tmp_path / "queue").rglob("slices/*.dcm"))
                == kept), "a repeated send doubles nothing"


@pytest.mark.parametrize("mode", ["dies3", "dies6", "blocks"])
def test_kill_between_store_and_answer_loses_nothing(node, tmp_path, mode):
    folder = slices(tmp_path / "ct")
    with archive() as (got, to):
        first = node(to, mode)
        said = push(folder, first.port)
        if mode == "blocks": wait((tmp_path / "queue" / "blocked").exists); first.kill()
        else: first.process.wait(60)
        assert said == [0] * 6 if mode == "blocks" else said == [0] * (int(mode[4:]) - 1) + [None]
        assert not got
        assert len(list((tmp_path / "queue").rglob("slices/*.dcm"))) == (6 if mode == "blocks" else int(mode[4:])), (
            "what was acknowledged is on disk")
        second = node(to)
        if mode == "dies3": assert push(folder, second.port) == [0] * 6, "the sender comes again"
        wait(lambda: any(right(g, folder, tmp_path) for g in got))
        time.sleep(1.5)
        assert len({uid(g) for g in got}) == len(got)
        if mode != "dies3": assert len(got) == 1


def test_kill_between_sending_and_noting_it_sends_the_same_object(node, tmp_path):
    folder = slices(tmp_path / "ct")
    with archive() as (got, to):
        n = node(to)
        push(folder, n.port); wait(lambda: "sent" in n.said()); n.kill()
        queue = SeriesQueue(tmp_path / "queue")
        queue.update_answer(queue.folders()[0], sent=False)
        node(to); wait(lambda: len(got) == 2)
        assert uid(got[0]) == uid(got[1]) and got[0] == got[1]


def test_archive_away_then_back(node, tmp_path):
    folder, to = slices(tmp_path / "ct"), free_port()
    n = node(to)
    assert push(folder, n.port) == [0] * 6
    wait(lambda: f"PACS@127.0.0.1:{to}: cannot be reached" in n.said())
    with archive(to) as (got, _):
        wait(lambda: got)
        assert right(got[0], folder, tmp_path)


def test_bad_series_is_refused_and_the_node_goes_on(node, tmp_path):
    bad = slices(tmp_path / "bad", series="1.2.7",
                 change=lambda k: dict(ImagePositionPatient=[10, 20 + .5 * k, 30 + 2.5 * k]))
    good = slices(tmp_path / "good")
    with archive() as (got, to):
        n = node(to)
        assert push(bad, n.port) == [0] * 6
        wait(lambda: "tilted gantry" in n.said())
        assert push(good, n.port) == [0] * 6
        wait(lambda: got)
        assert right(got[0], good, tmp_path) and "Traceback" not in n.said()


def test_cut_off_sender_counts_as_complete_after_a_while(node, tmp_path):
    folder = slices(tmp_path / "ct")
    with archive() as (got, to):
        n = node(to)
        push(folder, n.port, release=False)
        wait(lambda: got)
        assert right(got[0], folder, tmp_path)


def test_bad_messages_get_a_status_and_the_node_goes_on(node, tmp_path):
    good = slices(tmp_path / "good")
    with archive() as (got, to):
        n = node(to)
        ae = AE(ae_title="SCANNER")
        ae.requested_contexts = [build_context(CTImageStorage, ExplicitVRLittleEndian),
                                 build_context(SegmentationStorage), build_context(CTImageStorage, JPEGLosslessSV1)]
        link = ae.associate("127.0.0.1", n.port, ae_title="MEDSEG")
        assert [c.transfer_syntax for c in link.accepted_contexts] == [[ExplicitVRLittleEndian]], (
            "no SEG, and nothing that cannot be decoded here")
        d = pydicom.dcmread(slice_files(good)[0])
        d.SeriesInstanceUID = ""
        assert link.send_c_store(d).Status == 0xC000
        d = pydicom.dcmread(slice_files(good)[0])
        d.SOPInstanceUID = d.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
        assert link.send_c_store(d).Status == 0
        d.PixelData = bytes(70)
        assert link.send_c_store(d).Status == 0xC000, "another content under the same UID"
        link.release()
        with socket.create_connection(("127.0.0.1", n.port)) as s: s.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert n.process.poll() is None and "Traceback" not in n.said()


def test_occupied_port_second_node_and_odd_names(tmp_path):
    to, model = DimseArchive("PACS", "127.0.0.1", free_port()), fake(lambda image: image.array)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0)); s.listen()
        with pytest.raises(InputError, match="cannot be listened on .*choose another with --port"):
            run_dicom_node(model, tmp_path / "a", ["SCANNER"], to, port=s.getsockname()[1])
    for allow, fault in (([], "--allow: names nobody"), (["A" * 17], "is no AE title")):
        with pytest.raises(InputError, match=fault): run_dicom_node(model, tmp_path / "a", allow, to, port=0)
    stop = threading.Event()
    running = threading.Thread(target=run_dicom_node, args=(model, tmp_path / "a", ["SCANNER"], to),
                               kwargs=dict(port=0, stop=stop))
    running.start()
    try:
        wait((tmp_path / "a" / "lock").exists); time.sleep(.3)
        with pytest.raises(InputError, match="the queue of another node"):
            run_dicom_node(model, tmp_path / "a", ["SCANNER"], to, port=0)
    finally: stop.set(); running.join()


def test_archive_that_refuses(tmp_path):
    import highdicom
    from medseg_nb.deployment.dicom import to_bytes, to_seg
    image, heads = read_series(slices(tmp_path / "ct"))
    (tmp_path / "s.dcm").write_bytes(
        to_bytes(to_seg((image.array > 150).astype(np.int32), heads, {1: "bright"}, "abc")))
    assert highdicom.seg.segread(tmp_path / "s.dcm").number_of_segments == 1
    with archive(status=0xA900) as (_, to):
        with pytest.raises(InputError, match="did not store the object .status A900"):
            DimseArchive("PACS", "127.0.0.1", to).send(tmp_path / "s.dcm", "MEDSEG")
    with archive(status=0xA700) as (_, to):
        with pytest.raises(ResourceError, match="did not store the object .status A700"):
            DimseArchive("PACS", "127.0.0.1", to).send(tmp_path / "s.dcm", "MEDSEG")
        with pytest.raises(ResourceError, match="refuses this node"):
            DimseArchive("PACS", "127.0.0.1", to).send(tmp_path / "s.dcm", "NOBODY")
    with pytest.raises(ResourceError, match="cannot be reached"):
        DimseArchive("PACS", "127.0.0.1", free_port()).send(tmp_path / "s.dcm", "MEDSEG")


def test_validator_finds_no_error_in_what_is_written(tmp_path):
    from medseg_nb.deployment.dicom import answer_image, to_bytes, to_seg
    validator = needs("dciodvfy")
    full = (dict.fromkeys(["PatientSex", "PatientBirthDate", "ReferringPhysicianName", "StudyID", "StudyDate",
                           "StudyTime", "AccessionNumber", "Manufacturer", "PositionReferenceIndicator", "KVP",
                           "AcquisitionNumber", "Laterality"], "")
            | dict(InstanceNumber=1, SeriesNumber=1, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], SliceThickness=2.5,
                   RescaleSlope=1, RescaleIntercept=0, RescaleType="HU", PatientPosition="HFS"))
    folder = slices(tmp_path / "ct", change=lambda k: full)
    image, heads = read_series(folder)
    mask = (image.array > 150).astype(np.int32)
    one = answer_image(fake(lambda image: (image.array > 150).astype(np.int32)), slice_files(folder)[0])
    assert one.mask.any()
    written = dict(slice_=one.seg, report=one.report, classes=to_seg(mask, heads, {1: "bright"}, "abc"),
                   instances=to_seg(mask, heads, {1: "nucleus"}, "abc", True),
                   none=to_seg(0 * mask, heads, {1: "bright"}, "abc"))
    for name, d in written.items():
        (tmp_path / name).write_bytes(to_bytes(d))
        done = subprocess.run([validator, tmp_path / name], capture_output=True, text=True)
        # of an organ that is not paired
        faults = [line for line in done.stderr.splitlines() if line.startswith("Error") and "Laterality" not in line]
        assert not faults, (name, faults)


def test_full_disk_is_said_to_the_sender_and_the_node_goes_on(node, tmp_path):
    folder = slices(tmp_path / "ct")
    with archive() as (got, to):
        n = node(to, "full")
        (tmp_path / "queue" / "full").touch()
        assert push(folder, n.port) == [0xA700] * 6, "out of resources"
        assert not list((tmp_path / "queue").rglob("slices/*.dcm")) and n.said().count("the disk is full") == 6
        (tmp_path / "queue" / "full").unlink()
        assert push(folder, n.port) == [0] * 6
        wait(lambda: got)
        assert right(got[0], folder, tmp_path) and "Traceback" not in n.said()


def test_disk_that_fills_before_the_answer(node, tmp_path):
    folder = slices(tmp_path / "ct")
    with archive() as (got, to):
        first = node(to, "blocks")
        push(folder, first.port); wait((tmp_path / "queue" / "blocked").exists); first.kill()
        (tmp_path / "queue" / "full").touch()
        n = node(to, "full")
        wait(lambda: "the disk is full" in n.said())
        (tmp_path / "queue" / "full").unlink()
        wait(lambda: got)
        assert right(got[0], folder, tmp_path) and "Traceback" not in n.said()


def test_large_slice_and_large_volume_are_refused_and_the_node_goes_on(node, tmp_path):
    slice_, volume, good = slices(tmp_path / "slice", 1, "1.2.7", rows=100,
                                  columns=200), slices(tmp_path / "volume", 12, "1.2.8"), slices(tmp_path / "good")
    with archive() as (got, to):
        n = node(to, "small")
        assert push(slice_, n.port) == [None], "cut off"
        assert push(volume, n.port) == [0] * 12
        wait(lambda: "above the limit of 400" in n.said())
        assert push(good, n.port) == [0] * 6
        wait(lambda: got)
        lines = n.said().splitlines()
        assert (sum("is larger than 20000 bytes" in x for x in lines) == 1
                and sum("above the limit" in x for x in lines) == 1 and "Traceback" not in n.said())
        assert right(got[0], good, tmp_path) and len(SeriesQueue(tmp_path / "queue").folders()) == 2


def test_series_that_takes_the_node_down_is_refused_in_the_end(node, tmp_path):
    "As the kernel does where memory ends"
    fatal, good = slices(tmp_path / "fatal", series="1.2.7"), slices(tmp_path / "good", 5)
    with archive() as (got, to):
        n = node(to, "falls")
        push(fatal, n.port)
        for _ in range(3): n.process.wait(60); n = node(to, "falls")
        wait(lambda: "ended 3 times while it answered" in n.said())
        assert push(good, n.port) == [0] * 5
        wait(lambda: got)
        assert right(got[0], good, tmp_path)


def test_damaged_files_of_the_queue_cost_themselves_alone(node, tmp_path):
    "The node ends before anything is sent; then each kind of its files is damaged"
    places, to = [slices(tmp_path / f"ct{k}", series=f"1.2.7.{k}") for k in range(3)], free_port()
    first = node(to)
    for folder in places: assert push(folder, first.port) == [0] * 6
    wait(lambda: first.said().count(": answered") == 3); first.kill()
    queue = SeriesQueue(tmp_path / "queue")
    segs = queue.list_unsent()[::2]  # each is followed by its report
    uids = {p.stem for p in segs}
    segs[0].write_bytes(b""); segs[1].write_bytes(segs[1].read_bytes()[:-40])
    (segs[2].parent / "answer.json").write_bytes(b""); (segs[2].parent / "released").write_bytes(b"\xff")
    with archive(to) as (got, _):
        n = node(to)
        wait(lambda: len({uid(g) for g in got}) == 3)
        assert ({uid(g) for g in got} == uids
                and all(any(right(g, f, tmp_path) for g in got if of(g) == f"1.2.7.{k}") for k, f in enumerate(places)))
        assert n.said().count("is damaged or lost, and is made again") == 2 and "Traceback" not in n.said()


def test_silent_connections_cost_an_allowed_sender_nothing(node, tmp_path):
    folder = slices(tmp_path / "ct")
    with archive() as (got, to), contextlib.ExitStack() as stack:
        n = node(to)
        ae = AE(ae_title="SCANNER")
        ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        early = ae.associate("127.0.0.1", n.port, ae_title="MEDSEG")
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", n.port))) for _ in range(100)]
        for s in silent[::2]: s.sendall(b"\1\0\0\0\1\0")  # the beginning of a request, and no more
        time.sleep(.5)
        assert push(folder, n.port) == [0] * 6, "who is allowed is heard at once"
        assert early.send_c_store(pydicom.dcmread(slice_files(folder)[0])).Status == 0, (
            "and who was heard is not cut off")
        early.release()
        for s in silent:
            s.settimeout(15)
            with contextlib.suppress(ConnectionResetError): assert s.recv(100)[:1] in (b"", b"\7"), "closed, or aborted"
        wait(lambda: got)
        assert right(got[0], folder, tmp_path) and "Traceback" not in n.said()


def test_series_over_two_associations_gets_one_answer_and_a_grown_one_replaces_it(node, tmp_path):
    whole, part, later = slices(tmp_path / "ct"), slices(tmp_path / "part"), slices(tmp_path / "later", n=8)
    for p in slice_files(part)[3:]: p.unlink()
    with archive() as (got, to):
        n = node(to, "waits")
        # what is slow the first time is done
        push(slices(tmp_path / "first", series="1.2.7"), n.port); wait(lambda: got); got.clear()
        assert push(part, n.port) == [0] * 3
        time.sleep(1)
        assert push(whole, n.port) == [0] * 6
        wait(lambda: got); time.sleep(1)
        assert len(got) == 1 and right(got[0], whole, tmp_path)
        assert push(later, n.port) == [0] * 8
        wait(lambda: len(got) == 2)
        again = pydicom.dcmread(pydicom.filebase.DicomBytesIO(got[1]))
        assert (right(got[1], later, tmp_path) and uid(got[0]) in again.DerivationDescription
                and "replaces an earlier answer" in again.ContentDescription)
        assert f"answered; replaces {uid(got[0])}" in n.said() and uid(got[0]) != uid(got[1])


# Headers that the standard does not allow

ODD = dict(StudyDate="00000000", PatientBirthDate="unknown ", StudyTime="99:99 ",
           PatientSex="Q ", SpecificCharacterSet="UTF-8 ", PatientName="A^B\r\nerror: forged\x1b[31m ",
           AccessionNumber="A" * 40, SeriesNumber="abc ", PatientAge="old ", StudyID="S" * 20)
GRAVE = dict(SOPClassUID="1.2.3.999 ", SliceThickness="Name", ImagePositionPatient="1\\2 ",
             PatientID="7" * 80, StudyInstanceUID="Planted^Name", RescaleSlope="Name", PixelSpacing="a\\b ")


def spoil(path, name: str, text: str):
    "Write a text into an element, whatever the standard says of it"
    d = pydicom.dcmread(path)
    d[name] = pydicom.dataelem.RawDataElement(pydicom.tag.Tag(name), pydicom.datadict.dictionary_VR(name),
                                              len(text), text.encode(), 0, False, True)
    d.save_as(path)
    return path


FULL = dict.fromkeys(["PatientSex", "PatientBirthDate", "ReferringPhysicianName", "StudyID",
                      "StudyDate", "StudyTime", "AccessionNumber", "Manufacturer", "PositionReferenceIndicator"], "") \
    | dict(SliceThickness=2.5, RescaleSlope=1, RescaleIntercept=0)


def test_odd_headers_give_a_valid_seg_and_grave_ones_a_refusal(tmp_path):
    from medseg_nb.deployment.dicom import answer_image, to_bytes
    validator = needs("dciodvfy")
    model = fake(lambda image: (image.array > 150).astype(np.int32))
    for name, text in ODD.items():
        folder = slices(tmp_path / name, change=lambda k: FULL)
        for p in slice_files(folder): spoil(p, name, text)
        for place in (folder, slice_files(folder)[0]):
            (tmp_path / "seg.dcm").write_bytes(to_bytes(answer_image(model, place).seg))
            done = subprocess.run([validator, tmp_path / "seg.dcm"], capture_output=True, text=True)
            assert not [x for x in done.stderr.splitlines() if x.startswith("Error") and "Laterality" not in x], (
                (name, done.stderr))
    for name, text in GRAVE.items():
        folder = slices(tmp_path / name, change=lambda k: FULL)
        for p in slice_files(folder): spoil(p, name, text)
        for place in (folder, slice_files(folder)[2]):
            with pytest.raises(InputError, match="/[1-6].dcm: ") as e: answer_image(model, place)
            assert ("\n" not in str(e.value)
                    and not [w for w in ("Name", "7777", "a\\", "999")
                             if w in str(e.value).replace(str(folder), "")]), e.value


def test_predict_outlives_every_header(tmp_path, monkeypatch, fresh):
    "The batch goes on, predict.csv is written, and the code is 3"
    from medseg_nb.deployment.segmenter import Segmenter
    model = Segmenter("grey", ["grey"], (8, 8), "none",
                      {1: "bright"}, False, lambda x, sizes: [np.ones(s, np.int32) for s in sizes], None)
    monkeypatch.setattr("medseg_nb.deployment.predict.load_segmenter", lambda name: model)
    (tmp_path / "in").mkdir()
    for name, text in (ODD | GRAVE).items():
        one = slices(tmp_path / name, 1, change=lambda k: FULL) / "1.dcm"
        spoil(one, name, text).rename(tmp_path / "in" / f"{name}.dcm")
    (slices(tmp_path / "good", 1, change=lambda k: FULL) / "1.dcm").rename(tmp_path / "in" / "good.dcm")
    (tmp_path / "in" / "self.mhd").write_text(
        "ObjectType = Image\nNDims = 2\nDimSize = 4 4\nElementType = MET_UCHAR\nElementDataFile = self.mhd\n")
    (tmp_path / "in" / "caf\udce9.dcm").write_bytes((tmp_path / "in" / "good.dcm").read_bytes())
    done = fresh.call("predict", "grey", tmp_path / "in", "--out", tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "predict.csv").set_index("file")
    assert done.returncode == 3 and "Traceback" not in done.stderr and len(table) == len(ODD) + len(GRAVE) + 3
    assert ((table.status[[f"{n}.dcm" for n in (*ODD, "good")]] == "done").all()
            and (table.status == "done").sum() == len(ODD) + 1)
    reasons = table.reason[table.status != "done"]
    assert (all(name in reason and "; " in reason for name, reason in reasons.items())
            and "is not UTF-8; rename it" in reasons["caf\\udce9.dcm"] and "names itself" in reasons["self.mhd"])
    assert len(list((tmp_path / "out").glob("*.dcm"))) == len(ODD) + 1


def test_page_answers_every_header(tmp_path):
    from test_app import served
    from medseg_nb.deployment.segmenter import Segmenter
    model = Segmenter("grey", ["grey"], (8, 8), "none",
                      {1: "bright"}, False, lambda x, sizes: [np.ones(s, np.int32) for s in sizes], None)
    with served(model) as page:
        for name, text in (ODD | GRAVE).items():
            files = slice_files(slices(tmp_path / name, 3, change=lambda k: FULL))
            for p in files: spoil(p, name, text)
            for some in (files, files[:1]):
                answer = page.client.post("/api/cases", files=[("files", (p.name, p.read_bytes())) for p in some])
                assert answer.status_code in ((201,) if name in ODD else (201, 400)), (name, answer.text)
                if answer.status_code == 400:
                    assert answer.json()["error"].split(":")[0] in {p.name for p in files} | {"slice.dcm"}, answer.text
                else:
                    seg = page.client.get(f"/api/cases/{answer.json()['id']}/mask.dcm")
                    assert seg.status_code == (200 if name in ODD else 400), (name, seg.text)
                    page.client.delete(f"/api/cases/{answer.json()['id']}")
        assert not page.said


def test_no_name_reaches_a_log(tmp_path):
    """Prediction, explanation, page and node on good and bad files with unique values in every text element; all that
    was said is searched"""
    paths = os.pathsep.join([str(REPO), str(REPO / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-W", "always", str(REPO / "tests" / "planted.py"), str(tmp_path)],
                          env=PLAIN | dict(PYTHONPATH=paths), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    said = "\n".join([done.stdout, done.stderr, (tmp_path / "said.txt").read_text(encoding="utf-8")]).lower()
    planted = (tmp_path / "planted.txt").read_text(encoding="utf-8").lower().splitlines()
    assert len(planted) > 10_000 and not [p for p in planted if p in said]
    assert ("zq" not in said and "77777" not in said and "forged line" not in said
            and "\x1b" not in said and "traceback" not in said)
    assert said.count("error: ") > 10 and ": refused: " in said and "segmented" in said


# Series that must be refused, and what the node's one line says. Each reader's rows through a data set: test_corpus.py;
# through predict: test_bad_input.py.

FAULTY = {  # row of the list of bad inputs, and its number
    "24 short pixels": (lambda k: dict(PixelData=bytes(20)) if k == 2 else {}, "cut short"),
    "28 missing slice": (lambda k: dict(ImagePositionPatient=[10, 20, 30 + 2.5 * (k + (k > 2))]), "a slice is missing"),
    "29 tilted gantry": (lambda k: dict(ImagePositionPatient=[10, 20 + .5 * k, 30 + 2.5 * k]), "tilted gantry"),
    "30 position twice": (lambda k: dict(ImagePositionPatient=[10, 20, 30 + 2.5 * max(k, 1)]), "at the same position"),
    "32 two patients": (lambda k: dict(PatientID=f"p{k // 3}"), "several patients"),
    "32 two orientations": (lambda k: dict(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]) if k else {},
                            "ImageOrientationPatient differs"),
    "several frames": (lambda k: dict(NumberOfFrames=2), "several frames"),
    "no position": (lambda k: dict(ImagePositionPatient=None) if k == 2 else {}, "has no ImagePositionPatient"),
    "rescale on some slices": (lambda k: dict(RescaleSlope=1, RescaleIntercept=-1024) if k < 3 else {},
                               "in whether it has RescaleSlope"),
    "slope of zero": (lambda k: dict(RescaleSlope=0, RescaleIntercept=5), "its RescaleSlope is 0"),
    "orientation of zeros": (lambda k: dict(ImageOrientationPatient=[0] * 6), "no pair of unit vectors"),
    "long id": (lambda k: dict(PatientID="7" * 80), "its PatientID has a value that the standard does not allow"),
}


def test_every_faulty_series_gets_one_line_and_the_node_goes_on(node, tmp_path):
    with archive() as (got, to):
        n = node(to)
        for number, (change, _) in enumerate(FAULTY.values()):
            assert push(slices(tmp_path / str(number), series=f"1.2.7.{number}", change=change), n.port) == [0] * 6
        # 31: each slice by its own
        mixed = slices(tmp_path / "mixed", series="1.2.8", change=lambda k: dict(RescaleSlope=1, RescaleIntercept=k))
        # 32: the node groups by series
        two = slices(tmp_path / "two", n=12, change=lambda k: dict(SeriesInstanceUID=f"1.2.9.{k // 6}"))
        assert push(mixed, n.port) == [0] * 6 and push(two, n.port) == [0] * 12
        wait(lambda: len(got) == 3 and n.said().count("refused: ") == len(FAULTY))
        lines = [x for x in n.said().splitlines() if "refused: " in x]
        assert all(sum(fault in x for x in lines) == 1 for _, fault in FAULTY.values()), lines
        assert (right(next(g for g in got if "1.2.8" == of(g)), mixed, tmp_path)
                and sorted(of(g) for g in got) == ["1.2.8", "1.2.9.0", "1.2.9.1"] and "Traceback" not in n.said())


# The web: STOW-RS

@contextlib.contextmanager
def web(status=200, answer=lambda uid: {"00081199": dict(vr="SQ", Value=[{"00081155": dict(vr="UI", Value=[uid])}])},
        kind="application/dicom+json"):
    "A web server that answers each POST in one way"
    class Server(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found = pydicom.dcmread(
                pydicom.filebase.DicomBytesIO(body.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]))
            said = answer(found.SOPInstanceUID)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Location", "http://127.0.0.1:1/"); (self.end_headers())
            self.wfile.write(said if isinstance(said, bytes) else json.dumps(said).encode())
        def log_message(self, *what): pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f"http://127.0.0.1:{server.server_port}/dicom-web"
    finally: server.shutdown(); server.server_close()


FAILED = {"00081198": dict(vr="SQ", Value=[{"00081197": dict(vr="US", Value=[0xA900])}])}


@pytest.mark.parametrize("status, answer, kind, fault, error", [
    (401, b"", "text/plain", "refuses user or password .status 401.; set MEDSEG_DICOMWEB_USER", ResourceError),
    (409, b"", "text/plain", "did not store the object .status 409", InputError),
    (503, b"", "text/plain", "did not store the object .status 503", ResourceError),
    (302, b"", "text/plain", "did not store the object .status 302", ResourceError),
    (200, b"<html>welcome</html>", "text/html", "does not answer as DICOMweb does", ResourceError),
    (200, b"{", "application/dicom+json", "does not answer as DICOMweb does", ResourceError),
    (200, {}, "application/dicom+json", "does not answer as DICOMweb does", ResourceError),
    (200, FAILED, "application/dicom+json", "did not store the object .reason A900", InputError)],
    ids=["password", "conflict", "busy", "redirection", "page", "broken", "silent", "failed"])
def test_web_archive_that_refuses(tmp_path, status, answer, kind, fault, error):
    from medseg_nb.deployment.dicom import to_bytes, to_seg
    image, heads = read_series(slices(tmp_path / "ct"))
    (tmp_path / "s.dcm").write_bytes(
        to_bytes(to_seg((image.array > 150).astype(np.int32), heads, {1: "bright"}, "abc")))
    with web(status, lambda uid: answer, kind) as url:
        with pytest.raises(error, match=fault) as e: DicomWebArchive(url).send(tmp_path / "s.dcm", "MEDSEG")
        assert "\n" not in str(e.value) and "kept and sent again" in str(e.value)
    with web() as url: DicomWebArchive(url).send(tmp_path / "s.dcm", "MEDSEG")
    with web(answer=lambda uid: {"00081198": dict(vr="SQ"),
                                 "00081199": dict(vr="SQ", Value=[{"00081155": dict(vr="UI", Value=[uid])}])}) as url:
        DicomWebArchive(url).send(tmp_path / "s.dcm", "MEDSEG")  # a list of failures that is empty is none


def test_round_trip_through_orthanc(tmp_path):
    orthanc, unshare = needs("Orthanc"), needs("unshare", of="orthanc")
    plugin = needs("libOrthancDicomWeb.so", of="orthanc", path="/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
    # a container may forbid it
    if subprocess.run([unshare, "-rn", "true"], capture_output=True).returncode:
        needs("a network namespace", of="orthanc")
    paths = os.pathsep.join([str(REPO), str(REPO / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [unshare, "-rn", sys.executable, str(REPO / "tests" / "orthanc_trip.py"), orthanc, plugin, str(tmp_path)],
        env=PLAIN | dict(PYTHONPATH=paths),
                          capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and done.stdout.strip() == "equal, equal", done.stderr[-2000:]


def test_what_is_required_fails_and_what_is_not_is_skipped(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDSEG_REQUIRE", "orthanc,nosuch")
    with pytest.raises(pytest.fail.Exception, match="nosuch is not installed, and MEDSEG_REQUIRE asks for nosuch"):
        needs("nosuch")
    with pytest.raises(pytest.fail.Exception, match="asks for orthanc"):
        needs("plugin.so", of="orthanc", path=str(tmp_path / "plugin.so"))
    with pytest.raises(BaseException, match="^other is not installed$") as e: needs("other")
    assert e.type.__name__ == "Skipped"
    assert needs("python3") and needs("x", path=str(tmp_path)) == str(tmp_path)
