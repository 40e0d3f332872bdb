("What must hold for any input: the algebra of the scores, and readers that read or refuse. `make stress` runs the "
 "same for five minutes.")
import io
import itertools
import json
import math
import re
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import yaml
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import TINY, add_tiny, dicom, new_project, png
from medseg_nb.data import manifest as data
from medseg_nb.evaluation import surface_distances as distances
from medseg_nb.kit.core import MedsegError
from medseg_nb.evaluation.surface_distances import CONVENTIONS, boundary_iou, surface_distances
from medseg_nb.images.files import Encoding, read_image, read_mask
from medseg_nb.evaluation.matching import (average_precision, instance_scores, iou_matrix, lesion_scores,
                                           label_overlaps, instance_masks)
from medseg_nb.evaluation.metrics import (METRICS, accuracy, brier, calibration_error, confusion_matrix, dice, iou,
                                          precision, score, sensitivity, specificity, volume_difference)
from medseg_nb.data.splits import load_split

# no clock and no memory decide what is tried
STEADY = dict(deadline=None, database=None, suppress_health_check=list(HealthCheck))


def hold(check, strategy, n: int) -> None:
    "Run a check on the same `n` inputs every time"
    settings(max_examples=n, derandomize=True, **STEADY)(given(strategy)(check))()


def hold_for(check, strategy, seconds: float) -> None:
    "Run a check on ever new inputs"
    end = time.monotonic() + seconds
    for k in itertools.count():
        if time.monotonic() > end: return
        seed(k)(settings(max_examples=100, **STEADY)(given(strategy)(check)))()


def read_or_refused(call, *names: str):
    """What the call returns, or None where it refuses in one line with a name, the fault and a remedy; any other
    exception passes"""
    try: return call()
    except MedsegError as e:
        assert "\n" not in str(e) and any(n in e.subject for n in names) and e.fault and len(e.remedy) > 5, str(e)


# Algebra of the scores

