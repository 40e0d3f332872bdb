"Names that are planted wherever they leak: none is in what is written, and the pictures are the same."
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pydicom
import pytest
from conftest import needs
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (CTImageStorage, EncapsulatedPDFStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian,
                         MRImageStorage, RLELossless, SecondaryCaptureImageStorage, UltrasoundImageStorage)

from medseg_nb.deployment.deidentify import deidentify_folder
from medseg_nb.images.files import read_image
from medseg_nb.kit.core import InputError

UID, DATES = "1.2.826.0.1.3680043.10.99", ("19510203", "20200304", "1951", "101112")
NAMES = {"latin": ("ISO_IR 100", "Müßig^Jörg"), "utf8": ("ISO_IR 192", "Łukasiewicz^Żaneta"),
         "japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう")}
TEXTS = """StudyDescription SeriesDescription PatientComments InstitutionName OperatorsName ImageComments ProtocolName
DeviceSerialNumber StationName RequestingPhysician PatientAddress OtherPatientIDs EthnicGroup AdmissionID""".split()


def put(d, kind, name):
    "A name in every place of a dataset"
    d.SpecificCharacterSet, d.PatientName, d.ReferringPhysicianName = kind, name, name
    for word in TEXTS: setattr(d, word, name)
    for word in ("Laterality", "BodyPartExamined", "ScanOptions", "RescaleType"): setattr(d, word, "MUSTER")
    inner, outer = Dataset(), Dataset()
    inner.PatientName = inner.CodeMeaning = name
    inner.private_block(0x13, "MUSTER", create=True).add_new(1, "LO", name)
    outer.ReferencedStudySequence, outer.StudyDate = [inner], "20200304"
    outer.LUTDescriptor, outer.LUTExplanation, outer.LUTData = [2, 0, 16], name, b"\0\0\xff\xff"
    d.RequestAttributesSequence, d.VOILUTSequence = [outer], [outer]
    d.private_block(0x11, name.encode("unicode_escape").decode(), create=True).add_new(1, "UN", name.encode())
    d.add_new(0x60003000, "OB", name.encode() + b" " * (len(name.encode()) % 2)); d.add_new(0x00204000, "LT", name)


def picture(k, kind="ISO_IR 100", name="Müßig^Jörg", uid=UID, sop=CTImageStorage):
    d = Dataset()
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID, d.file_meta.SourceApplicationEntityTitle = ExplicitVRLittleEndian, "MUSTER"
    put(d, kind, name)
    d.SOPClassUID, d.SOPInstanceUID, d.SeriesInstanceUID = sop, f"{uid}.{k + 1}", uid
    d.StudyInstanceUID, d.FrameOfReferenceUID = f"{uid}.90", f"{uid}.91"
    d.Modality = "MR" if sop == MRImageStorage else "CT"
    d.PatientID, d.PatientBirthDate, d.StudyDate, d.StudyTime = f"MUSTER-{name[:1]}", "19510203", "20200304", "101112"
    d.ImageType, d.InstanceNumber, d.SeriesNumber = ["ORIGINAL", "PRIMARY", "AXIAL", "MUSTER"], k + 1, 3
    d.Rows, d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation = 7, 5, 1, "MONOCHROME2"
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 12, 11, 0
    d.PixelSpacing, d.ImageOrientationPatient, d.SliceThickness = [1.5, 2], [.8, .6, 0, -.6, .8, 0], 2.5
    d.ImagePositionPatient, d.RescaleSlope, d.RescaleIntercept = [10, 20, 30 + 2.5 * k], 1, -1024
    d.KVP, d.AcquisitionNumber, d.PatientPosition, d.PatientSex = 120, 1, "HFS", "O"
    d.RescaleType = "HU"
    if sop == MRImageStorage:
        d.ScanningSequence, d.SequenceVariant, d.MRAcquisitionType = "SE", "NONE", "2D"
        d.EchoTime, d.EchoTrainLength = 9, 1
        d.RepetitionTime = 500
        del d.RescaleSlope, d.RescaleIntercept, d.RescaleType
    d.PixelData = (np.arange(35) * 3 + 40 * k).astype(np.uint16).tobytes() + "Müßig".encode()
    d.preamble = name.encode()[:128].ljust(128)
    return d


