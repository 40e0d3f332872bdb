("The corpus: bad input that stock readers take in silence, row by row, each refused with a remedy or read as it is "
 "meant")
import functools
import gzip
import hashlib
import http.server
import io
import re
import tarfile
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK
from PIL import Image

from conftest import Tiny, add_tiny, dicom, new_project, png, refused
from medseg_nb.data.manifest import load_cases
from test_bad_input import cut, first, label_maps, relabel, resize, results, splits

DEMANDED = {*range(1, 35), *range(36, 43), 44, 45, 46, 48, 49, *range(50, 54)}
VERIFY = "data verify tiny"


@dataclass
class Row:
    "One way in which input can be bad"
    number: int
    name: str
    spoil: Callable[[Tiny], None]
    fault: str = ""           # of a refusal: words that the line must hold …
    subject: str = "p0.png"   # … and the file or name that it must name
    remedy: str = ""
    words: str = VERIFY
    check: Callable[[Tiny], None] | None = None  # of what is accepted or mended: that it was read right
    code: int = 0             # of the same

    @property
    def id(self) -> str: return f"row {self.number}: {self.name}"


# What the rows are made of: the first case of the set `tiny` gets another image or mask

SQUARE = np.zeros((24, 20), np.uint8); SQUARE[4:12, 6:14] = 1  # the mask of case c0
GREY = np.arange(480, dtype=np.uint16).reshape(24, 20)
AFFINE = np.diag([2., 1.5, 3., 1.]); AFFINE[:3, 3] = 10, -20, 30
VOLUME = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
CUBE = np.zeros((3, 4, 5), np.uint8); CUBE[1:, 1:3, 2:4] = 1


def picture(array: np.ndarray, kind: str = "PNG", mode: str | None = None, **how) -> bytes:
    out = io.BytesIO(); Image.fromarray(array).convert(mode).save(out, format=kind, **how)
    return out.getvalue()


def put(t: Tiny, column: str, name: str, content: bytes) -> Path:
    "Let the first case name a file of this content"
    path = t.data / f"{column}s" / name
    path.write_bytes(content)
    first(t, **{column: f"{column}s/{name}"})
    return path


def image(name: str, content: bytes): return lambda t: put(t, "image", name, content)
def mask(name: str, content: bytes, **declared):
    return lambda t: (put(t, "mask", name, content), declared and t.declare(**declared))
def both(*spoils): return lambda t: [s(t) for s in spoils]
def saved(save, array) -> bytes: out = io.BytesIO(); save(out, array); return out.getvalue()


def flip(path: Path, place: float = .6) -> None:
    data = bytearray(path.read_bytes()); data[int(len(data) * place)] ^= 255; path.write_bytes(bytes(data))


def nifti(values: np.ndarray = VOLUME, affine: np.ndarray = AFFINE, **fields) -> bytes:
    "A NIfTI file whose header fields are overwritten"
    made = nibabel.Nifti1Image(values, affine)
    made.set_qform(affine, 1); made.set_sform(affine, 1)
    data = made.to_bytes()
    raw = nibabel.Nifti1Header(data[:348], check=False)
    for key, value in fields.items(): raw[key] = value
    return raw.binaryblock + data[348:]


def volumes(mask_values: np.ndarray = CUBE, mask_affine: np.ndarray = AFFINE, **fields):
    "A volume as image and another as mask, on one grid unless said otherwise"
    return both(image("v.nii", nifti(**fields)), mask("m.nii", nifti(mask_values, mask_affine)),
                lambda t: t.declare(spacing="file"))


def itk(name: str, **how) -> Callable[[Tiny], bytes]:
    def content(t: Tiny) -> bytes:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(VOLUME.T), str(t.data / name), **how)
        return (t.data / name).read_bytes()
    return content


