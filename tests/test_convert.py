"Downloads in the layout of their homes become the sets of the manifests: equal bytes, and refusals that name the cause"
import csv
import functools
import hashlib
import http.server
import shutil
import threading
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from medseg_nb.data import convert
from medseg_nb.data.convert import convert_dataset, list_recipes, load_contents, load_recipe, write_contents
from medseg_nb.data.manifest import hash_files, load_manifest, verify_files
from medseg_nb.kit.core import InputError, ResourceError, data_folders

MADE = [id for id in list_recipes() if load_recipe(id).files]
JPEG_FROM_LARGER = "skin_ph2"  # its pictures cannot be made larger again: see test_ph2_pictures


def save(path: Path, array: np.ndarray, **settings) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **settings)


def read(path: Path, mode: str | None = None) -> np.ndarray:
    with Image.open(path) as picture: return np.asarray(picture.convert(mode) if mode else picture)


def spread(masks: np.ndarray, end: str, row: dict, slices: str = "") -> dict[str, np.ndarray]:
    "Masks by bit, as files of readers; an empty one has no file"
    layers = {end.replace("READER", str(k)).replace("SLICE", slices): ((masks >> k & 1) * 255).astype(np.uint8)
              for k in range(4)}
    filled = {name: mask for name, mask in layers.items() if mask.any()}
    return filled or dict(list(layers.items())[:1])


class Home:
    "A download in the layout that its home documents, made from prepared files"
    def __init__(self, place: Path, prepared: Path):
        self.place, self.prepared = place, prepared

    def copy(self, end: str, name: str) -> None:
        (self.place / end).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.prepared / name, self.place / end)

    def lgg_kaggle3m(self, row):
        for name in (row["image"], row["mask"]):  # stored without compression there
            save(self.place / f"kaggle_3m/{row['folder']}/{Path(name).name}", read(self.prepared / name))

    def hippocampus_msd(self, row):
        self.copy(f"Task04_Hippocampus/imagesTr/{row['case']}.nii.gz", row["image"])
        self.copy(f"Task04_Hippocampus/labelsTr/{row['case']}.nii.gz", row["mask"])

    def retina_drive(self, row):
        number = row["image_id"][:2]
        save(self.place / f"DRIVE/test/images/{number}_test.tif", read(self.prepared / row["image"]))
        self.copy(f"DRIVE/test/1st_manual/{number}_manual1.gif", row["mask"])
        self.copy(f"DRIVE/test/2nd_manual/{number}_manual2.gif", row["mask_reader2"])
        self.copy(f"DRIVE/test/mask/{number}_test_mask.gif", row["fov"])

    def retina_chase(self, row):
        self.copy(f"CHASEDB1/{row['image_id']}.jpg", row["image"])
        self.copy(f"CHASEDB1/{row['image_id']}_1stHO.png", row["mask"])
        self.copy(f"CHASEDB1/{row['image_id']}_2ndHO.png", row["mask_reader2"])

    def cxr_montgomery(self, row):
        for folder, column in (("cxr", "image"), ("masks", "mask")):
            self.copy(f"MultiResUNet-lung-segmentation-master/data/{folder}/{row['image_id']}.png", row[column])

    cxr_shenzhen = cxr_montgomery

    def polyp_kvasir(self, row):
        for folder, column in (("images", "image"), ("masks", "mask")):
            self.copy(f"Colo-Retal-Induscon2023/datasets/Kvasir-SEG/{folder}/{row['image_id']}.jpg", row[column])

    def skin_isic2017(self, row):
        part = "Training" if row["split"] == "train" else "Validation"
        self.copy(f"image_mining/ISIC-2017_{part}_Data/{row['image_id']}.jpg", row["image"])
        larger = read(self.prepared / row["mask"]).repeat(2, 0).repeat(3, 1)
        save(self.place / f"ISIC-2017_{part}_Part1_GroundTruth/{row['image_id']}_segmentation.png", larger)

    def nuclei_dsb2018(self, row):
        place = self.place / f"stage1_train/{row['dsb_id']}"
        image = read(self.prepared / row["image"], "RGBA")
        if row["image"].startswith("data/"):
            self.copy(f"stage1_train/{row['dsb_id']}/images/{row['dsb_id']}.png", row["image"])
        else: save(place / f"images/{row['dsb_id']}.png", image)
        labels = read(self.prepared / row["mask"])
        for i in range(1, labels.max() + 1): save(place / f"masks/{i:05}.png", ((labels == i) * 255).astype(np.uint8))

    nuclei_dsb2018_large = nuclei_dsb2018

    def lidc_nodule_patches(self, row):
        base = f"LIDC-IDRI-slices/{row['patient_id']}/nodule-{row['nodule']}"
        self.copy(f"{base}/images/slice-{row['slice']}.png", row["image"])
        masks = spread(read(self.prepared / row["mask"]), f"{base}/mask-READER/slice-{row['slice']}.png", row)
        for name, mask in masks.items(): save(self.place / name, mask)

    def lidc_nodule_volumes(self, row):
        base = f"LIDC-IDRI-slices/{row['patient_id']}/nodule-{row['nodule']}"
        image, masks = (np.asarray(nibabel.load(self.prepared / row[c]).dataobj) for c in ("image", "mask"))
        for i in range(image.shape[2]):
            save(self.place / f"{base}/images/slice-{i}.png", image[:, :, i])
            for name, mask in spread(masks[:, :, i], f"{base}/mask-READER/slice-{i}.png", row).items():
                save(self.place / name, mask)

    def lidc_fullslice_raters(self, row):
        study, n = row["study_uid"].rpartition(".")[2], row["slice"]
        save(self.place / f"sample_output/images/{study}/slice{n}.tif", read(self.prepared / row["image"]))
        masks = read(self.prepared / row["mask"])
        for k in range(4):
            mask, name = ((masks >> k & 1) * 255).astype(np.uint8), f"gts/{study}/slice{n}/GT_id{k + 1}.tif"
            if mask.any() or k == 0: save(self.place / "sample_output" / name, mask)

    def skin_ph2(self, row):
        base = self.place / f"PH2Dataset/PH2 Dataset images/{row['image_id']}"
        save(base / f"{row['image_id']}_Dermoscopic_Image/{row['image_id']}.bmp", read(self.prepared / row["image"]))
        save(base / f"{row['image_id']}_lesion/{row['image_id']}_lesion.bmp", read(self.prepared / row["mask"]) > 0)


