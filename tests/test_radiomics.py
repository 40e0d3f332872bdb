"Radiomics against the published values of IBSI, closed forms, and the time that a tumor takes."
import os
import time

import nibabel
import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from medseg_nb.api import measure_radiomics
from medseg_nb.images.files import Image
from medseg_nb.kit.core import InputError, rng
from medseg_nb.methods.radiomics import FAMILIES, family, feature_stability, radiomics

if "mirp" in os.environ.get("MEDSEG_REQUIRE",
                            "").lower().split(","): import mirp  # noqa: F401 (fails where it is absent)
else: pytest.importorskip("mirp", reason="mirp is not installed: pip install 'medseg_nb[radiomics]'")

# Digital phantom of the Image Biomarker Standardisation Initiative (theibsi/data_sets, design by A. Zwanenburg, CC BY
# 4.0) as slices (z) of rows (y) of digits (x); the second block is its mask. Voxels have sides of 2 mm.
INTENSITIES = "14411 14611 41641 44641  14411 11611 11311 44611  14411 11111 11911 11611  14411 11111 11111 11611"
REGION = "11111 11111 11111 11111  11111 11111 01111 11111  11100 11111 11011 11111  11100 11111 11111 11111"
# Published values (A. Zwanenburg et al., Radiology 295:328-338, 2020, and the reference manual, arXiv:1612.07003):
# three digits; of shapes with the manual's tolerance, all others exact in these digits; textures merged in 3D.
SHAPE = """volume 556 4, vol_approx 592 4, area_mesh 388 3, av .698 .004, comp_1 .0411 .0003, comp_2 .599 .004,
sph_dispr 1.19 .01, sphericity .843 .005, asphericity .186 .001, com .672 .004, diam 13.1 .1, pca_maj_axis 11.4 .1,
pca_min_axis 9.31 .06, pca_least_axis 8.54 .05, pca_elongation .816 .005, pca_flatness .749 .005,
vol_dens_aabb .869 .005, area_dens_aabb .866 .005, vol_dens_aee 1.17 .01, area_dens_aee 1.36 .01, vol_dens_conv_hull .961 .006,
area_dens_conv_hull 1.03 .01, integ_int 1200 10"""
EXACT = dict(
    stat="""mean 2.15, var 3.05, skew 1.08, kurt -.355, median 1, min 1, p10 1, p90 4, max 6, iqr 3, range 5, mad 1.55,
rmad 1.11, medad 1.15, cov .812, qcod .6, energy 567, rms 2.77""",
    cm="""joint_max .509, joint_avg 2.15, joint_var 3.13, joint_entr 2.57, diff_avg 1.38, diff_var 3.21, diff_entr 1.64,
sum_avg 4.3, sum_var 7.41, sum_entr 2.11, energy .291, contrast 5.12, dissimilarity 1.38, inv_diff .688,
inv_diff_norm .856, inv_diff_mom .631, inv_diff_mom_norm .902, inv_var .0574, corr .183, auto_corr 5.19,
clust_tend 7.41, clust_shade 17.4, clust_prom 147, info_corr1 -.0288, info_corr2 .269""",
    rlm="""sre .729, lre 2.76, lgre .607, hgre 9.64, srlge .372, srhge 8.67, lrlge 2.16, lrhge 15.6, glnu 281,
glnu_norm .43, rlnu 328, rlnu_norm .501, r_perc .68, gl_var 3.48, rl_var .598, rl_entr 2.62""",
    szm="""sze .255, lze 550, lgze .253, hgze 15.6, szlge .0256, szhge 2.76, lzlge 503, lzhge 1490, glnu 1.4,
glnu_norm .28, zsnu 1, zsnu_norm .2, z_perc .0676, gl_var 2.64, zs_var 331, zs_entr 2.32""")
SUFFIX = dict(stat="", cm="_d1_3d_v_mrg", rlm="_3d_v_mrg", szm="_3d")


def planes(digits: str) -> np.ndarray:
    "Digits as a volume (i, j, k)"
    return np.array([[int(v) for v in row] for row in digits.split()]).reshape(4, 4, 5).transpose(2, 1, 0)


def published() -> dict[str, tuple[float, float]]:
    "Value and tolerance of each feature"
    found = {f"morph_{n}": (float(v), float(t)) for n, v, t in (p.split() for p in SHAPE.split(","))}
    for prefix, text in EXACT.items():
        found |= {f"{prefix}_{n}{SUFFIX[prefix]}": (float(v), 0.) for n, v in (p.split() for p in text.split(","))}
    return found


def three_digits(value: float) -> float: return float(f"{value:.3g}")


def test_published_values_of_the_digital_phantom():
    expected, region = published(), planes(REGION)
    found = radiomics(Image(planes(INTENSITIES), (2., 2., 2.)), region, bins=None)
    assert set(found.index) == set(expected) and len(found) == 98
    off = {n: (found[n], v) for n, (v, tolerance) in expected.items() if abs(three_digits(found[n]) - v) > tolerance
           + 1e-9}
    assert not off
    values = planes(INTENSITIES)[region > 0]
    assert found["stat_mean"] == pytest.approx(values.mean()) and found["stat_energy"] == (values ** 2).sum()
    assert {family(n) for n in found.index} == set(FAMILIES.values())


