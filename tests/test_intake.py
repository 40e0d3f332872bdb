("A folder that the kit has never seen becomes a data set: right pixels, labels, spacing and patients; every problem "
 "at once; nothing written in vain.")
import json
import shutil
from pathlib import Path

import highdicom
import mlcroissant
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from highdicom.sr.coding import CodedConcept
from PIL import Image

import medseg_nb.data.intake as intake
from conftest import REPO
from medseg_nb.kit.core import InputError, manifest_folders, sha256
from medseg_nb.data.croissant import croissant_metadata, write_croissant
from medseg_nb.data.manifest import load_cases, load_manifest
from medseg_nb.data.splits import load_split
from medseg_nb.kit.execution import remove_other_results, results_folder, reason_section_not_applicable

DRAWS = np.random.default_rng(7)
AFFINE = np.diag([2., 1.5, 3, 1]) + np.eye(4, k=1) * 0
AFFINE[:3, 3] = 10, -20, 30


def noise(*shape, top=200) -> np.ndarray: return DRAWS.integers(1, top, shape).astype(np.uint8)


def square(shape, at, value=1, size=3) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(a, a + size) for a in at)] = value
    return mask


def png(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def nifti(path: Path, array: np.ndarray, affine=AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def itk(path: Path, array: np.ndarray) -> Path:
    image = sitk.GetImageFromArray(array.T)
    image.SetSpacing((2, 1.5, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture
def place(tmp_path, monkeypatch):
    "An empty folder, and a place for own data outside of the repository"
    monkeypatch.setenv("MEDSEG_OWN", str(tmp_path / "own"))
    intake._clear_caches()
    (tmp_path / "set").mkdir()
    yield tmp_path / "set"
    intake._clear_caches()


def added(place: Path, id: str = "mine", *settings: str):
    "The data set as it is read after it was accepted, with its draft"
    draft = intake.draft_dataset(place, id, settings)
    intake.write_draft(draft)
    return {c.id: c for c in load_cases(id)}, draft


# Layouts. Each builder draws three patients and returns {case: (image, mask)}, and what the manifest must say

def pictures(place, image, mask, images=None, value=255, shape=(10, 12)):
    found = {}
    for p in range(3):
        for v in range(2):
            x, m = noise(*shape), square(shape[:2], (p, v + p), value)
            png(place / image.format(f"p{p}_{v}"), x); png(place / mask.format(f"p{p}_{v}"), m)
            found[f"p{p}_{v}"] = x, (m > 0).astype(int) if value == 255 else m
    return found


def folders(place): return pictures(place, "images/{}.png", "masks/{}.png"), dict(mask=("threshold", 127), patients=3)
def one_folder(place): return pictures(place, "{}.png", "{}_mask.png"), dict(mask=("threshold", 127), patients=3)
def sides(place):
    return (pictures(place, "train/images/{}.tif", "train/labels/{}.png", value=2),
            dict(labels={"label_2": 2}, patients=3))
def bitmaps(place):
    return pictures(place, "scans/{}.bmp", "ground_truth/{}_gt.gif", value=1), dict(labels={"label_1": 1}, patients=3)


def coloured(place):
    found = pictures(place, "images/{}.png", "masks/{}.png", shape=(10, 12, 3))
    for k, (name, (x, m)) in enumerate(found.items()):
        colour = np.zeros((10, 12, 3), np.uint8); colour[m > 0] = (255, 0, 0) if k % 2 else (0, 0, 255)
        png(place / "masks" / f"{name}.png", colour)
        found[name] = x, m * (2 if k % 2 else 1)
    return found, dict(mask=("colours", None), labels={"label_1": 1, "label_2": 2},
                       channels=["red", "green", "blue"], patients=3)


def arrays(place):
    found = {}
    for k in range(4):
        x, m = DRAWS.normal(size=(10, 12)), square((10, 12), (k, 3))
        for kind, a in (("image", x), ("mask", m)):
            (place / kind).mkdir(exist_ok=True); np.save(place / kind / f"a{k}.npy", a)
        found[f"a{k}"] = x, m
    return found, dict(unknown=True)


def patient_folders(place):
    found = {}
    for p in range(3):
        x, m = DRAWS.normal(size=(2, 6, 7, 5)).astype(np.float32), square((6, 7, 5), (1, 2, p), 1)
        for name, a in zip(("flair", "t1"), x): nifti(place / f"pat{p}" / f"pat{p}_{name}.nii.gz", a)
        nifti(place / f"pat{p}" / f"pat{p}_seg.nii.gz", m)
        found[f"pat{p}"] = np.moveaxis(x, 0, -1), m
    return found, dict(channels=["flair", "t1"], spacing=(2, 1.5, 3), patients=3)


def nnunet(place, old=False):
    found, listed = {}, []
    for p in range(3):
        x, m = DRAWS.normal(size=(2, 6, 7, 5)).astype(np.float32), square((6, 7, 5), (1, 2, p), 1 + p % 2)
        for k in range(2): nifti(place / "imagesTr" / f"liver_{p}_{k:04d}.nii.gz", x[k])
        nifti(place / "labelsTr" / f"liver_{p}.nii.gz", m)
        listed.append(dict(image=f"./imagesTr/liver_{p}.nii.gz", label=f"./labelsTr/liver_{p}.nii.gz"))
        found[f"liver_{p}"] = np.moveaxis(x, 0, -1), m
    new = dict(channel_names={"0": "T1", "1": "T2"}, labels=dict(background=0, liver=1, tumour=2),
               numTraining=3, file_ending=".nii.gz")
    told = dict(modality={"0": "T1", "1": "T2"}, labels={"0": "background", "1": "liver", "2": "tumour"},
                training=listed) if old else new
    (place / "dataset.json").write_text(json.dumps(told))
    return found, dict(channels=["T1", "T2"], labels=dict(liver=1, tumour=2), spacing=(2, 1.5, 3), unknown=True)


def nnunet1(place): return nnunet(place, old=True)


def decathlon(place):
    found, listed = {}, []
    for p in range(3):
        x, m = DRAWS.normal(size=(6, 7, 5, 2)).astype(np.float32), square((6, 7, 5), (1, 2, p))
        nifti(place / "imagesTr" / f"b_{p}.nii.gz", x); nifti(place / "labelsTr" / f"b_{p}.nii.gz", m)
        listed.append(dict(image=f"./imagesTr/b_{p}.nii.gz", label=f"./labelsTr/b_{p}.nii.gz"))
        found[f"b_{p}"] = x, m
    (place / "dataset.json").write_text(
        json.dumps(dict(modality={"0": "T1", "1": "T2"}, labels={"0": "background", "1": "core"}, training=listed)))
    return found, dict(channels=["T1", "T2"], labels=dict(core=1), spacing=(2, 1.5, 3), unknown=True)


def itk_files(place):
    found = {}
    for p, (a, b) in enumerate(((".mhd", ".nrrd"), (".nrrd", ".mha"), (".mha", ".mhd"))):
        x, m = noise(6, 7, 5), square((6, 7, 5), (1, 2, p))
        itk(place / "images" / f"v{p}{a}", x); itk(place / "labels" / f"v{p}{b}", m)
        found[f"v{p}"] = x, m
    return found, dict(spacing=(2, 1.5, 3), unknown=True)


def coco(place):
    found, images, annotations = {}, [], []
    def add(k, segmentation, **more):
        annotations.append(dict(id=len(annotations) + 1, image_id=k,
                                category_id=5, iscrowd=0, segmentation=segmentation) | more)
    for k in range(4):
        x, m = noise(9, 10), np.zeros((9, 10), int)
        png(place / "data" / f"s{k}.png", x)
        images.append(dict(id=k, file_name=f"s{k}.png", height=9, width=10))
        if k < 3:
            add(k, [[1, 1, 4, 1, 4, 5, 1, 5]]); add(k, dict(size=[9, 10],
                                                            counts=[6, 1, 40, 4, 5, 4, 5, 4, 21]
                                                            if k else "61X13mN000`0"))
            add(k, [[0, 0, 9, 0, 9, 9]], iscrowd=1)
            m[2:6, 5:8] = m[6, 0] = 1; m[1:5, 1:4] = 2  # the larger one is drawn first
        found[f"s{k}"] = x, m
    (place / "instances.json").write_text(
        json.dumps(dict(images=images, annotations=annotations, categories=[dict(id=5, name="cell")])))
    return found, dict(task="instance", labels=dict(cell=1), unknown=True)


def instance_files(place):
    found = {}
    for k in range(3):
        x, m = noise(10, 12), np.zeros((10, 12), int)
        png(place / f"id{k}" / "images" / f"id{k}.png", x)
        for j in range(1 + k):
            png(place / f"id{k}" / "masks" / f"{j}.png",
                square((10, 12), (k, 4 * j), 255)); m[k:k + 3, 4 * j:4 * j + 3] = j + 1
        found[f"id{k}"] = x, m
    return found, dict(task="instance", mask=("files", None), patients=3)


def label_maps(place):
    found = {}
    for k in range(3):
        x, m = noise(20, 24), np.zeros((20, 24), np.uint16)
        for j in range(6 + k): m[5 * (j // 4):5 * (j // 4) + 3, 6 * (j % 4):6 * (j % 4) + 4] = j + 1
        png(place / "images" / f"n{k}.png", x); png(place / "labels" / f"n{k}.png", m)
        found[f"n{k}"] = x, m
    return found, dict(task="instance", unknown=True)


def listed(place):
    found, rows = {}, ["id,subject,picture,outline,grade"]
    for k in range(4):
        x, m = noise(10, 12), square((10, 12), (k, 2))
        png(place / "x" / f"{k}a.png", x); png(place / "y" / f"{k}b.png", m)
        rows.append(f"00{k},s{k // 2},x/{k}a.png,y/{k}b.png,{'low high'.split()[k % 2]}")
        found[f"00{k}"] = x, m
    (place / "list.csv").write_text("\n".join(rows).replace("outline", "mask") + "\n")
    return found, dict(patients=2)


def dicom(place, names=("lesion",)):
    found = {}
    for p in range(3):
        x, m = noise(4, 6, 5).astype(np.uint16), np.zeros((4, 6, 5, len(names)), np.uint8)
        m[1, 1:4, p:p + 2, 0] = 1
        series(place / f"pat{p}" / "ct", x, f"1.2.826.0.1.3680043.8.498.{p + 1}", f"ID{p}")
        (place / f"pat{p}" / "seg").mkdir()
        segmentation(place / f"pat{p}" / "ct", m, names).save_as(place / f"pat{p}" / "seg" / "s.dcm")
        found[f"pat{p}_ct"] = x.transpose(2, 1, 0), m[..., 0].transpose(2, 1, 0)
    return found, dict(labels=dict(lesion=1), spacing=(2, 1.5, 2.5), patients=3)


def series(place: Path, pixels: np.ndarray, uid: str, patient: str, gap=2.5) -> None:
    "A DICOM series, its files in the wrong order"
    place.mkdir(parents=True)
    for k, plane in enumerate(pixels):
        d = pydicom.Dataset(); d.file_meta = pydicom.dataset.FileMetaDataset()
        d.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        d.SOPClassUID, d.SOPInstanceUID, d.SeriesInstanceUID = pydicom.uid.CTImageStorage, f"{uid}.{k + 1}", uid
        d.StudyInstanceUID, d.FrameOfReferenceUID = f"{uid}.90", f"{uid}.91"
        for empty in ("PatientName", "PatientBirthDate", "PatientSex",
                      "AccessionNumber", "StudyID", "StudyDate", "StudyTime", "Manufacturer",
                      "ReferringPhysicianName", "PositionReferenceIndicator"): setattr(d, empty, "")
        d.PatientID, d.Modality, d.SeriesNumber, d.InstanceNumber = patient, "CT", 1, 9 - k
        d.Rows, d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation = *plane.shape, 1, "MONOCHROME2"
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 0
        d.PixelSpacing, d.SliceThickness, d.ImageOrientationPatient, d.ImagePositionPatient = [
            1.5, 2], gap, [1, 0, 0, 0, 1, 0], [10, 20, 30 + gap * k]
        d.PixelData = plane.tobytes()
        d.save_as(place / f"{9 - k}.dcm", enforce_file_format=True)


def segmentation(place: Path, masks: np.ndarray, names: tuple):
    "A SEG of a series, written by highdicom"
    source = sorted((pydicom.dcmread(p) for p in place.iterdir()), key=lambda d: d.ImagePositionPatient[2])
    tissue = CodedConcept("85756007", "SCT", "Tissue")
    told = [highdicom.seg.SegmentDescription(n, name, tissue, tissue, "MANUAL") for n, name in enumerate(names, 1)]
    return highdicom.seg.Segmentation(source, masks, "BINARY",
                                      told, "1.2.3.4", 2, "1.2.3.5", 1, "none", "none", "0", "0")


LAYOUTS = [folders, one_folder, sides, bitmaps, coloured,
           arrays, patient_folders, nnunet, nnunet1, decathlon, itk_files, coco, instance_files,
           label_maps, listed, dicom]


@pytest.mark.parametrize("build", LAYOUTS, ids=lambda b: b.__name__)
def test_layout(place, build):
    wanted, facts = build(place)
    before = {p: sha256(p) for p in place.rglob("*") if p.is_file()}
    found, draft = added(place)
    m = load_manifest("mine")
    assert set(found) == set(wanted) and not draft.problems
    for name, (pixels, mask) in wanted.items():
        image = found[name].image()
        assert np.array_equal(image.array, pixels) and np.array_equal(found[name].mask(), mask), name
        assert image.spacing == pytest.approx(facts["spacing"]) if "spacing" in facts else image.spacing is None
    assert m.foreground == facts["labels"] if "labels" in facts else len(m.foreground) == 1
    assert m.task == facts.get("task", "semantic") and m.image.channels == facts.get("channels", m.image.channels)
    if "mask" in facts: assert (m.mask.kind, m.mask.threshold) == facts["mask"]
    assert (len({c.patient for c in found.values()}) == facts.get("patients", len(wanted))
            and (m.patient == "unknown") == facts.get("unknown", False))
    assert load_split("mine")["content"] and m.split.folds == max(2, facts.get("patients", len(wanted)) // 2)
    assert {p: sha256(p) for p in place.rglob("*") if p.is_file()} == before, "the user's files stay as they are"
    for key in ("layout", "mask", "labels", "task", "spacing", "patient", "split"):
        assert any(line.startswith(f"guessed: {key}: ") and "; " in line for line in draft.guessed), key


def test_categories_of_coco_are_labels_and_may_be_declared_instances(place):
    wanted, _ = coco(place)
    told = json.loads((place / "instances.json").read_text())
    told["categories"].append(dict(id=9, name="blood")); told["annotations"][0]["category_id"] = 9
    (place / "instances.json").write_text(json.dumps(told))
    draft = intake.draft_dataset(place, "mine")
    assert (draft.facts["task"] == "semantic" and draft.facts["labels"] == dict(background=0, blood=1, cell=2)
            and any("crowd" in n for n in draft.notes))
    assert intake.draft_dataset(place, "mine", ["task=instance"]).facts["labels"] == dict(background=0, object=1)


def test_regions_of_nnunet_are_scored_as_regions(place):
    nnunet(place)
    told = (json.loads((place / "dataset.json").read_text())
            | dict(labels=dict(background=0, whole=[1, 2], tumour=2), regions_class_order=[1, 2]))
    (place / "dataset.json").write_text(json.dumps(told))
    facts = intake.draft_dataset(place, "mine").facts
    assert (facts["labels"] == dict(background=0, tumour=2, label_1=1)
            and facts["regions"] == dict(whole=[1, 2], tumour=[2]))


# Problems

def spoil(place: Path) -> dict[str, str]:
    "Good pictures and one of each fault; what must be said of each file"
    pictures(place, "images/{}.png", "masks/{}.png", value=1)
    def pair(name, image=None, mask=None):
        png(place / "images" / f"{name}.png", noise(10, 12) if image is None else image)
        png(place / "masks" / f"{name}.png", square((10, 12), (2, 2)) if mask is None else mask)
    png(place / "images" / "q1_0.png", noise(10, 12)); png(place / "masks" / "q2_0.png", square((10, 12), (1, 1)))
    pair("q3_0", mask=square((12, 10), (1, 1))); pair("q4_0", image=noise(10, 12, 3)); pair(
        "q5_0", image=noise(10, 12).astype(np.uint16))
    pair("q6_0"); cut = place / "images" / "q6_0.png"; cut.write_bytes(cut.read_bytes()[:-20])
    pair("q7_0", mask=np.arange(120, dtype=np.uint8).reshape(10, 12) * 2)
    pair("q8_0"); (place / "masks" / "q8_0.png").unlink(); Image.fromarray(square((10, 12), (1, 1), 255)).save(
        place / "masks" / "q8_0.jpg")
    shutil.copy(place / "images" / "p0_0.png", place / "images" / "q9_0.png")
    png(place / "masks" / "q9_0.png", square((10, 12), (1, 1)))
    (place / "images" / "r1_0.png").symlink_to(png(place.parent / "secret.png", noise(10, 12)))
    (place / "people.xlsx").write_bytes(b"PK")
    return {"images/q1_0.png": "has no mask", "masks/q2_0.png": "has no image",
            "masks/q3_0.png": "12 x 10 and the image 10 x 12",
            "images/q4_0.png": "3 channels", "images/q5_0.png": "uint16",
            "images/q6_0.png": "cut short", "masks/q7_0.png": "different values",
            "masks/q8_0.jpg": "loss",
            "images/q9_0.png": "same image as p0_0 under another patient",
            "images/p0_0.png": "same image as q9_0 under another patient",
            "images/r1_0.png": "link that leaves", "people.xlsx": "no CSV"}


def test_every_problem_is_listed_at_once_and_the_rest_is_taken(place, capsys):
    wanted = spoil(place)
    assert intake.add_dataset(place, "mine", True, []) == 3
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("problem: ")]
    told = {line.split(": ")[1]: line for line in lines}
    assert set(told) == set(wanted) and len(lines) == len(wanted)
    for name, fault in wanted.items(): assert fault in told[name] and len(told[name].split("; ")) >= 2, told[name]
    assert ({c.id for c in load_cases("mine")} == {"p0_1", "p1_0", "p1_1", "p2_0", "p2_1"}
            and "5 cases of 3 patients; 12 problems" in out)


def test_geometry_and_labels_of_volumes(place):
    nnunet(place)
    moved = AFFINE.copy(); moved[0, 3] += 5
    nifti(place / "labelsTr" / "liver_0.nii.gz", square((6, 7, 5), (1, 2, 0)), moved)
    nifti(place / "labelsTr" / "liver_1.nii.gz", square((6, 7, 5), (1, 2, 0), 7))
    (place / "labelsTr" / "liver_2.nii.gz").unlink()
    draft = intake.draft_dataset(place, "mine")
    assert [str(p).split(";")[0] for p in draft.problems] == [
        "imagesTr/liver_2_0000.nii.gz: has no mask",
        "labelsTr/liver_0.nii.gz: the affines of mask and image differ by 5",
        "labelsTr/liver_1.nii.gz: holds labels that are not named: 7 (27 pixels)"]
    assert not draft.rows


def test_dicom_that_does_not_fit(place):
    dicom(place)
    seg = place / "pat0" / "seg" / "s.dcm"
    shutil.copy(place / "pat1" / "seg" / "s.dcm", place / "pat1" / "seg" / "again.dcm")     # two for one series
    shutil.copy(seg, place / "pat2" / "ct" / "stray.dcm")  # in the folder of another one
    told = "\n".join(map(str, intake.draft_dataset(place, "mine").problems))
    assert ("pat1/ct: has 2 SEG objects" in told
            and "pat2/ct: series 1.2.826.0.1.3680043.8.498.3 shares its folder" in told)


@pytest.mark.parametrize("name, fault", [
    ("none", "does not exist"), ("file.txt", "is no folder"),
    ("made", "needs for converted masks"), ("empty", "no image that can be read"),
    ("bare", "no masks that their names tell"), ("lossy", "no case of it can be used"), ("one", "holds 1 patient"),
    ("black", "hold no label at all")])
def test_refused_and_nothing_written(place, name, fault):
    there = place / name
    if name == "file.txt": there.write_text("x")
    if name == "made": pictures(there, "made/{}.png", "masks/{}.png")
    if name == "empty": there.mkdir()
    if name == "bare": png(there / "a.png", noise(9, 9))
    if name == "lossy": pictures(there, "images/{}.png", "masks/{}.jpg")
    if name == "black": pictures(there, "images/{}.png", "masks/{}.png", value=0)
    if name == "one": png(there / "a.png", noise(9, 9)); png(there / "a_mask.png", square((9, 9), (1, 1)))
    with pytest.raises(InputError, match=fault): intake.add_dataset(there, "mine", True, [])
    assert not (place.parent / "own").exists()


def test_lossy_masks_are_taken_once_they_are_declared(place):
    found = pictures(place, "images/{}.png", "masks/{}.jpg", shape=(16, 16))
    for name in found:
        Image.fromarray(square((16, 16), (0, 8), 255, 8)).save(place / "masks" / f"{name}.jpg", quality=95)
    mine, _ = added(place, "mine", "mask={kind: threshold, threshold: 127}", "labels={background: 0, lesion: 1}")
    assert (all(np.array_equal(c.mask(), square((16, 16), (0, 8), 1, 8)) for c in mine.values())
            and load_manifest("mine").foreground == dict(lesion=1))
    for wrong, fault in (("mask={kind: bits}", "--set: .*needs"),
                         ("maks=1", "unknown key"), ("mask={", "not valid YAML"),
                         ("split={folds: 99}", "99 folds of 3")):
        with pytest.raises(InputError, match=fault):
            added(place, "other", "mask={kind: threshold, threshold: 127}", wrong)
    assert sorted(p.name for p in (place.parent / "own" / "data").iterdir()) == ["mine"]


def test_a_failure_while_writing_leaves_nothing(place, monkeypatch):
    coco(place)
    def full(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(intake, "freeze_split", full)
    with pytest.raises(OSError): added(place)
    assert not [p for p in (place.parent / "own").rglob("*") if p.is_file()]


# Patients and their table

def test_table_of_patients(place):
    pictures(place, "images/{}.png", "masks/{}.png")
    for k in range(2):
        png(place / "images" / f"p9_{k}.png", noise(10, 12))
        png(place / "masks" / f"p9_{k}.png", square((10, 12), (1, 1), 255))
    (place / "clinic.csv").write_text(
        "patient,code,age,stage,died,notes,pressure\np0,007,61,I,yes,a,120\np1,012,n/a,II,no,b,999\n"
                                      "p2,007,55,I,no,c,999\nx7,1,5,I,no,d,1\nx8,2,6,I,no,e,2\n")
    draft = intake.draft_dataset(place, "mine")
    columns = {c["column"]: (c["type"], c["known"]) for c in draft.facts["columns"]}
    kinds = dict(code="category", age="number", stage="category", died="boolean", pressure="number")
    assert columns == {name: (kind, "after") for name, kind in kinds.items()} and draft.facts["missing"] == ["n/a"]
    assert ({str(p).split(":")[0] for p in draft.problems} == {"images/p9_0.png", "images/p9_1.png"}
            and "no row in the table" in str(draft.problems[0]))
    assert any("999 stands 2 times" in n for n in draft.notes) and any("notes is left out" in n for n in draft.notes)
    intake.write_draft(draft)
    found = {c.patient: c.fields for c in load_cases("mine")}
    assert (found["p0"]["age"], found["p1"]["age"], found["p1"]["died"]) == (61., None, False)


def test_ids_stay_text_and_unknown_patients_are_said(place):
    pictures(place, "images/{}.png", "masks/{}.png")
    for k in range(3):
        for kind in ("images", "masks"):
            (place / kind / f"p{k}_1.png").unlink(); (place / kind / f"p{k}_0.png").rename(place / kind / f"00{k}.png")
    draft = intake.draft_dataset(place, "mine")
    assert (draft.facts["patient"] == "unknown"
            and any("images of one patient may land in train and in test" in n for n in draft.notes))
    (place / "t.csv").write_text("id,age\n000,50\n001,60\n002,70\n")
    found, _ = added(place)
    assert [(c.id, c.fields["age"]) for c in found.values()] == [("000", 50), ("001", 60), ("002", 70)]


def test_equal_images_of_unknown_patients_are_taken_once(place):
    for k in range(4):
        png(place / "images" / f"x{k}.png", noise(9, 9)); png(place / "masks" / f"x{k}.png", square((9, 9), (1, 1)))
    shutil.copy(place / "images" / "x0.png", place / "images" / "x3.png")
    draft = intake.draft_dataset(place, "mine")
    assert ([str(p) for p in draft.problems]
            == ["images/x3.png: is the same image as x0; keep one of them, under the right patient"]
            and len(draft.rows) == 3)


def test_a_table_alone(place):
    (place / "outcomes.csv").write_text("patient_id,age,died\n"
                                        + "".join(f"0{k},{50 + k},{'yes' if k % 2 else 'no'}\n" for k in range(8)))
    found, draft = added(place)
    assert (load_manifest("mine").task == "table" and found["00"].patient == "00"
            and found["03"].fields == dict(age=53., died=True))
    assert "table without images" in reason_section_not_applicable("benchmark", "own", "mine")


def test_a_section_that_does_not_fit_is_left_out(place):
    nnunet(place)
    added(place)
    assert ("holds volumes" in reason_section_not_applicable("benchmark", "own", "mine")
            and "it reads benchmark" in reason_section_not_applicable("claims", "own", "mine"))
    assert reason_section_not_applicable("metrics", "own", "mine") == ""
    assert reason_section_not_applicable("benchmark", "smoke") == ""


def test_results_of_another_set_enter_no_paper(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSEG_REPORTS", str(tmp_path))
    record = results_folder("benchmark", "own") / "provenance.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps(dict(key="k", parts=dict(parameters=dict(datasets=["phantom_skin"])), outputs={})))
    remove_other_results("phantom_skin")
    assert record.exists()
    remove_other_results("phantom_mri")
    assert not record.exists()


# The command

def test_the_command(fresh, tmp_path):
    fresh.env["MEDSEG_OWN"] = str(tmp_path / "own")
    place = tmp_path / "set"
    pictures(place, "images/{}.png", "masks/{}.png")
    dry = fresh.call("data", "add", place, "--id", "mine")
    assert dry.returncode == 0 and not dry.stderr
    assert all(text in dry.stdout for text in ("nothing is written", "--yes to accept", "guessed: patient: p0, p1, p2"))
    assert "kind: threshold" in dry.stdout and not (tmp_path / "own").exists()
    (place / "masks" / "p2_1.png").unlink()
    dry = fresh.call("data", "add", place, "--id", "mine")
    assert (dry.returncode == 3 and dry.stderr.startswith("problem: images/p2_1.png: has no mask")
            and not (tmp_path / "own").exists())
    done = fresh.medseg("data", "add", place, "--id", "mine", "--yes")
    assert done.returncode == 3 and "5 cases of 3 patients" in done.stdout
    assert fresh.call("data", "verify", "mine").returncode == 0 and "mine" in fresh.call("data", "list").stdout
    again = fresh.call("data", "add", place, "--id", "mine", "--yes")
    assert (again.returncode == 2
            and again.stderr.startswith("error: --id mine: is the id of a data set that is here already"))
    for words, fault in (((place, "--id", "phantom_skin"), "here already"), ((place, "--id", "A b"), "is no id"),
                         ((fresh.root / "nbs", "--id", "x"), "inside the repository"),
                         ((fresh.root.parent, "--id", "x"), "holds the project itself")):
        done = fresh.call("data", "add", *words, "--yes")
        assert done.returncode == 2 and fault in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_own_data_is_ignored_by_git(): assert "/own/" in (REPO / ".gitignore").read_text().split()


# Croissant

def test_croissant_of_own_data(place):
    nnunet(place)
    added(place)
    path = write_croissant("mine")
    assert (path == place.parent / "own" / "data" / "mine" / "croissant.json"
            and str(place.parent) not in path.read_text())
    first = path.read_bytes()
    read = mlcroissant.Dataset(jsonld=path)
    assert (write_croissant("mine").read_bytes() == first
            and {f.name for f in read.metadata.record_sets[0].fields} == {"case", "image_1", "image_2", "mask"})
    assert "unverified" in read.metadata.license[0]


def test_committed_croissants_are_what_the_manifests_say(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDSEG_OWN", str(tmp_path))
    for id, home in manifest_folders().items():
        committed, wanted = home / "croissant.json", croissant_metadata(id)
        assert committed.is_file() and json.loads(committed.read_text(encoding="utf-8")) == wanted, (
            f"call medseg data croissant {id}")
        assert all(f["sha256"] == {e.path: e.sha256 for e in load_manifest(id).files}[f["name"]]
                   for f in wanted["distribution"] if "sha256" in f)
        assert ("unverified" in wanted["license"]) == (load_manifest(id).licence.status == "unverified")