def write_rows(path: Path, head: list[str], rows: list[list[str]]) -> None:
    with open(path, "w", newline="") as f: csv.writer(f).writerows([head, *rows])


def plain(cell: str) -> str: return cell.removesuffix(".0")


def write_tables(id: str, place: Path, table: pd.DataFrame) -> None:
    "What the homes say of patients, in the columns of their own tables"
    rows = table.to_dict("records")
    if id == "lgg_kaggle3m":
        columns = list(table)[list(table).index("RNASeqCluster"):]
        by_patient = {r["patient_id"]: [r["patient_id"], *(plain(r[c]) for c in columns)] for r in rows}
        write_rows(place / "kaggle_3m/data.csv", ["Patient", *columns], list(by_patient.values()))
    if id == "cxr_shenzhen":
        write_rows(place / "shenzhen_metadata.csv", ["study_id", "sex", "age", "findings"],
                   [[f"{r['image_id']}.png", r["sex"], r["age"], r["findings"]] for r in rows])
    if id.startswith("lidc_nodule"):
        names = [f"{r['patient_id'][-4:]}_NI{int(r['nodule']):03}_slice000" for r in rows]
        write_rows(place / "meta_info.csv", list("pnsom") + ["malignancy", "is_cancer"],
                   [["", "", "", name, "", r["malignancy_median"], ""] for name, r in zip(names, rows)])
    if id == "skin_isic2017":
        for part, split in (("Training", "train"), ("Validation", "val")):
            chosen = [r for r in rows if r["split"] == split]
            ages = [plain(r["age_approximate"]) or "unknown" for r in chosen]
            write_rows(place / f"ISIC-2017_{part}_Data_metadata.csv", ["image_id", "age_approximate", "sex"],
                       [[r["image_id"], age, r["sex"] or "unknown"] for r, age in zip(chosen, ages)])
            write_rows(place / f"ISIC-2017_{part}_Part3_GroundTruth.csv",
                       ["image_id", "melanoma", "seborrheic_keratosis"],
                       [[r["image_id"], f"{r['melanoma']}.0", r["seborrheic_keratosis"]] for r in chosen])
        write_rows(place / "ISIC_2019_Training_Metadata.csv",
                   ["image", "age_approx", "anatom_site_general", "lesion_id", "sex"],
                   [[r["image_id"], "", r["anatom_site_general"], r["lesion_id"], ""] for r in rows])
    if id == "skin_ph2":
        colors = [c for c in table if c.startswith("col_")]
        lines = ["|| Name || Histological Diagnosis || Clinical Diagnosis || Asymmetry | ... || Colors ||"]
        for r in rows:
            kind = ["common_nevus", "atypical_nevus", "melanoma"].index(r["diagnosis"])
            middle = " | ".join(r[c] for c in list(table)[list(table).index("asymmetry"):list(table).index(colors[0])])
            shown = "  ".join(str(k) for k, c in enumerate(colors, 1) if r[c] == "1")
            lines.append(f"|| {r['image_id']} || {r['histological_diagnosis']:20} || {kind} || {middle} || {shown} ||")
        (place / "PH2Dataset/PH2_dataset.txt").write_text("\n".join(lines) + "\n", newline="\r\n")