@st.composite
def masks(draw, n: int = 2):
    "`n` masks of one shape, and a spacing"
    shape = draw(st.one_of(st.tuples(*[st.integers(1, 7)] * 2), st.tuples(*[st.integers(1, 4)] * 3)))
    size = math.prod(shape)
    found = [np.unpackbits(np.frombuffer(draw(st.binary(min_size=-(-size // 8), max_size=-(-size // 8))),
                                         np.uint8))[:size].reshape(shape).astype(bool) for _ in range(n)]
    if draw(st.booleans()): found = [m.repeat(2, 0).repeat(3, -1) for m in found]  # larger pieces
    return *found, draw(st.tuples(*[st.sampled_from([.5, .7, 1., 3.])] * len(shape)))


def same(a, b) -> bool: return np.allclose(a, b, rtol=1e-9, atol=1e-12, equal_nan=True)


def moved(*arrays):
    "The same pair turned, mirrored and on a wider field"
    yield [a[::-1] for a in arrays]
    yield [a[..., ::-1] for a in arrays]
    yield [a.T for a in arrays]
    yield [np.asfortranarray(a) for a in arrays]


def overlap_algebra(example) -> None:
    p, t, spacing = example
    forth, back = confusion_matrix(p, t), confusion_matrix(t, p)
    tp, fp, fn, tn = forth
    assert sum(forth) == p.size and min(forth) >= 0 and all(confusion_matrix(*m) == forth for m in moved(p, t))
    assert all(math.isnan(v) or 0 <= v <= 1
               for f in (dice, iou, accuracy, sensitivity, specificity, precision) for v in [f(*forth)])
    assert all(same(f(*forth), f(*back)) for f in (dice, iou, accuracy)) and same(sensitivity(*forth), precision(*back))
    assert (same(specificity(*forth), sensitivity(*confusion_matrix(~p, ~t)))
            and same(accuracy(*forth), accuracy(*confusion_matrix(~p, ~t))))
    j = iou(*forth)
    assert (same(dice(*forth), 2 * j / (1 + j)) and (math.isnan(j) or j <= dice(*forth))
            and (not t.any() or dice(*confusion_matrix(t, t)) == iou(*confusion_matrix(t, t)) == 1))
    if p.any() and t.any():
        assert same(dice(*forth), 2 / (1 / precision(*forth) + 1 / sensitivity(*forth)) if tp else 0)
    if t.any():
        assert same(volume_difference(*forth), (p.sum() - t.sum()) / t.sum()) and volume_difference(*forth) >= -1
    for change, better in (t & ~p, True), (~t & ~p, False):  # one pixel more, right or wrong
        if not change.any(): continue
        more = p.copy(); more.ravel()[np.flatnonzero(change)[0]] = True
        now = confusion_matrix(more, t)
        for f in (dice, iou, accuracy, precision) + ((sensitivity,) if better else (specificity,)):
            before, after = f(*forth), f(*now)
            assert (math.isnan(before) or math.isnan(after)
                    or (after >= before - 1e-12 if better else after <= before + 1e-12)), f


def distance_algebra(example) -> None:
    p, t, third, spacing = example
    for name in CONVENTIONS:
        def measured(a, b, s):
            d = surface_distances(a, b, s, name)
            return np.array([d.percentile(100), d.percentile(95),
                             d.percentile(50), d.mean(), d.nsd(1), d.boundary_f1(1)])
        d, values = surface_distances(p, t, spacing, name), measured(p, t, spacing)
        far, near, half, mean, nsd, f1 = values
        if not (p.any() and t.any()):
            expected = [np.nan] * 6 if not (p.any() or t.any()) else [np.inf] * 4 + [0, 0]
            assert same(values, expected); continue
        assert 0 <= half <= near <= far < np.inf and 0 <= mean <= far and 0 <= nsd <= 1 and 0 <= f1 <= 1
        assert (far == 0 or (p != t).any()) and same(measured(t, t, spacing), [0, 0, 0, 0, 1, 1])
        others = [(t, p, spacing), (p.T, t.T, spacing[::-1]), (np.pad(p, 2), np.pad(t, 2), spacing),
                  (p[::-1], t[::-1], spacing), (p[..., ::-1], t[..., ::-1], spacing)]
        assert all(same(values, measured(*o)) for o in others)
        assert same(values[:4] * 2.5, measured(p, t, tuple(2.5 * s for s in spacing))[:4])
        wide = [d.nsd(x) for x in (0, .5, 1, 2, far)]
        assert (wide == sorted(wide) and wide[-1] == 1 and d.boundary_f1(far) == 1
                and min(d.shares_within(1)) - 1e-12 <= f1 <= max(d.shares_within(1)) + 1e-12)
        if third.any() and name == "outline":  # the Hausdorff distance is a metric on outlines
            assert far <= surface_distances(p, third,
                                            spacing).percentile(100) + surface_distances(third, t, spacing).percentile(
                100) + 1e-9
        assert np.abs(d.sides[0]).max() <= np.linalg.norm(np.multiply(p.shape, spacing))
    rims = boundary_iou(p, t, spacing)
    assert (math.isnan(rims) == (not (p.any() or t.any()))
            and (math.isnan(rims) or 0 <= rims <= 1) and same(rims, boundary_iou(t, p, spacing)))
    assert all(same(rims, boundary_iou(*m, spacing)) for m in [(p[::-1], t[::-1]), (p[..., ::-1], t[..., ::-1])])
    assert (same(boundary_iou(p, t, tuple(4 * s for s in spacing)), rims)
            and (not p.any() or boundary_iou(p, p, spacing) == 1))


@st.composite
def label_maps(draw):
    "Two label maps of one shape, labels 0 to 3, and another name for each label"
    a, b, c, d, _ = draw(masks(4))
    return a + 2 * b, c + 2 * np.where(draw(st.booleans()), b, d), [0, *draw(st.permutations([1, 2, 3, 77, 1000]))]


def instance_algebra(example) -> None:
    p, t, names = example
    named = np.array(names)
    s, back, other = instance_scores(p, t), instance_scores(t, p), instance_scores(named[p], named[t])
    assert (all(math.isnan(v) or 0 <= v <= 1 for v in s.values())
            and all(same(s[k], back[k]) and same(s[k], other[k]) for k in s))
    assert all(same(list(s.values()), list(instance_scores(*m).values())) for m in moved(p, t))
    if not (p.any() or t.any()): assert all(math.isnan(v) for v in s.values()); return
    assert (s["ap75"] <= s["ap50"] and s["ap"] <= s["ap50"] + 1e-12
            and (math.isnan(s["sq"]) and s["rq"] == s["pq"] == 0 or same(s["pq"], s["sq"] * s["rq"]) and s["sq"] > .5))
    assert same(s["ap50"], s["rq"] / (2 - s["rq"])) and (not t.any() or list(instance_scores(t, t).values()) == [1] * 6)
    table = label_overlaps(p, t)
    assert (table.pixels.sum() == p.size and (table.pixels[1:] > 0).all()
            and table.pixels[0] == ((p == 0) & (t == 0)).sum())
    both = iou_matrix(instance_masks(p), instance_masks(t))
    assert (both.shape == (len(np.unique(p[p > 0])), len(np.unique(t[t > 0])))
            and (not both.size or 0 <= both.min() and both.max() <= 1)
            and same(both.T, iou_matrix(instance_masks(t), instance_masks(p))))
    ap = [average_precision([(both, np.arange(len(both)) / 9)], x) for x in (.3, .5, .9)]
    assert all(math.isnan(v) for v in ap) if not t.any() else 1 >= ap[0] >= ap[1] >= ap[2] >= 0
    found, itself = lesion_scores(p > 0, t > 0), lesion_scores(t > 0, t > 0)
    assert (itself["lesion_false_positives"] == 0 and (not t.any() or itself["lesion_sensitivity"] == 1)
            and found["lesion_false_positives"] >= 0)
    assert (all(same(list(found.values()), list(lesion_scores(*m).values())) for m in moved(p > 0, t > 0))
            and lesion_scores((p > 0) | (t > 0), t > 0)["lesion_sensitivity"] in (
        1, pytest.approx(np.nan, nan_ok=True)))


def score_algebra(example) -> None:
    "The table of a case: each label by itself, whatever it is called, in mm or in pixels"
    p, t, names = example
    named, spacing, regions = np.array(names), (2.,) * p.ndim, dict(a=[1], b=[2, 3])
    rows, renamed = score(p, t, regions, spacing), score(named[p], named[t],
                                                         {k: named[v].tolist() for k, v in regions.items()}, spacing)
    def numbers(row): return [v for k, v in row.items() if k not in ("region", "outcome")]
    for row, other, values in zip(rows, renamed, regions.values()):
        a, b = np.isin(p, values), np.isin(t, values)
        assert (row["outcome"] == other["outcome"]
                == {(1, 1): "found", (0, 1): "missed", (1, 0): "false alarm", (0, 0): "empty"}[a.any(), b.any()]
                and same(numbers(row), numbers(other)))
        assert (same(row["dice"], dice(*confusion_matrix(a, b)))
                and same(row["hd95_mm"], surface_distances(a, b, spacing).percentile(95)))
    pixels, unit = score(p, t, regions, None), score(p, t, regions, (1.,) * p.ndim)
    assert all(same([r["hd95_px"], r["assd_px"], r["nsd_1px"]], [u["hd95_mm"], u["assd_mm"], u["nsd_1mm"]])
               for r, u in zip(pixels, unit))
    assert all(same(numbers(r), numbers(m)) for q in moved(p, t) for r, m in zip(rows, score(*q, regions, spacing)))


def registry_algebra(example) -> None:
    "Each score of the registry stays in its range, is the same for a mirrored pair, and is best for equal masks"
    p, t, spacing = example
    for m in METRICS:
        value = m.of(p, t, spacing)
        assert math.isnan(value) or m.range[0] <= value <= m.range[1], (m.name, value)
        assert same(value, m.of(p[::-1], t[::-1], spacing)), m.name
        best = m.of(t, t, spacing)
        assert math.isnan(best) or best == dict(higher=m.range[1], lower=m.range[0], zero=0)[m.better], (m.name, best)


@st.composite
def squares(draw):
    """Side, corner and shift of a square, size of a pixel, and the number of entries from which trees take the place of
    a matrix"""
    side, axes = draw(st.integers(1, 24)), draw(st.integers(2, 3))
    corner, shift = draw(st.tuples(*[st.integers(0, 300 if axes == 2 else 20)] * axes)), draw(st.integers(1, 24))
    step = draw(st.one_of(st.sampled_from([.05, .1, .3, .35, .7, .9, 1.1, 3.3]), st.floats(.01, 10)))
    return min(side, 8) if axes == 3 else side, corner, shift, draw(st.integers(0, axes - 1)), step, draw(
        st.sampled_from([0, 2**18, 2**40]))


def position_algebra(example) -> None:
    """What lies as far as the tolerance counts, wherever it lies, whatever a pixel measures, by either search and in
    every convention"""
    side, corner, shift, axis, step, entries = example
    a = np.zeros([c + side + 1 + shift for c in corner], bool)
    a[tuple(slice(c, c + side) for c in corner)] = True
    b, tolerance = np.roll(a, shift, axis), shift * step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distances, "MAX_PAIRS", entries)
        for name in CONVENTIONS:
            d, unit = (surface_distances(a, b, (s,) * a.ndim, name) for s in (step, 1.))
            assert same([d.nsd(tolerance), d.boundary_f1(tolerance)], [1, 1]) and d.nsd(tolerance * (1 - 1e-6)) < 1
            near = max(0, shift - 1)
            assert same([d.nsd(near * step), d.boundary_f1(near * step), *d.shares_within(near * step)],
                        [unit.nsd(near), unit.boundary_f1(near), *unit.shares_within(near)])
            assert same([d.percentile(q) for q in (50, 90, 95, 100)],
                        [step * unit.percentile(q) for q in (50, 90, 95, 100)])
    assert same(boundary_iou(a, b, (step,) * a.ndim), boundary_iou(a, b, (1.,) * a.ndim))


def calibration_algebra(example) -> None:
    truth, _, numbers = example
    p = np.random.default_rng(numbers).random(truth.shape)
    order = np.random.default_rng(numbers).permutation(truth.size)
    for f in (brier, calibration_error):
        value = f(p, truth)
        assert (0 <= value <= 1 and same(value, f(p.ravel()[order], truth.ravel()[order]))
                and f(truth * 1., truth) == 0 and f(1. - truth, truth) == 1)
    assert same(brier(p, truth), brier(1 - p, ~truth)) and same(brier(np.stack([1 - p, p]), truth * 1), brier(p, truth))
    assert same(brier(np.stack([1 - p, p, 0 * p]), truth * 1), brier(p, truth) * 2 / 3)
    assert (calibration_error(np.full(truth.shape, truth.mean()), truth) < 1e-9
            and brier(p, truth) >= calibration_error(p, truth)**2 - 1e-9)


ALGEBRA = {"overlap": (overlap_algebra, masks(), 300), "distances": (distance_algebra, masks(3), 150),
           "positions": (position_algebra, squares(), 200), "instances": (instance_algebra, label_maps(), 200),
           "score": (score_algebra, label_maps(), 60), "registry": (registry_algebra, masks(), 40),
           "calibration": (calibration_algebra,
                           masks(1).flatmap(lambda m: st.tuples(st.just(m[0]), st.none(), st.integers(0, 99))), 150)}


@pytest.mark.parametrize("name", ALGEBRA)
def test_algebra(name): hold(*ALGEBRA[name])


# Images: random bytes, and valid files of each format with flipped, lost and doubled bytes and odd numbers

def samples() -> dict[str, bytes]:
    "A small valid file of each format, by name"
    draw, found = np.random.default_rng(0), {}
    grey, deep, volume = (draw.integers(0, 4, (9, 7), np.uint8), draw.integers(0, 4096, (9, 7), np.uint16),
                          draw.integers(0, 4, (5, 4, 3)).astype(np.int16))
    pictures = {"grey.png": grey, "deep.png": deep, "rgb.png": np.stack([grey] * 3, -1),
                "a.gif": grey, "a.bmp": grey, "rgb.bmp": np.stack([grey] * 3, -1),
                "a.jpg": grey * 60, "rgb.jpg": np.stack([grey * 60] * 3, -1),
                "a.tif": grey, "deep.tif": deep, "float.tif": deep / np.float32(7)}
    for name, array in pictures.items():
        for kind in [{}] + [dict(compression=c)
                            for c in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg") if name == "a.tif"]:
            out = io.BytesIO(); Image.fromarray(array).save(
                out, format=dict(jpg="JPEG", tif="TIFF").get(name[-3:], name[-3:]), **kind)
            found["".join(kind.values()) + name] = out.getvalue()
    found["index.png"] = png(2, 3, b"\0\x1b" * 3, (4, 3), (b"PLTE", bytes(range(12))))
    with tempfile.TemporaryDirectory() as t:
        np.save(f"{t}/a.npy", grey); np.savez_compressed(f"{t}/a.npz", deep)
        affine = np.diag([2, 1.5, 3, 1])
        for name, kind in (("a.nii", nibabel.Nifti1Image),
                           ("a.nii.gz", nibabel.Nifti1Image), ("two.nii", nibabel.Nifti2Image)):
            image = kind(volume, affine); image.set_sform(affine, 1); image.set_qform(affine, 1)
            nibabel.save(image, f"{t}/{name}")
        for name in ("a.mha", "packed.mha", "a.nrrd", "packed.nrrd"):
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(volume.T), f"{t}/{name}", useCompression="packed" in name)
        for name in ("colour.png", "colour.tif"):
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.stack([deep] * 3, -1), isVector=True), f"{t}/{name}")
        found |= {p.name: p.read_bytes() for p in Path(t).iterdir()}
    return found | {"a.dcm": dicom(deep), "rle.dcm": dicom(deep, "1.2.840.10008.1.2.5"),
                    "grey.dcm": dicom(deep, PhotometricInterpretation="MONOCHROME1", WindowWidth=9)}


