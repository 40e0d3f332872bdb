#!/usr/bin/env bash
# From pictures to the PDF of a report, by the `medseg` that PATH names, in a new folder outside of any checkout.
set -euo pipefail
place=${1:?name a folder that is not there yet}
mkdir -p "$place/pictures/images" "$place/pictures/masks"
cd "$place"
python - <<'DRAW'
import numpy as np
from PIL import Image

rng = np.random.default_rng(0)
rows, columns = np.mgrid[:96, :96]
for k in range(24):
    row, column, radius = rng.integers(25, 70, 2).tolist() + [rng.integers(8, 20)]
    disk = (rows - row)**2 + (columns - column)**2 < radius**2
    image = np.clip(90 + 50 * disk + rng.normal(0, 20, disk.shape), 0, 255)
    Image.fromarray(image.astype(np.uint8)).save(f"pictures/images/p{k:02}.png")
    Image.fromarray((255 * disk).astype(np.uint8)).save(f"pictures/masks/p{k:02}.png")
DRAW
medseg new work
cd work
medseg data add ../pictures --id disks --yes
medseg study disks --minutes 3
test "$(head -c 4 studies/disks/own/article.pdf)" = %PDF
medseg predict disks/best ../pictures/images/p00.png --out ../masks
echo "a report from the installed package: $place/work/studies/disks/own/article.pdf"