def make_home(id: str, place: Path, prepared: Path) -> Path:
    "The download that a prepared set would have come from"
    table = pd.read_csv(prepared / "table.csv", dtype=str, keep_default_na=False)
    home = Home(place, prepared)
    for row in table.to_dict("records"): getattr(home, id)(row)
    write_tables(id, place, table)
    return place


def find_prepared(id: str) -> Path:
    "The prepared set, if it is on this machine"
    place = next((p / id for p in data_folders() if (p / id / "table.csv").is_file()), None)
    return place or pytest.skip(f"{id} is not on this machine (MEDSEG_DATA)")


@pytest.mark.stress
@pytest.mark.parametrize("id", [id for id in MADE if id != JPEG_FROM_LARGER])
def test_prepared_sets_come_back_from_their_homes_layout(id, tmp_path, monkeypatch):
    prepared = find_prepared(id)
    home = make_home(id, tmp_path / "home", prepared)
    monkeypatch.setenv("MEDSEG_CACHE", str(tmp_path / "cache"))
    place = convert_dataset(id, [home])
    for entry in load_manifest(id).files: assert hash_files(place, entry) == entry.sha256
    files = [p.relative_to(place) for p in place.rglob("*") if p.is_file()]
    assert all((place / p).read_bytes() == (prepared / p).read_bytes() for p in files)
    verify_files.cache_clear()
    assert verify_files(id) > 1
    verify_files.cache_clear()


def test_ph2_pictures_are_those_of_their_originals(tmp_path):
    prepared = find_prepared(JPEG_FROM_LARGER)
    table = pd.read_csv(prepared / "table.csv", dtype=str, keep_default_na=False)
    originals = table[table.image_native != ""]
    assert len(originals) == 3
    for row in originals.to_dict("records"):
        assert convert.encode_width_384([prepared / row["image_native"]]) == (prepared / row["image"]).read_bytes()
    for row in table.head(20).to_dict("records"):
        assert convert.encode_mask_width_384([prepared / row["mask_native"]]) == (prepared / row["mask"]).read_bytes()


SIZES = dict(skin_isic2017=(256, 256), skin_ph2=(288, 384))


def draw(id: str, path: Path, rule: convert.FileRule, row: dict, seed: int) -> None:
    "A small file in place of a prepared one"
    rng, size = np.random.default_rng(seed), SIZES.get(id, (12, 16))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".nii.gz"):
        array = rng.integers(0, 16, (*size, int(row.get("n_slices", 5))), dtype=np.uint8)
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    elif rule.encode == "bits": save(path, rng.integers(0, 16, size, dtype=np.uint8))
    elif rule.encode == "instances": save(path, np.arange(1, 1 + size[0], dtype=np.uint16)[:, None].repeat(size[1], 1))
    elif path.suffix == ".gif" or rule.encode in ("box_256", "mask_width_384"):
        save(path, rng.integers(0, 2, size, dtype=np.uint8) * 255)
    else: save(path, rng.integers(0, 256, (*size, 3), dtype=np.uint8))


def joined_cells(id: str, table: pd.DataFrame) -> None:
    "Values that a home could hold, in the form that the table writes"
    for join in load_recipe(id).joins:
        keys = [convert._fill(join.key, row) for row in table.to_dict("records")]
        codes = pd.factorize(pd.Series(keys))[0]
        for c in join.columns: table[c] = [f"{k}.0" if c in join.numbers else str(k % 2) for k in codes]
    if id == "skin_ph2": table["diagnosis"] = ["melanoma", "common_nevus", "atypical_nevus"][:len(table)]
    if id == "skin_isic2017": table.loc[table.split == "val", "seborrheic_keratosis"] = ""