def series(change=lambda k: {}, n: int = 4, mask_affine: np.ndarray | None = None):
    "A DICOM series of slices 2.5 mm apart as image; `change(k)` gives tags of slice k"
    def spoil(t: Tiny) -> None:
        (t.data / "images" / "series").mkdir()
        for k in range(n):
            tags = dict(SOPInstanceUID=f"1.2.3.{k}", ImagePositionPatient=[10, 20, 30 + 2.5 * k]) | change(k)
            (t.data / "images" / "series" / f"s{n - k}.dcm").write_bytes(
                dicom(np.arange(12).reshape(3, 4) + 100 * k, **tags))
        first(t, image="images/series")
        t.declare(spacing="file")
        if mask_affine is not None: put(t, "mask", "m.nii", nifti(np.ones((4, 3, n), np.uint8), mask_affine))
    return spoil


# what the series' tags say, in RAS
LPS = np.array([[-2, 0, 0, -10], [0, -1.5, 0, -20], [0, 0, 2.5, 30], [0, 0, 0, 1.]])


def at(z: float, x: float = 10) -> dict: return dict(ImagePositionPatient=[x, 20, z])
def slice_(pixels: np.ndarray = GREY, **how): return image("d.dcm", dicom(pixels, **how))
def text(content: str, encoding: str = "utf-8"):
    return lambda t: (t.data / "table.csv").write_bytes(content.encode(encoding))


def table(*rows: str, head: str = "case,patient,image,mask,age") -> Callable:
    "A table of the first two cases, with an age"
    lines = [head, *(r or f"c{k},p{k},images/p{k}.png,masks/p{k}.png,{k}" for k, r in enumerate(rows))]
    return both(text("\n".join(lines) + "\n"),
                lambda t: t.declare(columns=[dict(name="age", column="age", type="number", known="before")]))


# What was read of the first case

def pixels(expected: np.ndarray, spacing: tuple | None = None):
    def check(t: Tiny) -> None:
        found = load_cases("tiny")[0].image()
        assert np.array_equal(found.array, expected) and found.spacing == (spacing and pytest.approx(spacing))
    return check


def labels(expected: np.ndarray): return lambda t: np.testing.assert_array_equal(load_cases("tiny")[0].mask(), expected)
def together(*checks): return lambda t: [c(t) for c in checks]


# Archives and files from elsewhere

@pytest.fixture(scope="module")
def server(tmp_path_factory):
    "A folder, and its address on the loopback device"
    folder = tmp_path_factory.mktemp("served")
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), dict(log_message=lambda *_: None))
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=folder))
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{running.server_port}"
    running.shutdown(); running.server_close()


def remote(name: str, content: bytes, **entry):
    "The table and one more file lie on a server and not here"
    def spoil(t: Tiny) -> None:
        folder, address = t.server
        for n, c in ((name, content), ("table.csv", (t.data / "table.csv").read_bytes())): (folder / n).write_bytes(c)
        del t.project.env["MEDSEG_DATA"]
        t.project.env["no_proxy"] = "*"
        listed = [dict(path=n, url=f"{address}/{n}", sha256=hashlib.sha256((folder / n).read_bytes()).hexdigest())
                  for n in ("table.csv", name)]
        listed[1] |= dict(unpack=name != "table.csv") | entry
        t.declare(files=[{k: v for k, v in e.items() if v is not None}
                         for e in (listed if name != "table.csv" else listed[1:])])
    return spoil


def zipped(**members) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in members.items(): z.writestr(name, content)
    return out.getvalue()


def tarred(name: str, content: bytes = b"x", **changes) -> bytes:
    out, member = io.BytesIO(), tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in changes.items(): setattr(member, key, value)
    with tarfile.open(fileobj=out, mode="w:gz") as z: z.addfile(member, io.BytesIO(content))
    return out.getvalue()


def unpacked(t: Tiny) -> None: assert (t.project.root / "cache" / "tiny" / "a" / "b" / "c.txt").read_bytes() == b"hello"


# Label maps in two folders

def maps(pred: np.ndarray, truth: np.ndarray):
    def spoil(t: Tiny) -> None:
        label_maps(t.project)
        for place, array in (("masks", pred), ("truth", truth)):
            Image.fromarray(array).save(t.project.root / place / "m.png")
    return spoil


def scores(**expected):
    def check(t: Tiny) -> None:
        row, = pd.read_csv(t.project.root / "scores.csv").to_dict("records")
        assert {k: row[k] for k in expected} == pytest.approx(expected, nan_ok=True)
    return check


