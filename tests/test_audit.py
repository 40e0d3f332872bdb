"Splits and their audit: a split that leaks is refused, whatever way the leak took; a clean one passes."
import csv
import io
import json

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.ndimage import gaussian_filter

from conftest import REPO, Project, refused


def picture(seed: int) -> np.ndarray:
    "A smooth random picture in grey, 96 by 96"
    field = gaussian_filter(np.random.default_rng(seed).normal(size=(96, 96)), 3)
    return np.uint8(np.clip(128 + 60 * field / field.std(), 0, 255))


@pytest.fixture
def textures(tiny_data):
    "The data set `tiny` with pictures that differ as photographs do, and its split frozen"
    for k in range(6): save(tiny_data, k, picture(k))
    freeze(tiny_data)
    return tiny_data


def save(t, k: int, pixels: np.ndarray) -> None:
    "Replace the picture of patient k; its mask takes the picture's size"
    Image.fromarray(pixels).save(t.data / "images" / f"p{k}.png")
    Image.fromarray(np.pad(np.ones((4, 4), np.uint8), ((2, pixels.shape[0] - 6), (2, pixels.shape[1] - 6)))).save(
        t.data / "masks" / f"p{k}.png")


def freeze(t, train=("p0", "p1", "p2"), test=("p3", "p4", "p5")) -> None:
    (t.manifest.parent / "splits.json").write_text(json.dumps(dict(folds=[dict(train=list(train), test=list(test))])))


def as_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def scaled(pixels: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))


def errors(done) -> list[str]:
    "Findings of an audit that failed; progress stands on standard error too"
    assert done.returncode == 2, (done.returncode, done.stderr)
    found = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert found and all("; " in line for line in found)
    return found


# What passes

def test_clean_set_passes(textures):
    done = textures.project.call("data", "audit", "tiny")
    assert done.returncode == 0 and done.stdout.startswith("tiny: 6 cases, 9 pairs on different sides"), done.stderr
    facts = json.loads(textures.project.call("data", "audit", "tiny", "--json").stdout)
    assert (facts["cases"], facts["pairs"], facts["findings"], facts["declared"]) == (6, 9, [], [])


def test_alike_on_one_side_is_no_leak(textures):
    save(textures, 1, picture(0))
    assert textures.project.call("data", "audit", "tiny").returncode == 0


def test_phantoms_pass(fresh):
    done = fresh.call("data", "audit", "phantom_skin")
    assert done.returncode == 0 and "0 declared duplicates" in done.stdout, done.stderr


def test_without_files_only_the_split_is_looked_at(textures):
    textures.project.env["MEDSEG_DATA"] = "elsewhere"
    done = textures.project.call("data", "audit", "tiny")
    assert done.returncode == 0 and "split rule only, no files here" in done.stdout
    freeze(textures, test=["p2", "p3", "p4", "p5"])
    assert refused(textures.project.call("data", "audit", "tiny"),
                   "splits.json", "fold 0: patient p2 is in train and in test")


@pytest.mark.parametrize("place", sorted((REPO / "data_manifests").glob("*/splits.json")), ids=lambda p: p.parent.name)
def test_no_shipped_split_has_a_patient_on_both_sides(place):
    folds = json.loads(place.read_text(encoding="utf-8"))["folds"]
    assert folds and not [p for f in folds for p in set(f["train"]) & set(f["test"])]
    if len(folds) > 1:
        tested = [p for f in folds for p in f["test"]]
        assert len(tested) == len(set(tested)) and set(tested) == set(folds[0]["train"]) | set(folds[0]["test"])


# What is planted

def test_patients_on_both_sides_are_listed(textures):
    freeze(textures, test=["p1", "p2", "p3", "p4", "p5"])
    found = errors(textures.project.call("data", "audit", "tiny"))
    assert ["patient p1" in found[0], "patient p2" in found[1], len(found)] == [True, True, 2]


def test_unknown_patient_in_a_split(textures):
    freeze(textures, test=["p3", "p4", "p5", "p9"])
    assert "p9 is not in the data set" in errors(textures.project.call("data", "audit", "tiny"))[0]


def test_equal_image_under_two_patients(textures):
    save(textures, 4, picture(0))
    line, = errors(textures.project.call("data", "audit", "tiny"))
    assert line.startswith("error: tiny: cases c0 and c4 of different patients are equal images on different sides")
    done = textures.project.call("data", "audit", "tiny", "--json")
    assert done.returncode == 2 and [f["kind"] for f in json.loads(done.stdout)["findings"]] == ["equal image"]


COPIES = {"JPEG": lambda p: as_jpeg(p, 30), "scaled down": lambda p: scaled(p, 64),
          "scaled up": lambda p: scaled(p, 150), "mirrored": lambda p: p[:, ::-1],
          "quarter turn": lambda p: np.rot90(p), "darker": lambda p: np.uint8(.6 * p),
          "trimmed": lambda p: p[4:-4, 4:-4],
          "mirrored, scaled, JPEG": lambda p: as_jpeg(scaled(np.ascontiguousarray(p[::-1]), 70), 50)}


@pytest.mark.parametrize("name", COPIES)
def test_near_duplicate_under_two_patients(textures, name):
    save(textures, 5, np.ascontiguousarray(COPIES[name](picture(2))))
    line, = errors(textures.project.call("data", "audit", "tiny"))
    assert "cases c2 and c5 of different patients are near-duplicates" in line