class Small:
    "A set of few cases: its manifest, the download of its home, and its files as the kit's encoders write them"
    def __init__(self, id: str, place: Path, monkeypatch):
        self.id, self.place, recipe = id, place, load_recipe(id)
        contents = load_contents(id)
        rows = [0, 1, len(contents) - 1] if id == "skin_isic2017" else [0, 1, 2]
        table = contents.iloc[rows][[c for c in contents if "#" not in c]].reset_index(drop=True)
        joined_cells(id, table)
        for i, row in enumerate(table.to_dict("records")):
            for j, (column, rule) in enumerate(recipe.files.items()):
                if row[column]: draw(id, place / "drawn" / row[column], rule, row, 10 * i + j)
        (place / "drawn/table.csv").write_text(convert.format_table(table, recipe.crlf), newline="")
        self.home = make_home(id, place / "home", place / "drawn")
        self.prepare(convert.Pool([self.home]), contents.iloc[rows], recipe, monkeypatch)

    def prepare(self, pool, contents, recipe, monkeypatch):
        self.prepared = self.place / "prepared"
        plain = contents[[c for c in contents if not c.endswith("#encode")]]
        assert not convert._write_files(recipe, plain, pool, self.prepared, self.id)
        shutil.copyfile(self.place / "drawn/table.csv", self.prepared / "table.csv")
        manifests = self.place / "manifests"
        manifest, source = manifests / self.id, convert.recipe_path(self.id)
        manifest.mkdir(parents=True)
        facts = load_manifest(self.id).model_dump(mode="json", exclude_unset=True)
        for entry in facts["files"]: entry.pop("count", None)
        for entry, checked in zip(facts["files"], load_manifest(self.id).files):
            entry["sha256"] = hash_files(self.prepared, checked)
        facts |= dict(same=[], known_duplicates=[])
        (manifest / "dataset.yaml").write_text(yaml.safe_dump(facts, sort_keys=False))
        shutil.copyfile(source, manifest / "convert.yaml")
        monkeypatch.setenv("MEDSEG_DATA_MANIFESTS", str(manifests))
        monkeypatch.setenv("MEDSEG_CACHE", str(self.place / "cache"))
        monkeypatch.setenv("MEDSEG_DATA", "")
        write_contents(self.id, self.prepared)

    def convert(self, *downloads: Path) -> Path: return convert_dataset(self.id, list(downloads) or [self.home])


@pytest.fixture
def small(tmp_path, monkeypatch): return lambda id: Small(id, tmp_path / id, monkeypatch)