def test_spacing_belongs_to_its_axis():
    "A rod of 9 voxels along each axis in turn, in voxels of 1 x 2 x 3 mm"
    for axis, side in enumerate((1., 2., 3.)):
        mask = np.zeros((13, 13, 13), np.uint8)
        mask[tuple(slice(2, 11) if a == axis else slice(6, 7) for a in range(3))] = 1
        noise = rng("rod", axis).normal(size=mask.shape)
        found = radiomics(Image(noise, (1., 2., 3.)), mask)
        assert found["morph_vol_approx"] == pytest.approx(9 * 6)
        assert found["morph_pca_maj_axis"] == pytest.approx(4 * side * np.sqrt((9 ** 2 - 1) / 12), rel=.2)
        assert found["morph_diam"] == pytest.approx(9 * side, rel=.2)


def test_where_a_region_lies_and_what_lies_beyond_does_not_matter():
    ball = (np.indices((9, 9, 9)) - 4).__pow__(2).sum(0) < 14
    inside = rng("ball").normal(size=ball.shape)
    def placed(at, outside):
        array, mask = np.full((24, 22, 20), outside), np.zeros((24, 22, 20), int)
        array[tuple(slice(a, a + 9) for a in at)][ball] = inside[ball]
        mask[tuple(slice(a, a + 9) for a in at)][ball] = 3
        return radiomics(Image(array, (1., 1., 1.5)), mask)
    first = placed((0, 0, 0), 0.)
    for at, outside in (((15, 13, 11), 0.),
                        ((4, 7, 2), 1e6)): pd.testing.assert_series_equal(first, placed(at, outside), rtol=1e-8)


def test_a_tumor_of_a_brain_scan_takes_two_seconds():
    "240 x 240 x 155 voxels of which 104 000 are tumor; processor time, for other programs run beside"
    image = gaussian_filter(rng("brain").normal(size=(240, 240, 155)), 2)
    x, y, z = np.ogrid[:240, :240, :155]
    mask = ((x - 100) / 30) ** 2 + ((y - 120) / 32) ** 2 + ((z - 75) / 26) ** 2 < 1
    radiomics(Image(image[:40, :40, :40], (1., 1., 1.)), mask[80:120, 100:140, 60:100])  # modules are loaded once
    seconds = []
    for _ in range(2):
        begun, wall = time.process_time(), time.perf_counter()
        found = radiomics(Image(image, (1., 1., 1.)), mask)
        seconds.append((time.process_time() - begun, time.perf_counter() - wall))
    print(f"radiomics of {mask.sum():,} voxels, processor and wall time in s:", np.round(seconds, 2).tolist())
    assert found["morph_vol_approx"] == mask.sum() and min(s for s, _ in seconds) < 2


def test_stability_between_two_masks():
    "Volumes under a mask that is a voxel smaller agree less than means, and all features come out for all patients"
    cases = {"reader": {}, "model": {}}
    for k in range(6):
        noise, size = gaussian_filter(rng("patient", k).normal(size=(20, 20, 20)), 1.5) + k, 4 + .6 * k
        distance = np.sqrt(((np.indices(noise.shape) - 10) ** 2).sum(0))
        for who, shrink in (("reader", 0), ("model", 1)):
            cases[who][f"p{k}"] = Image(noise, (1., 1., 1.)), distance < size - shrink
    tables = [pd.DataFrame({name: radiomics(*c, name) for name, c in masked.items()}).T for masked in cases.values()]
    table = feature_stability(*tables).set_index("feature")
    assert tables[0].shape == (6, 98) and tables[0].notna().all(axis=None)
    assert table.concordance["stat_mean"] > .99 > table.concordance["morph_vol_approx"]
    with pytest.raises(InputError, match="^p9: has an empty mask"):
        radiomics(Image(np.ones((4, 4, 4)), (1., 1., 1.)), np.zeros((4, 4, 4)), "p9")


# The command

def write_volume(path, array: np.ndarray, sides: tuple[float, ...] = (2., 2., 2.)):
    nibabel.save(nibabel.Nifti1Image(array.astype(np.int16), np.diag([*sides, 1.])), path)
    return path


@pytest.fixture
def phantom(tmp_path):
    "The digital phantom as files"
    return write_volume(tmp_path / "image.nii.gz", planes(INTENSITIES)), write_volume(tmp_path / "mask.nii.gz",
                                                                                       planes(REGION))


