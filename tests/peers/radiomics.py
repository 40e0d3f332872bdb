# /// script
# requires-python = ">=3.11"
# dependencies = ["medseg_nb[radiomics]"]
# ///
"""IBSI features of real images under two masks each, in an environment with the extra `radiomics`:
`MEDSEG_DATA=folder/of/the/data python tests/peers/radiomics.py`.

Three comparisons: the reader's mask of a hippocampus against that of the shipped network, on volumes that it was not
trained on; the masks of two radiologists who outlined the same lung nodule; and the reader's mask of a glioma against
that of the network which the section on outcomes opens, trained first where it is missing, which never saw the patient.
The files of nodules and gliomas say no spacing, so their features count in voxels. Of a glioma there are single slices,
on the grid and with the brightness that the network sees: of each mask its largest one, in FLAIR, without the features
of shape, which a slice has not. Writes reports/peers/radiomics/cases.csv.xz, one row a comparison, patient, mask and
feature, and versions.json."""
import importlib.metadata
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pandas as pd

from medseg_nb.data.manifest import Case, load_cases, load_manifest
from medseg_nb.data.splits import fold_indices
from medseg_nb.deployment.segmenter import load_segmenter
from medseg_nb.evaluation.intervals import round_six_digits
from medseg_nb.images.files import Image
from medseg_nb.kit.core import folder, to_json, write
from medseg_nb.kit.report import write_rows
from medseg_nb.methods.radiomics import family, radiomics
from medseg_nb.study.outcomes import SegmentedImages, list_mask_runs, segment_images
from medseg_nb.training.training import use_one_thread

N_PATIENTS = 30  # of the comparisons of volumes, the first ones by name
GLIOMAS, SEQUENCE = "lgg_kaggle3m", "FLAIR"
PACKAGES = ("mirp", "numpy", "scipy", "torch")
Masked = tuple[Image, np.ndarray]                      # image and label map
Patients = Iterator[tuple[str, Mapping[str, Masked]]]  # patient, and what is masked by whom


def reader_and_network() -> Patients:
    model = load_segmenter("hippocampus")
    cases = [load_cases("hippocampus_msd")[i] for i in fold_indices("hippocampus_msd", 0)[1]]
    for c in sorted(cases, key=lambda c: c.patient)[:N_PATIENTS]:
        image = c.image()
        yield c.patient, dict(reader=(image, c.mask()), network=(image, model.label_map(image, c.id)))


def two_readers() -> Patients:
    def outlined(c: Case) -> list[np.ndarray]: return [m > 0 for m in c.reader_masks() if (m > 0).any()]
    cases = sorted(load_cases("lidc_nodule_volumes"), key=lambda c: c.patient)
    several = [(c, masks) for c in cases if len(masks := outlined(c)) > 1]
    for c, masks in several[:N_PATIENTS]:
        image = replace(c.image(), spacing=(1.,) * 3)
        yield c.patient, dict(reader=(image, masks[0]), other=(image, masks[1]))


def largest_slice(images: np.ndarray, masks: np.ndarray, channel: int) -> Masked:
    "The slice with the largest mask, as a volume one voxel thick"
    i = int((masks > 0).sum((1, 2)).argmax())
    return Image(images[i, channel, ..., None].astype(float), (1.,) * 3), masks[i, ..., None]


def glioma_slices(segmented: SegmentedImages) -> Patients:
    channel = load_manifest(GLIOMAS).image.channels.index(SEQUENCE)
    names, masks = np.array(segmented.patients), dict(reader=segmented.reference, network=np.stack(segmented.masks))
    for patient in sorted(set(segmented.patients)):
        own = names == patient
        yield patient, {w: largest_slice(segmented.images[own], m[own], channel) for w, m in masks.items()}


def feature_rows(dataset: str, patients: Patients) -> Iterator[dict]:
    for patient, by_whom in patients:
        print(dataset, patient, {w: int((m > 0).sum()) for w, (_, m) in by_whom.items()}, flush=True)
        for whose, (image, mask) in by_whom.items():
            found = radiomics(image, mask, patient) if (mask > 0).any() else {}
            yield from (dict(dataset=dataset, patient=patient, mask=whose, feature=n, value=v)
                        for n, v in found.items() if dataset != GLIOMAS or family(n) != "shape")


def main() -> None:
    use_one_thread()
    gliomas = segment_images(list_mask_runs("cpu", [GLIOMAS]))
    rows = pd.DataFrame([*feature_rows("hippocampus_msd", reader_and_network()),
                         *feature_rows("lidc_nodule_volumes", two_readers()),
                         *feature_rows(GLIOMAS, glioma_slices(gliomas))])
    rows["value"] = round_six_digits(rows.value.to_numpy(float))
    out = folder("reports") / "peers" / "radiomics"
    write_rows(out, rows)
    write(out / "versions.json", to_json({p: importlib.metadata.version(p) for p in PACKAGES}))


if __name__ == "__main__": main()
