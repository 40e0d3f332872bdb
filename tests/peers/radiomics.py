# /// script
# requires-python = ">=3.11"
# dependencies = ["medseg_nb[radiomics]"]
# ///
"""IBSI features of real volumes under two masks each, in an environment with the extra `radiomics`:
`MEDSEG_DATA=folder/of/the/data python tests/peers/radiomics.py`.

Two comparisons: the reader's mask of a hippocampus against that of the shipped network, on volumes that it was not
trained on; and the masks of two radiologists who outlined the same lung nodule. The nodules' files say no spacing, so
their features count in voxels. Writes reports/peers/radiomics/cases.csv.xz, one row a comparison, patient, mask and
feature, and versions.json."""
import importlib.metadata
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pandas as pd

from medseg_nb.data.manifest import Case, load_cases
from medseg_nb.data.splits import fold_indices
from medseg_nb.deployment.segmenter import load_segmenter
from medseg_nb.evaluation.intervals import round_six_digits
from medseg_nb.images.files import Image
from medseg_nb.kit.core import folder, to_json, write
from medseg_nb.methods.radiomics import radiomics
from medseg_nb.training.training import use_one_thread

N_PATIENTS = 30  # of each comparison, the first ones by name
PACKAGES = ("mirp", "numpy", "scipy", "torch")
Masks = Iterator[tuple[str, Image, dict[str, np.ndarray]]]  # patient, image, label maps by whose they are


def reader_and_network() -> Masks:
    model = load_segmenter("hippocampus")
    cases = [load_cases("hippocampus_msd")[i] for i in fold_indices("hippocampus_msd", 0)[1]]
    for c in sorted(cases, key=lambda c: c.patient)[:N_PATIENTS]:
        image = c.image()
        yield c.patient, image, dict(reader=c.mask() > 0, network=model.label_map(image, c.id) > 0)


def two_readers() -> Masks:
    def outlined(c: Case) -> list[np.ndarray]: return [m > 0 for m in c.reader_masks() if (m > 0).any()]
    cases = sorted(load_cases("lidc_nodule_volumes"), key=lambda c: c.patient)
    several = [(c, masks) for c in cases if len(masks := outlined(c)) > 1]
    for c, masks in several[:N_PATIENTS]:
        image = c.image()
        yield c.patient, replace(image, spacing=(1.,) * 3), dict(reader=masks[0], other=masks[1])


def feature_rows(dataset: str, masks: Masks) -> Iterator[dict]:
    for patient, image, by_whom in masks:
        print(dataset, patient, {w: int(m.sum()) for w, m in by_whom.items()}, flush=True)
        if not all(m.any() for m in by_whom.values()): continue
        for whose, mask in by_whom.items():
            found = radiomics(image, mask, patient)
            yield from (dict(dataset=dataset, patient=patient, mask=whose, feature=n, value=v)
                        for n, v in found.items())


def main() -> None:
    use_one_thread()
    rows = pd.DataFrame([*feature_rows("hippocampus_msd", reader_and_network()),
                         *feature_rows("lidc_nodule_volumes", two_readers())])
    rows["value"] = round_six_digits(rows.value.to_numpy(float))
    out = folder("reports") / "peers" / "radiomics"
    out.mkdir(parents=True, exist_ok=True)
    rows.to_csv(out / "cases.csv.xz", index=False, lineterminator="\n")
    write(out / "versions.json", to_json({p: importlib.metadata.version(p) for p in PACKAGES}))


if __name__ == "__main__": main()
