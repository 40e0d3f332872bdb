"Sizes of a mask as a structured report beside the SEG: what it says, to whom it goes, and what a validator says of it."
import subprocess
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from conftest import needs
from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian, SegmentationStorage
from pynetdicom import AE, evt
from test_dicom import slices

from medseg_nb.deployment.dicom import (NOTHING_FOUND, DimseArchive, SeriesQueue, answer_due, answer_image, send_unsent,
                                        slice_files, to_bytes)
from medseg_nb.deployment.web import NOTE
from medseg_nb.kit.core import InputError

FULL = dict.fromkeys("PatientSex PatientBirthDate ReferringPhysicianName StudyID StudyDate StudyTime AccessionNumber "
                     "Manufacturer PositionReferenceIndicator".split(), "") | dict(SliceThickness=2.5)


def model(find, labels=None, instances=False):
    return SimpleNamespace(name="abc", labels=labels or {1: "bright", 3: "dark ü"}, instances=instances,
                           label_map=lambda image, subject: find(image.array).astype(np.int32))


def both(array): return np.where(array > 150, 1, np.where(array < 60, 3, 0))


def items(d):
    "All items of a report's tree, as (name, value) in their order"
    for item in d.get("ContentSequence", []):
        name = item.ConceptNameCodeSequence[0].CodeMeaning if "ConceptNameCodeSequence" in item else item.ValueType
        if item.ValueType == "NUM":
            number = item.MeasuredValueSequence[0]
            yield name, (float(number.NumericValue), number.MeasurementUnitsCodeSequence[0].CodeValue)
        elif item.ValueType == "CODE": yield name, item.ConceptCodeSequence[0].CodeMeaning
        elif item.ValueType == "IMAGE":
            reference = item.ReferencedSOPSequence[0]
            yield name, (reference.ReferencedSOPInstanceUID, int(reference.ReferencedSegmentNumber))
        else: yield name, item.get("TextValue", item.get("UID"))
        yield from items(item)


def read_again(answer, place):
    place.write_bytes(to_bytes(answer.report))
    found = {}
    for name, value in items(pydicom.dcmread(place)): found.setdefault(name, []).append(value)
    return found


def test_volumes_are_those_of_voxels_that_are_counted_one_by_one(tmp_path):
    folder = slices(tmp_path / "ct", change=lambda k: FULL)
    answer = answer_image(model(both), folder)
    counts = {1: 0, 3: 0}  # from the files, with neither the kit's reader nor its mask
    for p in folder.iterdir():
        for v in pydicom.dcmread(p).pixel_array.ravel().tolist(): counts[1] += v > 150; counts[3] += v < 60
    found, voxel = read_again(answer, tmp_path / "r.dcm"), 1.5 * 2 * 2.5 / 1000  # ml
    assert min(counts.values()) > 5
    assert found["Volume"] == [(pytest.approx(n * voxel, abs=1e-6), "ml") for n in counts.values()]
    assert found["Finding"] == found["Tracking Identifier"] == ["bright", "dark ü"] and "Presence" not in found
    assert found["Referenced Segment"] == [(answer.seg.SOPInstanceUID, n) for n in (1, 2)]
    assert set(found["Algorithm Parameters"]) == {NOTE}
    assert (answer.report.VerificationFlag, answer.report.CompletionFlagDescription) == ("UNVERIFIED", NOTE)
    assert (answer.report.PatientID, answer.report.StudyInstanceUID) == ("p", answer.seg.StudyInstanceUID)
    assert answer_image(model(both), folder).report.SOPInstanceUID == answer.report.SOPInstanceUID


def test_each_instance_has_a_row_and_a_single_slice_an_area(tmp_path):
    folder = slices(tmp_path / "ct", change=lambda k: FULL)
    def three(array):
        found = np.zeros(array.shape)
        found[0, 0], found[1:3, 0], found[4, 4] = 2, 5, 9
        return found
    found = read_again(answer_image(model(three, {1: "nucleus"}, True), folder), tmp_path / "r.dcm")
    assert found["Finding"] == ["nucleus 2", "nucleus 5", "nucleus 9"]
    assert [v for v, _ in found["Volume"]] == pytest.approx([6 * .0075, 12 * .0075, 6 * .0075])
    found = read_again(answer_image(model(three, {1: "nucleus"}, True), slice_files(folder)[0]), tmp_path / "r.dcm")
    assert found["Area"][0] == (pytest.approx(1.5 * 2), "mm2") and "Volume" not in found, "one pixel"