EVALUATE = "evaluate masks truth --out scores.csv"
HOLES = VOLUME.astype(np.float32); HOLES[1, 1, 1] = np.nan
TURNED = {274: 6}  # EXIF: to be turned by 90 degrees
OBLIQUE = np.array([[1.6, -.9, 0, 10], [1.2, 1.2, 0, -20], [0, 0, -3, 30], [0, 0, 0, 1]])
RED = np.stack([SQUARE * 255, SQUARE * 0, SQUARE * 0], -1)
COLOURS = dict(mask=dict(column="mask", kind="colours", colours={"#000000": 0, "#ff0000": 1, "#010101": 1}))
BRIGHT = dict(mask=dict(column="mask", kind="threshold", threshold=127))
SOFT = (SQUARE * 255).astype(np.uint8); SOFT[3, 6:14] = 90
JPEG_LOSSLESS, HTJ2K, MPEG, RLE, JPEG_LS, J2K = ("1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.201",
                                                 "1.2.840.10008.1.2.4.102",
                                                 "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.80",
                                                 "1.2.840.10008.1.2.4.90")


def with_exif(t: Tiny) -> None:
    tag = Image.Exif(); tag[274] = 6
    for column, array in (("image", (GREY % 251).astype(np.uint8)), ("mask", SQUARE)):
        put(t, column, "turned.png", picture(array, exif=tag))


def copied(t: Tiny) -> None: (t.data / "images" / "p1.png").write_bytes((t.data / "images" / "p0.png").read_bytes())


def scenes(t: Tiny) -> None:
    "Six pictures that differ as photographs do"
    for k in range(6):
        rough = np.random.default_rng(k).normal(128, 50, (9, 8)).repeat(12, 0).repeat(12, 1)
        for place, array in (("images", np.clip(rough, 0, 255)), ("masks", rough * 0 + 1)):
            Image.fromarray(array.astype(np.uint8)).save(t.data / place / f"p{k}.png")


def again(t: Tiny) -> None:
    scenes(t); splits(t, ["p0", "p2", "p3"], ["p1", "p4", "p5"])
    Image.fromarray(np.rot90(np.asarray(Image.open(t.data / "images" / "p0.png")))).save(
        t.data / "images" / "p1.jpg", quality=80)
    Image.fromarray(np.ones((96, 108), np.uint8)).save(t.data / "masks" / "p1.png")
    t.table(lambda r: r | dict(image=r["image"].replace("p1.png", "p1.jpg")))