def save(d, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    d.save_as(path, enforce_file_format=True)
    return path


def forms(name):
    "A name's parts as they may lie in a file"
    parts = [p for group in name.split("=") for p in group.split("^")]
    for part in [*parts, "MUSTER", "Muster"]:
        for code in ("utf-8", "latin-1", "iso2022_jp", "shift_jis", "euc_jp", "utf-16-le", "iso8859-2"):
            try: yield part.encode(code)
            except UnicodeEncodeError: continue
        yield part.encode("unicode_escape")


def outputs(out): return sorted(out.rglob("*.dcm"))


@pytest.fixture
def hospital(tmp_path):
    "Three patients, whose names are in file names too"
    for n, (word, (kind, name)) in enumerate(NAMES.items()):
        sop = MRImageStorage if n else CTImageStorage
        for k in range(3):
            save(picture(k, kind, name, f"{UID}.{n}", sop), tmp_path / "in" / name.split("=")[-1] / f"{name}_{k}.dcm")
    return tmp_path


def test_no_planted_name_is_in_any_byte_and_the_pictures_are_the_same(hospital):
    (hospital / "key").write_text("k" * 64)  # hashes of a drawn key hold any four digits in one run of eight
    (hospital / "key").chmod(0o600)
    rows = deidentify_folder(hospital / "in", hospital / "out", hospital / "key")
    assert [r["fault"] for r in rows] == [""] * 9 and len(outputs(hospital / "out")) == 9
    planted = {f for _, name in NAMES.values() for f in forms(name)}
    for p in (hospital / "in").rglob("*.dcm"): assert any(f in p.read_bytes() for f in planted), "planted indeed"
    for p in (hospital / "out").rglob("*"):
        content = str(p.relative_to(hospital / "out")).encode() + (p.read_bytes() if p.is_file() else b"")
        assert not [f for f in planted if f in content], p
        assert not [w for w in (*DATES, UID) if w.encode() in content], p
    for row in rows:
        old, new = pydicom.dcmread(row["file"]), pydicom.dcmread(hospital / "out" / row["written"])
        assert (old.pixel_array == new.pixel_array).all() and new.preamble == bytes(128)
        for word in ("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "Modality", "InstanceNumber"):
            assert old[word].value == new[word].value, word
        assert not [e for e in new.iterall() if e.tag.is_private or e.VR in ("DA", "DT", "TM", "PN") and e.value]
        assert list(new.VOILUTSequence[0].LUTDescriptor) == [2, 0, 16] and "LUTExplanation" not in new.VOILUTSequence[0]
    originals = {p.parent for p in (hospital / "in").rglob("*.dcm")}
    places = {p.parent for p in outputs(hospital / "out")}
    def content(places): return sorted(read_image(p).array.tobytes() + read_image(p).affine.tobytes() for p in places)
    assert len(places) == 3 and content(places) == content(originals)


def test_uids_follow_the_key_alone(hospital):
    def uids(out, key):
        deidentify_folder(hospital / "in", hospital / out, hospital / key)
        found = [pydicom.dcmread(p) for p in outputs(hospital / out)]
        return [{str(d[w].value) for d in found} for w in ("SOPInstanceUID", "SeriesInstanceUID", "PatientID",
                                                           "FrameOfReferenceUID")]
    one, again, other = uids("a", "key"), uids("b", "key"), uids("c", "another")
    assert one == again and [len(s) for s in one] == [9, 3, 3, 3]
    assert not any(a & b for a, b in zip(one, other))
    if os.name == "posix": assert (hospital / "key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(InputError, match="was begun with another key"):
        deidentify_folder(hospital / "in", hospital / "a", hospital / "another")


def test_validator_finds_no_error(hospital):
    validator = needs("dciodvfy")
    deidentify_folder(hospital / "in", hospital / "out", hospital / "key")
    for p in outputs(hospital / "out"):
        done = subprocess.run([validator, p], capture_output=True, text=True)
        # of an organ that is not paired
        faults = [x for x in done.stderr.splitlines() if x.startswith("Error") and "Laterality" not in x]
        assert not faults, faults


REFUSED = {
    "says so": (dict(BurnedInAnnotation="YES"), "text is burned in"),
    "screen": (dict(SOPClassUID=SecondaryCaptureImageStorage, Modality="OT"), "modality OT"),
    "screen of a ct": (dict(SOPClassUID=SecondaryCaptureImageStorage), "a screen or an ultrasound picture"),
    "ultrasound": (dict(SOPClassUID=UltrasoundImageStorage, Modality="US"), "modality US"),
    "derived": (dict(ImageType=["DERIVED", "SECONDARY"]), "image type is secondary"),
    "odd statement": (dict(BurnedInAnnotation="MAYBE"), "neither YES nor NO"),
    "pdf": (dict(SOPClassUID=EncapsulatedPDFStorage), "a report or a document"),
    "report": (dict(SOPClassUID="1.2.840.10008.5.1.4.1.1.88.33"), "a report or a document"),
    "private kind": (dict(SOPClassUID="1.3.12.2.1107.5.9.1"), "no picture of a standard kind"),
    "movie": (dict(NumberOfFrames=2), "several frames of another kind"),
    "short": (dict(PixelData=bytes(20)), "is cut short .20 of 70 bytes"),
    "bare": (dict(SeriesInstanceUID=""), "has no SeriesInstanceUID")}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_costs_one_line_and_no_other_file(tmp_path, name):
    change, fault = REFUSED[name]
    d = picture(0)
    for word, value in change.items(): setattr(d, word, value)
    save(d, tmp_path / "in" / "bad.dcm"); save(picture(1), tmp_path / "in" / "good.dcm")
    bad, good = deidentify_folder(tmp_path / "in", tmp_path / "out", tmp_path / "key")
    assert "\n" not in bad["fault"] and bad["fault"].count(";") == 1 + (";" in fault), bad
    with pytest.raises(AssertionError, match=fault): raise AssertionError(bad["fault"])
    assert good["written"] and len(outputs(tmp_path / "out")) == 1


def test_statement_of_no_text_lets_an_ultrasound_pass(tmp_path):
    d = picture(0)
    d.SOPClassUID, d.Modality, d.BurnedInAnnotation = UltrasoundImageStorage, "US", "NO"
    save(d, tmp_path / "in" / "us.dcm")
    row, = deidentify_folder(tmp_path / "in", tmp_path / "out", tmp_path / "key")
    assert row["written"] and "US" in pydicom.dcmread(tmp_path / "out" / row["written"]).Modality


def test_compressed_pixels_are_written_plain_and_damage_is_named(tmp_path):
    d, plain = picture(0), picture(0)
    d.PixelData = d.PixelData[:70]
    d.compress(RLELossless, generate_instance_uid=False)
    save(d, tmp_path / "in" / "rle.dcm")
    (tmp_path / "in" / "torn.dcm").write_bytes((tmp_path / "in" / "rle.dcm").read_bytes()[:700])
    (tmp_path / "in" / "notes.txt").write_text("Müßig")
    rle, torn = deidentify_folder(tmp_path / "in", tmp_path / "out", tmp_path / "key")
    assert (pydicom.dcmread(tmp_path / "out" / rle["written"]).pixel_array == plain.pixel_array).all()
    assert torn["fault"] and "Müßig" not in torn["fault"]
    twin = picture(0); twin.PixelData = bytes(70); save(twin, tmp_path / "in" / "twin.dcm")
    rows = deidentify_folder(tmp_path / "in", tmp_path / "out", tmp_path / "key")
    assert "shares its SOPInstanceUID" in rows[-1]["fault"]


def medseg(*words, cwd, **more):
    return subprocess.run([sys.executable, "-c", "from medseg_nb.cli import main; main()", *map(str, words)],
                          capture_output=True, text=True, cwd=cwd, **more)


def test_command_goes_on_where_it_was_killed_and_lists_what_is_refused(tmp_path):
    for k in range(60): save(picture(k), tmp_path / "in" / f"{k:02}.dcm")
    d = picture(60); d.BurnedInAnnotation = "YES"; save(d, tmp_path / "in" / "60.dcm")
    words = ["deidentify", tmp_path / "in", tmp_path / "out", "--key", tmp_path / "key"]
    first = subprocess.Popen([sys.executable, "-c", "from medseg_nb.cli import main; main()", *map(str, words)],
                             cwd=tmp_path, stderr=subprocess.DEVNULL)
    while len(outputs(tmp_path / "out")) < 5 and first.poll() is None: time.sleep(.01)
    first.send_signal(signal.SIGKILL); first.wait()
    for p in outputs(tmp_path / "out"): pydicom.dcmread(p).pixel_array  # whole, whatever was cut off
    before = {p: p.stat().st_mtime_ns for p in outputs(tmp_path / "out")}
    done = medseg(*words, cwd=tmp_path)
    assert done.returncode == 3 and done.stdout.strip().startswith("60 of 61 files written"), done
    assert "60.dcm: may show its patient's name" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert len(outputs(tmp_path / "out")) == 60 and all(p.stat().st_mtime_ns == t for p, t in before.items())
    assert not [p for p in (tmp_path / "out").rglob(".*")], "nothing half written is left"
    missing = medseg("deidentify", tmp_path / "none", tmp_path / "x", cwd=tmp_path)
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1 and "is no folder" in missing.stderr


def enhanced(order, name):
    "An Enhanced MR with a name in its groups, the frames in any order"
    d = picture(0, "ISO_IR 192", name)
    d.SOPClassUID, d.SOPInstanceUID, d.NumberOfFrames = EnhancedMRImageStorage, f"{UID}.77", len(order)
    def group(**values):
        item, around = Dataset(), Dataset()
        for word, value in values.items():
            if word == "to": continue
            setattr(item, word, value)
        item.ImageComments = name
        setattr(around, values["to"], [item])
        return around
    shared, frames = group(to="PixelMeasuresSequence", PixelSpacing=[1.5, 2], SliceThickness=2.5), []
    shared.update(group(to="PlaneOrientationSequence", ImageOrientationPatient=[.8, .6, 0, -.6, .8, 0]))
    for k in order: frames.append(group(to="PlanePositionSequence", ImagePositionPatient=[10, 20, 30 + 2.5 * k]))
    for k, frame in zip(order, frames):
        frame.update(group(to="PixelValueTransformationSequence", RescaleSlope=1, RescaleIntercept=-1024))
        frame.update(group(to="FrameContentSequence", FrameComments=name, DimensionIndexValues=[k + 1]))
    d.SharedFunctionalGroupsSequence, d.PerFrameFunctionalGroupsSequence = [shared], frames
    for word in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope",
                 "RescaleIntercept", "RescaleType"): delattr(d, word)
    d.PixelData = b"".join((np.arange(35) * 3 + 40 * k).astype(np.uint16).tobytes() for k in order)
    return d


def test_enhanced_image_keeps_its_place_and_loses_its_names(tmp_path):
    from medseg_nb.deployment.dicom import read_with_headers
    name = NAMES["utf8"][1]
    for k in range(4): save(picture(k), tmp_path / "series" / f"{k}.dcm")
    path = save(enhanced([2, 0, 3, 1], name), tmp_path / "in" / "e.dcm")
    row, = deidentify_folder(tmp_path / "in", tmp_path / "out", tmp_path / "key")
    new = tmp_path / "out" / row["written"]
    assert not [f for f in forms(name) if f in new.read_bytes()] and any(f in path.read_bytes() for f in forms(name))
    truth = read_image(tmp_path / "series")
    for p in (path, new):
        image, heads = read_with_headers(p)
        assert (image.array == truth.array).all() and np.allclose(image.affine, truth.affine) and not heads
