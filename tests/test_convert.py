"Downloads in the layout of their homes become the sets of the manifests: equal bytes, and refusals that name the cause"
import csv
import io
import os
import shutil
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medseg_nb.data import convert
from medseg_nb.data.convert import convert_dataset, list_recipes, load_contents, load_recipe, write_contents
from medseg_nb.data.manifest import hash_files, load_manifest, verify_files
from medseg_nb.kit.core import InputError, ResourceError, data_folders

MADE = [id for id in list_recipes() if load_recipe(id).files]
JPEG_FROM_LARGER = "skin_ph2"  # its pictures cannot be made larger again: see test_ph2_pictures
MUTABLE = ("nuclei_dsb2018_large", "nuclei_dsb2018", "hippocampus_msd", "lidc_nodule_volumes", "lgg_kaggle3m")


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
            if (masks >> k & 1).any() or k == 0:
                save(self.place / f"sample_output/gts/{study}/slice{n}/GT_id{k + 1}.tif", ((masks >> k & 1) * 255).astype(np.uint8))

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
            write_rows(place / f"ISIC-2017_{part}_Data_metadata.csv", ["image_id", "age_approximate", "sex"],
                       [[r["image_id"], plain(r["age_approximate"]) or "unknown", r["sex"] or "unknown"] for r in chosen])
            write_rows(place / f"ISIC-2017_{part}_Part3_GroundTruth.csv", ["image_id", "melanoma", "seborrheic_keratosis"],
                       [[r["image_id"], f"{r['melanoma']}.0", r["seborrheic_keratosis"]] for r in chosen])
        write_rows(place / "ISIC_2019_Training_Metadata.csv", ["image", "age_approx", "anatom_site_general", "lesion_id", "sex"],
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
    assert all(p.read_bytes() == (prepared / p.relative_to(place)).read_bytes() for p in place.rglob("*") if p.is_file())
    verify_files.cache_clear()
    assert verify_files(id) > 1
    verify_files.cache_clear()


if __name__ == "__main__":
    import sys, tempfile
    for id in sys.argv[1:] or MADE:
        if id == JPEG_FROM_LARGER: continue
        with tempfile.TemporaryDirectory(dir="/tmp") as d:
            os.environ["MEDSEG_CACHE"] = f"{d}/cache"
            try:
                home = make_home(id, Path(d) / "home", find_prepared(id))
                print(id, convert_dataset(id, [home]), flush=True)
            except Exception as e: print(id, type(e).__name__, str(e)[:300], flush=True)