SAMPLES = samples()
ODD = [b"0", b"-1", b"nan", b"inf", b"1e999", b"3.5", b"65536", b"99999999999", b"", b"x"]


@st.composite
def spoilt(draw) -> tuple[str, bytes]:
    "A file's name and its spoilt content"
    name = draw(st.sampled_from(sorted(SAMPLES)))
    if draw(st.integers(0, 19)) == 0:
        return name, SAMPLES[name][:draw(st.integers(0, 400))] + draw(st.binary(max_size=300))
    data = bytearray(SAMPLES[name])
    for _ in range(draw(st.integers(1, 4))):
        place, way = draw(st.integers(0, max(len(data) - 1, 0))), draw(st.integers(0, 9))
        if way < 6 and data: data[place] = draw(st.integers(0, 255))      # another byte
        elif way == 6: del data[place:]                                    # the end is lost
        elif way == 7: data[place:place] = data[place:place + draw(st.integers(1, 30))]
        elif way == 8:
            data[place:place + 4] = draw(
                st.sampled_from([b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"]))
        else:                                                              # another number in a header of text
            words = [w for w in re.finditer(rb"(?<=[ (,])[-\d.]+", bytes(data[:600]))]
            if words: w = words[place % len(words)]; data[w.start():w.end()] = draw(st.sampled_from(ODD))
    return name, bytes(data)


ENCODINGS = [None, Encoding(), Encoding(kind="threshold", threshold=1), Encoding(kind="bits", readers=2, consensus=1),
             Encoding(kind="colours", colours={"#000000": 0, "#010101": 1, "#020202": 2, "#030303": 3})]
FOLDER = tempfile.TemporaryDirectory()


def image_is_sound(example) -> None:
    "A file is an image of finite numbers with a true grid, or a label map of whole numbers, or is refused"
    (name, content), encoding = example
    path = Path(FOLDER.name) / name
    path.write_bytes(content)
    if encoding:
        mask = read_or_refused(lambda: read_mask(path, encoding), name)
        assert mask is None or mask.dtype.kind in "ub" and mask.ndim - (encoding.kind == "bits") in (2, 3) and mask.size
        return
    image = read_or_refused(lambda: read_image(path), name)
    if image is None: return
    assert (image.ndim in (2, 3) and image.array.ndim == image.ndim + (image.channels > 0)
            and image.array.size and np.isfinite(image.array).all())
    assert image.spacing is None or len(image.spacing) == image.ndim and all(0 < s < math.inf for s in image.spacing)
    assert (image.affine is None or np.isfinite(image.affine).all()
            and np.allclose(np.linalg.norm(image.affine[:3, :3], axis=0), image.spacing))


# Manifest, table and split: odd values in every place, and text that is none of these

ODD_TEXT = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["case", "patient", "image", "mask", "table.csv", "labels", "number", "before", "after"]),
    st.sampled_from(
        ["", " ", "{case}", "{", "{case:>9999999}", "{case.__class__}", "{#}", "../x", "/etc/passwd", "image",
         "unknown", "nan", "0", "(", "(.*)", "*.png", "**/*", "a\0b", "x" * 300, "medseg_nb.data.manifest", "~"]))
LEAF = st.one_of(st.none(), st.booleans(), st.integers(-3, 300), st.integers(), st.floats(), ODD_TEXT, st.dates())
VALUE = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.one_of(ODD_TEXT, st.integers(-2, 9)), inner, max_size=3)),
    max_leaves=6)