def pack(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w") as z:
        for p in sorted(folder.rglob("*")):
            if p.is_file(): z.write(p, f"{folder.name}-master/{p.relative_to(folder).as_posix()}")
    return archive


@pytest.mark.parametrize("id", MADE)
def test_a_download_becomes_the_set(id, small, tmp_path):
    "From a folder and from an archive alike, with the drawn numbers in it"
    case = small(id)
    place = case.convert(pack(case.home, tmp_path / "download.zip"))
    files = [p.relative_to(place) for p in place.rglob("*") if p.is_file()]
    assert len(files) > 6 and all((place / p).read_bytes() == (case.prepared / p).read_bytes() for p in files)
    assert (place / "table.csv").read_bytes() == (case.place / "drawn/table.csv").read_bytes()
    for p in files:
        if p.name == "table.csv" or id == JPEG_FROM_LARGER and p.suffix == ".jpg": continue
        drawn, made = (convert.read_image(base / p).array for base in (case.place / "drawn", place))
        if made.ndim < drawn.ndim: drawn = drawn[..., 0]
        assert np.array_equal(made, drawn), p
    verify_files.cache_clear()
    assert verify_files(id) >= len(load_manifest(id).files)
    verify_files.cache_clear()


def test_what_is_wrong_with_a_download_is_named(small, monkeypatch):
    case = small("lgg_kaggle3m")
    table = case.home / "kaggle_3m/data.csv"
    image = next(case.home.rglob("*_[0-9]*.tif"))
    text, pixels = table.read_text(), read(image)
    table.write_text(text.replace(",0", ",7", 1))
    def refused(fault): return pytest.raises(InputError, match=fault)
    with refused("what the download says of the cases is not what the study has read"): case.convert()
    table.unlink()
    with refused("data.csv: is not in the download; name the download that holds it"): case.convert()
    table.write_text(text)
    save(image, pixels ^ 1)
    with refused("has other pixels than the study's, as 1 files"): case.convert()
    image.unlink()
    with refused(f"1 files are not in the download, the first is .*{image.name}"): case.convert()
    save(image, pixels)
    with monkeypatch.context() as patched:
        patched.setitem(convert.ENCODERS, "tiff", lambda paths: paths[0].read_bytes())
        with refused("the pixels are right, but Pillow .* packs them into other bytes"): case.convert()
    with refused("is not there"): case.convert(case.place / "nowhere")
    assert not (case.place / "cache/lgg_kaggle3m").exists() and not list((case.place / "cache").glob(".lgg*"))
    assert case.convert().is_dir()


def test_keys_of_trainings_do_not_hang_on_bytes(small, tmp_path):
    "The same content in other bytes has the same content key, so committed trainings are found"
    from medseg_nb.data.manifest import content_hash, content_key, load_cases
    case, keys = small("nuclei_dsb2018_large"), []
    manifest = convert.recipe_path(case.id).with_name("dataset.yaml")
    for settings in (dict(optimize=True), dict(compress_level=0)):
        place = case.convert()
        for p in place.rglob("*.png"): save(p, read(p), **settings)
        facts = yaml.safe_load(manifest.read_text())
        for entry, checked in zip(facts["files"], load_manifest(case.id).files):
            entry["sha256"] = hash_files(place, checked)
        before = manifest.read_bytes()
        manifest.write_text(yaml.safe_dump(facts, sort_keys=False))
        for cached in (verify_files, load_cases, content_hash): cached.cache_clear()
        keys.append((content_key(case.id), facts["files"][1]["sha256"]))
        manifest.write_bytes(before)
    for cached in (verify_files, load_cases, content_hash): cached.cache_clear()
    assert keys[0][0] == keys[1][0] and keys[0][1] != keys[1][1]


THORACIC = b"DGN,PRE4,PRE5,PRE6,PRE7,PRE8,PRE9,PRE10,PRE11,PRE14,PRE17,PRE19,PRE25,PRE30,PRE32,AGE,Risk1Yr\n"
TABLES = dict(
    outcome_ucsf_pdgm=("UCSF-PDGM-metadata_v2.csv", b"ID,Sex\r\nUCSF-PDGM-004,M\r\n", b"ID,Sex\nUCSF-PDGM-004,M\n"),
    outcome_brats2020=("survival_info.csv", b"ID,days\nA,ALIVE (361 days later)\n", b"ID,days\nA,361\n"),
    outcome_thoracic=("ThoraricSurgery.arff", b"@attribute DGN {DGN1}\n@data\nDGN2,F\n", THORACIC + b"DGN2,F\n"))


@pytest.mark.parametrize("id", TABLES)
def test_tables_are_taken_as_they_are_handed_out(id, tmp_path, monkeypatch):
    name, given, wanted = TABLES[id]
    m, manifest = load_manifest(id), tmp_path / "manifests" / id
    shutil.copytree(convert.recipe_path(id).parent, manifest)
    text = (manifest / "dataset.yaml").read_text()
    (manifest / "dataset.yaml").write_text(text.replace(m.files[0].sha256, hashlib.sha256(wanted).hexdigest()))
    monkeypatch.setenv("MEDSEG_DATA_MANIFESTS", str(tmp_path / "manifests"))
    monkeypatch.setenv("MEDSEG_CACHE", str(tmp_path / "cache"))
    (tmp_path / name).write_bytes(given)
    place = convert_dataset(id, [tmp_path / name])
    assert (place / m.table).read_bytes() == wanted and place.name == "outcome_tables"
    (tmp_path / name).write_bytes(given + b"x,1\n")
    with pytest.raises(InputError, match="is not the table that the study has read"):
        convert_dataset(id, [tmp_path / name])


def test_fetch_takes_an_archive_from_its_address(small, monkeypatch, tmp_path):
    case = small("nuclei_dsb2018")
    pack(case.home, tmp_path / "fixes.zip")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        recipe = convert.recipe_path(case.id)
        address = load_recipe(case.id).downloads[0].url
        recipe.write_text(recipe.read_text().replace(address, f"http://127.0.0.1:{server.server_port}/fixes.zip"))
        place = convert.fetch_and_convert(case.id)
        server.shutdown()
    assert (place / "table.csv").is_file() and convert.fetch_and_convert(case.id) == place


def test_what_cannot_be_had_is_said_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDSEG_DATA", ""); monkeypatch.setenv("MEDSEG_CACHE", str(tmp_path))
    with pytest.raises(ResourceError, match="retina_drive: is made from: DRIVE, https.*registration.*--from DOWNLOAD"):
        convert.fetch_and_convert("retina_drive")
    with pytest.raises(InputError, match="cannot be converted: its intensities were rounded"):
        convert.fetch_and_convert("brats2015_deepmedic")
    with pytest.raises(InputError, match="drive_official: has no conversion; One row an image"):
        convert_dataset("drive_official", [])
    described = {p.parent.name for p in convert.folder("data_manifests").glob("*/splits.json")
                 if not load_manifest(p.parent.name).generator}
    assert described == set(list_recipes())  # every real set that is held says how it is made, or why not