def test_the_command_finds_the_published_values(fresh, phantom, tmp_path):
    "Six bins from the least to the greatest of six whole numbers leave them as they are"
    done = fresh.call("radiomics", *phantom, "--bins", "6", "--out", tmp_path / "features.csv")
    assert done.returncode == 0 and "1 rows" in done.stdout and "research use only" in done.stdout, done.stderr
    row, = pd.read_csv(tmp_path / "features.csv").to_dict("records")
    names = pd.read_csv(tmp_path / "features_names.csv", keep_default_na=False).set_index("column")
    assert (row["label"], row["voxels"], row["spacing_i_mm"], row["touches_edge"]) == (1, 74, 2, True)
    assert "touches the edge" in done.stderr and {*names.index} <= {*row}
    assert len(names) == names.code.nunique() == 98
    suffixes = dict(mm="_mm", mm2="_mm2", mm3="_mm3") | {"1/mm": "_per_mm"}
    found = {n.removesuffix(suffixes.get(u, "")).removesuffix("_fbn_n6"): row[n] for n, u in names.unit.items()}
    expected = published()
    assert set(found) == set(expected)
    off = {n: (found[n], v) for n, (v, tolerance) in expected.items() if abs(three_digits(found[n]) - v) > tolerance
           + 1e-9}
    assert not off


def test_names_codes_and_units_are_those_of_the_manual(fresh, phantom):
    done = fresh.call("radiomics", *phantom, "--bins", "6")
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0] == "image, label 1: 74 voxels of 2 x 2 x 2 mm" and len(lines) == 1 + 98
    for line in ("volume RNU0 shape 556.333 mm3", "surface to volume ratio 2PR5 shape 0.69",
                 "maximum 3d diameter L0JK shape 13.1", "mean Q4LE first order 2.14865 intensity",
                 "sum entropy P6QZ GLCM 2.1", "integrated intensity 99N0 shape 1195.36 intensity mm3"):
        assert any(found.startswith(line) for found in lines), (line, lines)


def test_units_scale_as_they_say(fresh, phantom, tmp_path):
    "In voxels of three times the side, a length is three times as long; intensities and textures stay"
    large = [write_volume(tmp_path / f"large_{p.name}", planes(t), (6., 6., 6.))
             for p, t in zip(phantom, (INTENSITIES, REGION))]
    for k, pair in enumerate((phantom, large)):
        assert fresh.call("radiomics", *pair, "--out", tmp_path / f"{k}.csv").returncode == 0
    small, big = (pd.read_csv(tmp_path / f"{k}.csv").iloc[0] for k in range(2))
    units = pd.read_csv(tmp_path / "0_names.csv", keep_default_na=False).set_index("column").unit
    powers = {"1/mm": -1, "mm": 1, "mm2": 2, "mm3": 3, "intensity mm3": 3}
    for name, unit in units.items():
        assert big[name] == pytest.approx(small[name] * 3. ** powers.get(unit, 0), rel=1e-4, abs=1e-6), name
    assert set(units) == {*powers, "intensity", "intensity^2", ""}


def test_each_label_is_a_row_and_python_says_the_same(fresh, phantom, tmp_path):
    image, labels = planes(INTENSITIES), planes(REGION)
    labels[:, :2] *= 3
    mask = write_volume(tmp_path / "labels.nii.gz", labels)
    assert fresh.call("radiomics", phantom[0], mask, "--out", tmp_path / "both.csv").returncode == 0
    assert fresh.call("radiomics", phantom[0], mask, "--label", "3", "--out", tmp_path / "one.csv").returncode == 0
    both, one = (pd.read_csv(tmp_path / f"{n}.csv") for n in ("both", "one"))
    assert both.label.tolist() == [1, 3] and both.voxels.sum() == 74
    pd.testing.assert_frame_equal(both[1:].reset_index(drop=True), one, check_dtype=False)
    for pair, options in (((phantom[0], mask), {}), ((image.astype(float), labels), dict(spacing=(2., 2., 2.)))):
        found = measure_radiomics(*pair, **options)
        expected = both[found.columns].astype(float)
        pd.testing.assert_frame_equal(found.astype(float), expected, rtol=1e-5)


def test_a_folder_goes_on_past_a_case_that_cannot_be_measured(fresh, tmp_path):
    for folder, text in (("images", INTENSITIES), ("masks", REGION)):
        (tmp_path / folder).mkdir()
        for name in "ab": write_volume(tmp_path / folder / f"{name}.nii.gz", planes(text))
    write_volume(tmp_path / "masks" / "b.nii.gz", 0 * planes(REGION))
    done = fresh.call("radiomics", tmp_path / "images", tmp_path / "masks", "--out", tmp_path / "out.csv")
    assert done.returncode == 3 and "b.nii.gz: has an empty mask" in done.stderr
    assert pd.read_csv(tmp_path / "out.csv").case.tolist() == ["a"]


def test_regions_of_a_data_set_have_patients_and_names(tiny_data, tmp_path):
    for folder, text in (("images", INTENSITIES), ("masks", REGION)):
        for k in range(6): write_volume(tiny_data.data / folder / f"p{k}.nii.gz", planes(text))
    tiny_data.table(lambda row: {k: v.replace(".png", ".nii.gz") for k, v in row.items()})
    tiny_data.declare(spacing="file")
    done = tiny_data.project.call("radiomics", "--data", "tiny", "--out", tmp_path / "out.csv")
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "out.csv")
    assert table.case.tolist() == [f"c{k}" for k in range(6)] and table.patient.tolist() == [f"p{k}" for k in range(6)]
    assert set(table.label) == {"lesion"} and table.stat_mean.tolist() == [pytest.approx(159 / 74, rel=1e-5)] * 6