FULL = TINY | dict(regions=dict(all=[1]),
                   columns=[dict(name="age", column="case", type="category", known="before", unit="")],
                   rows=dict(column="case", pattern=".*"), missing=["x"],
                   site=dict(column="patient", pattern="(.)"), files=[dict(path="table.csv", count=1)], bring="")


def places(value, place=()) -> list[tuple]:
    "Where something stands in nested mappings and lists"
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(p for k, v in inner for p in places(v, (*place, k)))]


@st.composite
def manifests(draw) -> bytes:
    if draw(st.integers(0, 9)) == 0:
        return draw(st.one_of(st.binary(max_size=80),
                              st.text("[]{}:-&*!|>%@`'\"#,? \n\tab01.<=", max_size=60).map(str.encode)))
    facts = json.loads(json.dumps(FULL))
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from([p for p in places(facts) if p]))
        holder = facts
        for k in way: holder = holder[k]
        if draw(st.integers(0, 4)): holder[last] = draw(VALUE)
        elif isinstance(holder, dict): del holder[last]
        if draw(st.integers(0, 9)) == 0 and isinstance(holder, dict): holder[draw(ODD_TEXT)] = draw(VALUE)
    text = yaml.safe_dump(facts, allow_unicode=True).encode("utf-8", "surrogatepass")
    return text[:draw(st.integers(0, len(text)))] if draw(st.integers(0, 19)) == 0 else text