ROWS = (
    [Row(1, "truncated PNG", lambda t: cut(t.data / "images" / "p0.png"), "cut short"),
     Row(1, "PNG of its header alone", lambda t: image("p0.png", picture(SQUARE)[:40])(t), "cut short"),
     Row(2, "flipped bit in a PNG", lambda t: flip(t.data / "images" / "p0.png"), "damaged"),
     Row(3, "zero bytes", image("p0.png", b""), "0 bytes"),
     Row(4, "16-bit image", image("deep.png", picture(GREY * 100)), check=pixels(GREY * 100)),
     Row(
         5, "16-bit label that eight bits would wrap to 1", mask("m.png", picture(SQUARE.astype(np.uint16) * 257)),
         "257 (64 pixels)", "m.png"),
     Row(
         5, "16-bit label above the largest", lambda t: t.declare(labels=dict(background=0, lesion=257)),
         "less than or equal to 255", "dataset.yaml"),
     Row(
         5, "value that 32-bit numbers cannot hold", image("a.npy", saved(np.save, np.full((24, 20), 1e39))), "1e+39",
         "a.npy"),
     Row(6, "RGB mask of equal channels", mask("m.png", picture(np.stack([SQUARE] * 3, -1))), check=labels(SQUARE)),
     Row(6, "RGB mask of colours", mask("m.png", picture(RED)), "channels that differ", "m.png", "colours"),
     Row(6, "RGB mask of declared colours", mask("m.png", picture(RED), **COLOURS), check=labels(SQUARE)),
     Row(
         6, "RGB mask with an undeclared colour", mask("m.png", picture(RED // 2), **COLOURS), "#7f0000 (64 pixels)",
         "m.png"), Row(7, "JPEG mask", mask("m.jpg", picture(SQUARE * 255, "JPEG")), "loss", "m.jpg", "threshold"),
     Row(
         7, "JPEG inside a TIFF mask", mask("m.tif", picture(SQUARE * 255, "TIFF", compression="jpeg")), "loss",
         "m.tif", "threshold"),
     Row(7, "JPEG mask with a threshold", mask("m.jpg", picture(SQUARE * 255, "JPEG"), **BRIGHT), check=labels(SQUARE)),
     Row(7, "many-valued mask", mask("m.png", picture(SOFT)), "90 (8 pixels)", "m.png", "labels"),
     Row(7, "many-valued mask with a threshold", mask("m.png", picture(SOFT), **BRIGHT), check=labels(SQUARE)),
     Row(
         7, "threshold above every value",
         mask("m.png", picture(SOFT), mask=dict(column="mask", kind="threshold", threshold=255)),
         "never lie on both sides", "m.png"),
     Row(
         8, "palette in which index 1 is grey 76",
         mask(
             "m.png",
             png(8, 3, b"".join(b"\0" + bytes(r) for r in SQUARE), (20, 24), (b"PLTE", bytes([0, 0, 0, 76, 76, 76])))),
         check=labels(SQUARE)),
     Row(
         9, "EXIF rotation of image and mask", with_exif,
         check=together(pixels(np.rot90(GREY % 251, -1)), labels(np.rot90(SQUARE, -1)))),
     Row(
         9, "EXIF rotation of the mask alone",
         mask("m.png", picture(SQUARE, exif=(tag := Image.Exif(), tag.__setitem__(274, 6))[0])), "20 x 24", "m.png",
         "one grid"),
     Row(10, "header of 60000 x 60000 pixels", image("p0.png", png(8, 0, b"\0", (60000, 60000))), "above the limit"),
     Row(11, "NaN in a volume", volumes(values=HOLES), "NaN or infinity in 1 of 60", "v.nii"),
     Row(
         11, "NaN in an array", image("a.npy", saved(np.save, np.where(SQUARE, np.nan, 1.))),
         "NaN or infinity in 64 of 480", "a.npy"),
     Row(
         11, "infinity in an array", image("a.npy", saved(np.save, np.where(SQUARE, np.inf, 1.))), "NaN or infinity",
         "a.npy"),
     Row(
         12, "truncated .nii.gz", image("v.nii.gz", gzip.compress(nifti())[:-20]), "cut short", "v.nii.gz",
         "copy it again"),
     Row(
         12, "truncated compressed MetaImage",
         lambda t: put(t, "image", "v.mha", itk("v.mha", useCompression=True)(t)[:-20]), "compressed bytes", "v.mha"),
     Row(
         12, "truncated compressed NRRD",
         lambda t: put(t, "image", "v.nrrd", itk("v.nrrd", useCompression=True)(t)[:-20]), "cut short", "v.nrrd"),
     Row(
         13, "zero spacing in NIfTI", volumes(pixdim=[1, 2, 0, 3, 0, 0, 0, 0]), "spacing is 2, 0, 3", "v.nii",
         "true spacing"),
     Row(
         13, "zero spacing in MetaImage",
         lambda t: put(
             t, "image", "v.mha",
             itk("v.mha")(t).replace(b"ElementSpacing = 1 1 " b"1", b"ElementSpacing = 1 0 " b"1")),
         "spacing is 1, 0, 1", "v.mha"),
     Row(13, "zero spacing in DICOM", slice_(PixelSpacing=[0, 1]), "PixelSpacing is 0, 1", "d.dcm"),
     Row(13, "zero spacing in the manifest", lambda t: t.declare(spacing=[0, 1]), "spacing", "dataset.yaml"),
     Row(
         13, "spacing of another number of axes", lambda t: t.declare(spacing=[1, 1, 1]),
         "2 axes, the manifest's `spacing` 3", "p0.png"),
     Row(14, "sheared affine", volumes(qform_code=0, srow_x=[2, .5, 0, 0]), "sheared", "v.nii", "resample"),
     Row(15, "neither sform nor qform", volumes(sform_code=0, qform_code=0), "orientation is unknown", "v.nii"),
     Row(16, "qform and sform that disagree", volumes(qoffset_x=11), "disagree", "v.nii"),
     Row(
         17, "labels of 0.9999", volumes(CUBE * np.float32(.9999)),
         check=together(labels(CUBE), pixels(VOLUME, (2, 1.5, 3)))),
     Row(17, "labels of 0.5", volumes(CUBE * np.float32(.5)), "not whole, such as 0.5", "m.nii"),
     Row(18, "header of 27 terabytes", volumes(dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]), "above the limit", "v.nii"),
     Row(18, "header of more than the file", volumes(dim=[3, 300, 300, 300, 1, 1, 1, 1]), "of 54000352 bytes", "v.nii"),
     Row(
         19, "mask on another affine", volumes(mask_affine=AFFINE @ np.diag([-1, 1, 1, 1])),
         "affines of mask and image differ by 4", "m.nii", "resample"),
     Row(20, "mask of another size", lambda t: resize(t.data / "masks" / "p0.png", (20, 23)), "23 x 20"),
     Row(20, "mask of another depth", volumes(CUBE[..., :4]), "the mask is 3 x 4 x 4 and the image 3 x 4 x 5", "m.nii"),
     Row(
         20, "array mask of a few slices", mask("m.npy", saved(np.save, np.dstack([SQUARE, SQUARE * 0, SQUARE * 0]))),
         "channels that differ", "m.npy"),
     Row(21, "unknown label", lambda t: relabel(t.data / "masks" / "p0.png", 7), "7 (64 pixels)"),
     Row(
         22, "empty reference", maps(SQUARE, SQUARE * 0), words=EVALUATE,
         check=scores(outcome="false alarm", dice=0, sensitivity=np.nan, hd95_px=np.inf)),
     Row(
         22, "empty on both sides", maps(SQUARE * 0, SQUARE * 0), words=EVALUATE,
         check=scores(outcome="empty", dice=np.nan, hd95_px=np.nan)),
     Row(22, "empty mask in a set", mask("m.png", picture(SQUARE * 0)), check=labels(SQUARE * 0)),
     Row(
         23, "nothing but foreground", maps(SQUARE, SQUARE * 0 + 1), words=EVALUATE,
         check=scores(outcome="found", specificity=np.nan, sensitivity=.133333)),
     Row(24, "PixelData that is too short", slice_(PixelData=b"\0" * 10), "damaged or cut short", "d.dcm"),
     Row(25, "DICOM without preamble", image("d.dcm", dicom(GREY)[132:]), "preamble", "d.dcm"),
     Row(26, "RLE", slice_(syntax=RLE), check=pixels(GREY.astype(int) - 1024)),
     Row(26, "JPEG-LS", slice_(syntax=JPEG_LS), check=pixels(GREY.astype(int) - 1024)),
     Row(
         27, "JPEG 2000", slice_(syntax=J2K, encoded=picture(GREY, "JPEG2000", no_jp2=True)),
         check=pixels(GREY.astype(int) - 1024)),
     Row(
         27, "JPEG Lossless", slice_(syntax=JPEG_LOSSLESS, encoded=b"\xff\xd8\xff\xd9"), "JPEG Lossless", "d.dcm",
         "pylibjpeg[all]"),
     Row(
         27, "HTJ2K", slice_(syntax=HTJ2K, encoded=b"\xff\x4f\xff\xd9"), "High-Throughput JPEG 2000", "d.dcm",
         "pylibjpeg[all]"), Row(27, "MPEG-4", slice_(syntax=MPEG, encoded=b"\0\0"), "MPEG-4", "d.dcm", "uncompressed"),
     Row(
         28, "missing slice", series(lambda k: at(30 + 2.5 * (k + (k > 1)))), "s3.dcm and s2.dcm are 5 mm apart",
         "series", "whole series"),
     Row(29, "tilted gantry", series(lambda k: at(30 + 2.5 * k, 10 + .5 * k)), "tilted gantry", "series", "resample"),
     Row(
         30, "slice position twice", series(lambda k: at(30 + 2.5 * max(k, 1))),
         "s3.dcm and s4.dcm are at the same position", "series"),
     Row(
         31, "another intercept in each slice", series(lambda k: dict(RescaleIntercept=-1024 - k), mask_affine=LPS),
         check=pixels(np.stack([np.arange(12).reshape(3, 4).T + 99 * k - 1024 for k in range(4)], -1), (2, 1.5, 2.5))),
     Row(
         32, "two series in a folder", series(lambda k: dict(SeriesInstanceUID=f"1.2.{k // 3}")),
         "s2.dcm and 2 more, s1.dcm and 0 more", "series", "folder of its own"),
     Row(32, "two patients in a folder", series(lambda k: dict(PatientID=f"p{k // 3}")), "several patients", "series"),
     Row(
         32, "two orientations in a folder",
         series(lambda k: dict(ImageOrientationPatient=[1, 0, 0, 0, 0, 1]) if k == 1 else {}),
         "ImageOrientationPatient differs", "s3.dcm"),
     Row(
         33, "oblique volume of unequal steps", volumes(CUBE, OBLIQUE, affine=OBLIQUE),
         check=together(pixels(VOLUME, (2, 1.5, 3)), labels(CUBE))),
     Row(
         33, "DICOM image and NIfTI mask on one grid", series(mask_affine=LPS),
         check=together(
             labels(np.ones((4, 3, 4))),
             lambda t: np.testing.assert_allclose(load_cases("tiny")[0].image().affine, LPS))),
     Row(
         33, "the same mask as if its file pointed left", series(mask_affine=np.diag([-1, -1, 1, 1]) @ LPS),
         "affines of mask and image differ by", "m.nii"),
     Row(50, "slope of zero", slice_(RescaleSlope=0), "its RescaleSlope is 0", "d.dcm", "source"),
     Row(
         50, "slope without intercept", slice_(RescaleSlope=2, without="RescaleIntercept"), "has RescaleSlope alone",
         "d.dcm", "RescaleIntercept"),
     Row(
         50, "rescale elements on some slices only",
         series(lambda k: {} if k else dict(without="RescaleSlope RescaleIntercept")), "in whether it has RescaleSlope",
         "s4.dcm", "one way"),
     Row(
         51, "one SOPInstanceUID for all slices", series(lambda k: dict(SOPInstanceUID="1.2.3.4")),
         "has the SOPInstanceUID of s1.dcm", "s2.dcm", "UID of its own"),
     Row(
         52, "orientation of zeros", series(lambda k: dict(ImageOrientationPatient=[0] * 6)),
         "no pair of unit vectors at right angles", "s1.dcm", "source"),
     Row(
         52, "position of two numbers", series(lambda k: dict(ImagePositionPatient=[10, 20 + k])),
         "its ImagePositionPatient is not 3 finite numbers", "s1.dcm", "source"),
     Row(
         53, "MHD that names itself",
         image(
             "v.mhd",
             b"ObjectType = Image\nNDims = 2\nDimSize = 4 4\nElementType = MET_UCHAR\nElementDataFile = v.mhd\n"),
         "names itself", "v.mhd", ".raw"),
     Row(
         34, "MONOCHROME1", slice_(PhotometricInterpretation="MONOCHROME1", RescaleIntercept=0),
         check=pixels(4095 - GREY.astype(int))),
     Row(
         36, "patient on both sides of a split", lambda t: splits(t, ["p0", "p1", "p2", "p3"], ["p3", "p4", "p5"]),
         "patient p3 is in train and in test", "splits.json"),
     Row(
         36, "image under two patients", lambda t: first(t, image="images/p1.png"), "p1.png is listed under p0 and p1",
         "table.csv"),
     Row(
         36, "image under two patients and two names", copied, "has the pixels of p0.png, which is of another patient",
         "p1.png", words="train --data tiny --model cnn"),
     Row(
         37, "image that was turned and saved as JPEG under another patient", again,
         "are near-duplicates on different sides", "tiny", "split", words="data audit tiny"),
     Row(
         38, "missing columns", lambda t: t.table(lambda r: {k: v for k, v in r.items() if k in ("case", "image")}),
         "column mask, patient is missing", "table.csv"),
     Row(
         39, "ids 7 and 007", table("007,1,images/p0.png,masks/p0.png,1", "7,01,images/p1.png,masks/p1.png,2"),
         check=lambda t: None if [(c.id, c.patient) for c in load_cases("tiny")] == [("007", "1"), ("7", "01")]
         else pytest.fail("ids became numbers")),
     Row(
         40, "column that stands twice",
         table("c0,p0,images/p0.png,masks/p0.png,1,2", head="case,patient,image,mask,age,age"), "age stands twice",
         "table.csv"),
     Row(
         40, "NA in a cell", table("c0,p0,images/p0.png,masks/p0.png,NA", ""), check=lambda t: None
         if [c.fields["age"] for c in load_cases("tiny")] == [None, 1] else pytest.fail("NA is no age")),
     Row(41, "latin-1", text("case,patient,image,mask,größe\n", "latin-1"), "not UTF-8", "table.csv", "UTF-8"),
     Row(
         41, "byte order mark", lambda t: text((t.data / "table.csv").read_text(), "utf-8-sig")(t),
         check=labels(SQUARE)),
     Row(
         42, "semicolons and decimal commas",
         text("case;patient;image;mask;age\nc0;p0;images/p0.png;masks/p0.png;1,5\n"), "semicolons", "table.csv",
         "commas"),
     Row(
         42, "decimal comma in quotes", table('c0,p0,images/p0.png,masks/p0.png,"1,5"', ""), "'1,5' is not a number",
         "table.csv"),
     Row(
         44, "zip that slips out", remote("a.zip", zipped(**{"b.txt": "", "../../c.txt": "x"})), "'../../c.txt' leaves",
         "a.zip", words="data fetch tiny"),
     Row(44, "sound zip", remote("a.zip", zipped(**{"b/c.txt": "hello"})), words="data fetch tiny", check=unpacked),
     Row(
         45, "tar that slips out", remote("a.tar.gz", tarred("../../c.txt")), "'../../c.txt' leaves", "a.tar.gz",
         words="data fetch tiny"),
     Row(
         45, "tar with a link that leads out",
         remote("a.tgz", tarred("c", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")), "is a link", "a.tgz",
         words="data fetch tiny"),
     Row(
         45, "tar with a device", remote("a.tar", tarred("c", b"", type=tarfile.CHRTYPE)), "is a device", "a.tar",
         words="data fetch tiny"),
     Row(45, "sound tar", remote("a.tar.gz", tarred("b/c.txt", b"hello")), words="data fetch tiny", check=unpacked),
     Row(
         46, "zip bomb", remote("a.zip", zipped(b=bytes(5 * 10**6))), "unpacks to more than", "a.zip",
         words="data fetch tiny"),
     Row(
         46, "tar bomb", remote("a.tgz", tarred("b", bytes(5 * 10**6))), "unpacks to more than", "a.tgz",
         words="data fetch tiny"),
     Row(
         48, "array of Python objects", image("a.npy", saved(np.save, np.array([[{}]], dtype=object))),
         "Python objects", "a.npy"),
     Row(
         49, "other hash than the manifest's", lambda t: t.declare(files=[dict(path="images/p0.png", sha256="0" * 64)]),
         "the manifest says 000000000000", "images/p0.png", "fetch"),
     Row(
         49, "empty hash", lambda t: t.declare(files=[dict(path="images/p0.png", sha256="")]), "files.0.sha256",
         "dataset.yaml"),
     Row(
         49, "other hash than the manifest's, before the table is read",
         lambda t: (text("garbage")(t), t.declare(files=[dict(path="table.csv", sha256="0" * 64)])), "hash",
         "table.csv"),
     Row(
         49, "fetched file of another hash", remote("table.csv", b"x", sha256="0" * 64), "another hash", "table.csv",
         words="data fetch tiny"),
     Row(
         49, "file to fetch without a hash", remote("table.csv", b"x", sha256=None), "cannot be fetched", "tiny",
         words="data fetch tiny", code=4),])


@pytest.fixture
def corpus(tiny_data, server) -> Tiny:
    tiny_data.server = server
    return tiny_data


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.id)
def test_row(corpus, row):
    row.spoil(corpus)
    before = results(corpus.project)
    done = corpus.project.call(*row.words.split())
    # without progress
    done.stderr = "\n".join(x for x in done.stderr.splitlines() if not re.search(r": \d+ of \d+, \d+ s$", x))
    if row.check:
        assert done.returncode == row.code and "error" not in done.stderr, done.stderr
        with corpus.project.inside(): row.check(corpus)
    else:
        assert refused(done, row.subject, row.fault, row.code or 2) and row.remedy in done.stderr.rpartition("; ")[2]
        assert results(corpus.project) == before
        cached = {p.name for p in (corpus.project.root / "cache").rglob("*")
                  if p.is_file() and not p.name.endswith("lock")}
        assert cached <= {"table.csv", row.subject}, "something was unpacked"


def test_every_demanded_row_is_here():
    assert {r.number for r in ROWS} == DEMANDED and len({r.id for r in ROWS}) == len(ROWS)


# A batch goes on with the rest

def bad_files(folder: Path, column: str) -> dict[str, bytes]:
    "The spoilt pictures or masks of the corpus, each under a name of its own"
    found = {}
    for row in (r for r in ROWS if r.fault and r.words == VERIFY):
        tiny = add_tiny(new_project(folder / row.id))
        before = {p: p.read_bytes() for p in tiny.data.rglob("*.*")}
        row.spoil(tiny)
        changed = [p for p in (tiny.data / f"{column}s").iterdir() if p.is_file() and before.get(p) != p.read_bytes()]
        if len(changed) == 1: found[f"r{len(found)}{''.join(changed[0].suffixes)}"] = changed[0].read_bytes()
    return found


def test_predict_goes_on(trained, tmp_path):
    (tmp_path / "in").mkdir()
    bad = bad_files(tmp_path, "image")
    for name, content in bad.items(): (tmp_path / "in" / name).write_bytes(content)
    for name in ("a.png", "z.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)).save(tmp_path / "in" / name)
    done = trained.call("predict", trained.key, tmp_path / "in", "--out", tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "predict.csv").set_index("file")
    assert (done.returncode == 3 and len(bad) > 15 and f"2 of {len(bad) + 2} images" in done.stdout
            and "Traceback" not in done.stderr)
    assert ({p.name for p in (tmp_path / "out").iterdir()} == {"a.png", "z.png", "pictures", "predict.csv"}
            and table.status[["a.png", "z.png"]].tolist() == ["done"] * 2)
    assert all(table.status[name] == "rejected" and name in table.reason[name]
               and "; " in table.reason[name] for name in bad), table.reason


def test_evaluate_goes_on(fresh, tmp_path):
    bad, root = bad_files(tmp_path, "mask"), fresh.root
    for place in ("masks", "truth"): (root / place).mkdir()
    for name, content in bad.items():
        (root / "masks" / name).write_bytes(content)
        Image.fromarray(SQUARE).save(root / "truth" / f"{name.partition('.')[0]}.png")
    for place in ("masks", "truth"):
        for name in ("a", "z"): Image.fromarray(SQUARE).save(root / place / f"{name}.png")
    Image.fromarray(SQUARE).save(root / "truth" / "lost.png")
    done = fresh.call(*EVALUATE.split())
    assert done.returncode == 3 and len(bad) > 5
    lines = done.stderr.splitlines()
    assert (all(x.startswith("error: ") and "; " in x for x in lines)
            and any("lost.png: has no prediction" in x for x in lines))
    table = pd.read_csv(root / "scores.csv", dtype=dict(case=str))
    assert {"a", "z"} <= set(table.case) and (table.dice[table.case.isin(["a", "z"])] == 1).all()
    for name in bad: assert (name.partition(".")[0] in set(table.case)) != any(name in x for x in lines), (name, lines)