@pytest.mark.parametrize("instances", [False, True])
def test_nothing_found_is_zero_and_said_so(tmp_path, instances):
    folder = slices(tmp_path / "ct", change=lambda k: FULL)
    found = read_again(answer_image(model(np.zeros_like, {1: "lesion"}, instances), folder), tmp_path / "r.dcm")
    assert found["Volume"] == [(0, "ml")] and found["Presence"] == [NOTHING_FOUND]
    one_of_two = read_again(answer_image(model(lambda a: a > 150), folder), tmp_path / "r.dcm")
    assert one_of_two["Volume"][1] == (0, "ml") and one_of_two["Presence"] == [NOTHING_FOUND]


def test_validator_finds_no_error(tmp_path):
    validator = needs("dciodvfy")
    folder = slices(tmp_path / "ct", change=lambda k: FULL)
    for n, (m, path) in enumerate([(model(both), folder), (model(np.zeros_like), folder),
                                   (model(lambda a: np.arange(a.size).reshape(a.shape), {1: "x"}, True), folder),
                                   (model(both), slice_files(folder)[0])]):
        answer = answer_image(m, path)
        for kind, d in (("seg", answer.seg), ("report", answer.report)):
            (tmp_path / kind).write_bytes(to_bytes(d))
            done = subprocess.run([validator, tmp_path / kind], capture_output=True, text=True)
            assert not [line for line in done.stderr.splitlines() if line.startswith("Error")], (n, kind, done.stderr)
            assert ("ComprehensiveSR" if kind == "report" else "Segmentation") in done.stderr


@pytest.mark.parametrize("takes_reports", [True, False])
def test_archive_gets_seg_and_report_or_the_seg_alone_and_a_line(tmp_path, takes_reports):
    got, said, ae = [], [], AE(ae_title="PACS")
    for kind in (SegmentationStorage, ComprehensiveSRStorage)[:1 + takes_reports]:
        ae.add_supported_context(kind, ExplicitVRLittleEndian)
    def keep(event): got.append(event.dataset.Modality); return 0
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    try:
        queue = SeriesQueue(tmp_path / "queue", quiet=0)
        for p in slice_files(slices(tmp_path / "ct", change=lambda k: FULL)):
            queue.store(pydicom.dcmread(p), p.read_bytes())
        answer_due(queue, model(both), said.append)
        to = DimseArchive("PACS", "127.0.0.1", server.socket.getsockname()[1])
        for n in range(2): assert send_unsent(queue, lambda path: to.send(path, "MEDSEG"), said.append)
    finally: server.shutdown()
    assert got == ["SEG", "SR"][:1 + takes_reports] and not queue.open, "once each, and finished"
    assert ("report sent" in said[-1]) is takes_reports
    assert takes_reports or "its report is refused, the SEG is kept there" in said[-1] and "\n" not in said[-1]


def test_report_whose_send_failed_goes_alone(tmp_path):
    queue, said, sent = SeriesQueue(tmp_path / "queue", quiet=0), [], []
    for p in slice_files(slices(tmp_path / "ct")): queue.store(pydicom.dcmread(p), p.read_bytes())
    answer_due(queue, model(both), said.append)
    seg, report = queue.list_unsent()
    def falls(path):
        if path == report: raise RuntimeError("a bug")
        sent.append(path)
    assert not send_unsent(queue, falls, said.append) and sent == [seg] and queue.list_unsent() == [report]
    report.write_bytes(report.read_bytes()[:-1] + b"x")
    assert send_unsent(queue, sent.append, said.append) and "is made again" in said[-1] and sent == [seg]
    with pytest.raises(InputError, match="no name"): answer_image(model(lambda a: a * 0 + 7), tmp_path / "ct")