@st.composite
def tables(draw) -> bytes:
    rows = ([["case", "patient", "image", "mask"]]
            + [[f"c{k}", f"p{k}", f"images/p{k}.png", f"masks/p{k}.png"] for k in range(3)])
    if draw(st.integers(0, 9)) == 0:
        return draw(st.one_of(st.binary(max_size=60), st.text(',;"\n\r\t\0aé', max_size=60).map(str.encode)))
    for _ in range(draw(st.integers(1, 4))):
        row = draw(st.sampled_from(rows))
        way = draw(st.integers(0, 3))
        if way and row: row[draw(st.integers(0, len(row) - 1))] = draw(ODD_TEXT)
        elif draw(st.booleans()): row.append(draw(ODD_TEXT))
        else: row.clear()
    text = draw(st.sampled_from(["\n", "\r\n"])).join(draw(st.sampled_from([",", ",", ";"])).join(r) for r in rows)
    return text.encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])), "surrogatepass")


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    "A project with the data set `tiny`, entered once"
    tiny = add_tiny(new_project(tmp_path_factory.mktemp("any")))
    with tiny.project.inside(): yield tiny


def everything() -> None:
    "Read all of the data set `tiny`, with nothing kept from before"
    for kept in (data.load_cases, data.verify_files, data.content_hash, data._read_manifest): kept.cache_clear()
    for c in data.load_cases("tiny")[:1]: c.image(), c.mask()
    load_split("tiny")