def test_equal_volumes_and_their_copies(fresh, tmp_path):
    "A volume, resampled along its last axis and turned in its plane"
    import nibabel
    from scipy.ndimage import zoom
    data, folder = tmp_path / "sets" / "solid", fresh.root / "data_manifests" / "solid"
    data.mkdir(parents=True); folder.mkdir(parents=True)
    solids = [gaussian_filter(np.random.default_rng(k).normal(size=(64, 64, 12)), (2, 2, 1)) for k in range(4)]
    solids[3] = zoom(np.rot90(solids[0]), (1, 1, 1.5), order=1)
    for k, s in enumerate(solids):
        nibabel.save(nibabel.Nifti1Image(s.astype(np.float32), np.eye(4)), data / f"i{k}.nii.gz")
        nibabel.save(nibabel.Nifti1Image((s > 1).astype(np.uint8), np.eye(4)), data / f"m{k}.nii.gz")
    (data / "table.csv").write_text("case,image,mask\n" + "".join(f"c{k},i{k}.nii.gz,m{k}.nii.gz\n" for k in range(4)))
    facts = yaml.safe_load((fresh.root / "data_manifests" / "phantom_skin" / "dataset.yaml").read_text())
    facts = {k: v for k, v in facts.items() if k not in ("generator", "columns", "files", "site")} | dict(
        id="solid", patient="case", image=dict(columns=["image"], channels=["grey"]),
        mask=dict(column="mask", kind="labels"), labels=dict(background=0, lesion=1),
        spacing="file", split=dict(folds=4))
    (folder / "dataset.yaml").write_text(yaml.safe_dump(facts))
    fresh.env["MEDSEG_DATA"] = str(tmp_path / "sets")
    line, = errors(fresh.call("data", "audit", "solid"))
    assert "cases c0 and c3" in line


# What is declared

def test_declared_duplicate_passes_and_is_printed(textures):
    save(textures, 4, as_jpeg(picture(0), 60))
    textures.declare(known_duplicates=[dict(cases=["c4", "c0"], reason="published so")])
    done = textures.project.call("data", "audit", "tiny")
    assert (done.returncode == 0 and "1 declared duplicates" in done.stdout
            and "c0 and c4: published so" in done.stdout), done.stderr


def test_same_patient_under_two_ids_is_one_unit(textures):
    save(textures, 4, picture(0))
    textures.declare(same=[dict(patient="p0", cases=["c4"], reason="one picture")])
    (textures.manifest.parent / "splits.json").unlink()
    done = textures.project.call("data", "audit", "tiny")
    assert done.returncode == 0 and "0 declared" in done.stdout, done.stderr


@pytest.mark.parametrize(
        "key", [dict(known_duplicates=[dict(cases=["c0", "c9"], reason="?")]),
                dict(same=[dict(patient="p0", cases=["c9"], reason="?")])], ids=["known", "same"])
def test_declared_case_must_exist(textures, key):
    textures.declare(**key)
    assert "names the case c9, which is not in the set" in errors(textures.project.call("data", "audit", "tiny"))[0]


# Tables

def table(fresh, tmp_path, rows: list[dict]) -> Project:
    "A table of outcomes, two folds"
    data, folder = tmp_path / "sets" / "rows", fresh.root / "data_manifests" / "rows"
    data.mkdir(parents=True); folder.mkdir(parents=True)
    with open(data / "table.csv", "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, rows[0]); writer.writeheader(); writer.writerows(rows)
    facts = dict(id="rows", name="Rows", modality="clinical table", task="table", synthetic=True,
                 licence=dict(name="none", status="verified"), access="local", home="-", citation="-",
                 table="table.csv", case="id", patient="id", split=dict(folds=len(rows)),
                 columns=[dict(name="age", column="age", type="number", known="before"),
                          dict(name="sex", column="sex", type="category", known="before")])
    (folder / "dataset.yaml").write_text(yaml.safe_dump(facts))
    fresh.env["MEDSEG_DATA"] = str(tmp_path / "sets")
    return fresh


def test_equal_rows_of_a_table(fresh, tmp_path):
    project = table(fresh, tmp_path,
                    [dict(id="a", age="41.5", sex="F"), dict(id="b", age="62", sex="M"),
                     dict(id="c", age="41.5", sex="F"), dict(id="d", age="", sex="M"), dict(id="e", age="", sex="M")])
    line, = errors(project.call("data", "audit", "rows"))
    assert "cases a and c of different patients are equal rows" in line, "d and e hold no number: too little to say"


# Splits by rule

@pytest.mark.parametrize("rule, fault",
                         [(dict(folds=2, stratify="colour"), "no field colour"), (dict(by="site"), "needs `site`"),
                          (dict(stratify="sex", column="case"), "`stratify` needs `folds`"),
                          (dict(by="site", column="case"), "either `folds` or `column`")])
def test_rules_that_cannot_be(tiny_data, rule, fault):
    tiny_data.declare(split=rule)
    assert refused(tiny_data.project.call("data", "show", "tiny"), "dataset.yaml", fault)


def test_split_by_site_keeps_sites_whole(tiny_data):
    tiny_data.table(lambda r: r | dict(site="ABC"[int(r["patient"][1]) // 2], grade="xy"[int(r["patient"][1]) % 2]))
    tiny_data.declare(site="site", split=dict(by="site"),
                      columns=[dict(name="grade", column="grade", type="category", known="before")])
    from medseg_nb.data import splits
    with tiny_data.project.inside():
        assert [f["test"] for f in splits.load_split("tiny")["folds"]] == [["p0", "p1"], ["p2", "p3"], ["p4", "p5"]]
    tiny_data.declare(split=dict(folds=3, stratify="grade"))
    with tiny_data.project.inside():
        folds = splits.load_split("tiny")["folds"]
        assert ([sorted(int(p[1]) % 2 for p in f["test"]) for f in folds] == [[0, 1]] * 3
                and folds == splits.load_split("tiny")["folds"])
