"""No committed picture shows an image of a set that may not be shown: those of data in MEDSEG_DATA are compared with
all pictures in files, figures, pages and notebooks, by hash first and then by correlation"""
import base64
import io
import os
import re
import subprocess

import numpy as np
import pytest
from conftest import REPO
from PIL import Image

from medseg_nb.data.duplicates import ORIENTATIONS, dct_coefficients, hash_distances, orient_plane, resize_plane
from medseg_nb.data.manifest import load_cases, load_manifest, locate_dataset
from medseg_nb.kit.core import manifest_folders

EMBEDDED = re.compile(r"data:image/(?:png|jpeg|webp);base64,\s*([A-Za-z0-9+/=\s]+)|\"image/png\": \"([A-Za-z0-9+/=]+)")
CANDIDATE, COPY = .16, .95  # distance of hashes, share of bits; correlation of planes of 48 × 48 pixels
MIN_SIDE, SIDE = 16, 48


def gray(data: bytes) -> np.ndarray | None:
    "A picture's grey plane; None for what is smaller than a panel, or has no contrast"
    plane = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float32).mean(-1)
    return plane if min(plane.shape) >= MIN_SIDE and plane.std() > 1 else None


def pictures_in(path) -> list[np.ndarray]:
    "Pictures that a file is, or holds"
    if path.suffix in (".png", ".jpg", ".jpeg"): found = [path.read_bytes()]
    else:
        text = path.read_text(errors="replace").replace("\\n", "").replace("&#10;", "")
        found = [base64.b64decode(re.sub(r"\s", "", a or b)) for a, b in EMBEDDED.findall(text)]
    return [p for p in map(gray, found) if p is not None]


def committed_pictures() -> list[tuple[str, np.ndarray]]:
    names = subprocess.run(["git", "ls-files", "*.png", "*.jpg", "*.svg", "*.html", "*.ipynb"], cwd=REPO, check=True,
                           capture_output=True, text=True).stdout.split()
    return [(name, p) for name in names if (REPO / name).is_file() for p in pictures_in(REPO / name)]


def hidden_sets() -> list[str]:
    "Sets of images that are here and may not be shown"
    ids = sorted(manifest_folders())
    return [d for d in ids if not d.startswith("phantom_") and (m := load_manifest(d)).image
            and not m.may_be_shown and locate_dataset(d) is not None]


def planes_of(case) -> list[np.ndarray]:
    "An image, or every eighth slice of a volume"
    image = case.image()
    array = np.asarray(image.array, np.float32)
    if image.channels: array = array.mean(-1)
    slices = [array] if array.ndim == 2 else [array[..., k] for k in range(4, array.shape[-1], 8)]
    return [p for p in slices if (p != np.median(p)).mean() > .2]  # a slice above the head shows nothing


def coefficients(planes) -> np.ndarray: return np.stack([dct_coefficients(p) for p in planes])[:, None, None]


def correlation(a: np.ndarray, b: np.ndarray) -> float:  # the highest over the eight positions
    small = resize_plane(a, SIDE, SIDE)
    return max(np.corrcoef(small.ravel(), orient_plane(resize_plane(b, SIDE, SIDE), p).ravel())[0, 1]
               for p in ORIENTATIONS)


def find_copies(pictures: list[tuple[str, np.ndarray]], planes: list[tuple[str, np.ndarray]]) -> list[tuple[str, str]]:
    "File and case where a picture is a case's image, in any size, brightness and position"
    distances = hash_distances(coefficients([p for _, p in pictures]), coefficients([p for _, p in planes])).min(0)
    return [(pictures[i][0], planes[j][0]) for i, j in np.argwhere(distances <= CANDIDATE)
            if correlation(pictures[i][1], planes[j][1]) >= COPY]


def test_a_planted_picture_is_found(tmp_path):
    random = np.random.default_rng(0)
    images = [resize_plane(random.normal(size=(6, 6)), 64, 64) for _ in range(20)]
    shown = images[3][::-1] * 20 + 100
    buffer = io.BytesIO()
    Image.fromarray(resize_plane(shown, 90, 80).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=60)
    code = base64.b64encode(buffer.getvalue()).decode()
    figure = tmp_path / "figure.svg"
    figure.write_text(f'<svg><image xlink:href="data:image/jpeg;base64,{code[:40]}\n{code[40:]}"/></svg>')
    pictures = [("figure.svg", p) for p in pictures_in(figure)]
    assert find_copies(pictures, [(str(k), p) for k, p in enumerate(images)]) == [("figure.svg", "3")]
    others = [(str(k), p) for k, p in enumerate(images) if k != 3]
    assert find_copies(pictures, others) == []


def test_sets_that_may_not_be_shown_are_in_no_committed_file():
    if not os.environ.get("MEDSEG_DATA") or not (sets := hidden_sets()): pytest.skip("needs MEDSEG_DATA")
    pictures = committed_pictures()
    assert len(pictures) > 50, "figures hold their panels as pictures"
    for dataset in sets:
        planes = [(f"{dataset}/{c.id}", p) for c in load_cases(dataset) for p in planes_of(c)]
        planted = [("planted", resize_plane(planes[0][1], 60, 60))]
        assert ("planted", planes[0][0]) in find_copies(planted, planes[:40]), "a copy would be found"
        assert not find_copies(pictures, planes), dataset