def spoil(path: Path):
    "A check that writes a file anew and reads the set; the file is put back"
    def check(content: bytes) -> None:
        whole = path.read_bytes() if path.exists() else None
        path.write_bytes(content)
        try: read_or_refused(everything, "tiny", "medseg_nb", "own", "split.folds", "label")
        finally: path.unlink() if whole is None else path.write_bytes(whole)
    return check


FOLDS = st.lists(st.tuples(st.sets(st.sampled_from([f"p{k}" for k in range(6)])), st.sampled_from([0, 0, 0, 1])),
                 max_size=3).map(
    lambda folds: dict(folds=[dict(train=sorted(s), test=sorted({f"p{k}" for k in range(6 - more)} - s))
                              for s, more in folds]))
JSONS = (
    st.one_of(
        FOLDS.map(lambda v: json.dumps(v).encode()), VALUE.map(lambda v: json.dumps(v, default=str).encode()),
        st.binary(max_size=40),
        st.dictionaries(
            st.sampled_from(["folds", "content", "rule"]),
            st.one_of(
                VALUE,
                st.lists(
                    st.dictionaries(
                        st.sampled_from(["train", "test"]),
                        st.lists(st.sampled_from([f"p{k}" for k in range(7)]), max_size=6), max_size=2),
                    max_size=2))).map(lambda v: json.dumps(v, default=str).encode())))
READERS = {"images": (lambda t: image_is_sound, st.tuples(spoilt(), st.sampled_from(ENCODINGS)), 2000),
           "manifest": (lambda t: spoil(t.manifest), manifests(), 700),
           "table": (lambda t: spoil(t.data / "table.csv"), tables(), 700),
           "split": (lambda t: spoil(t.manifest.parent / "splits.json"), JSONS, 400)}


@pytest.mark.long
@pytest.mark.parametrize("name", READERS)
def test_reader_reads_or_refuses(inside, name):
    check, strategy, n = READERS[name]
    hold(check(inside), strategy, n)


@pytest.mark.stress
@pytest.mark.parametrize("name", [*READERS, *ALGEBRA])
def test_for_long(inside, name):
    "Five minutes for all of them"
    if name in ALGEBRA: hold_for(*ALGEBRA[name][:2], 15)
    else: hold_for(READERS[name][0](inside), READERS[name][1], 120 if name == "images" else 20)
