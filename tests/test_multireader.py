"Multi-reader multi-case analysis against published values, and what it finds of simulated readers."
import numpy as np
import pandas as pd
import pytest

from medseg_nb.evaluation.multireader import (compare_modalities, estimate_reader_areas, modality_areas,
                                                 modality_differences, modality_tests, variance_components_of_readers)
from medseg_nb.kit.core import rng

# Van Dyke, White, Obuchowski et al., Cine MRI in the diagnosis of thoracic aortic dissection, RSNA 1993: ratings
# from 1 to 5 of 114 cases by five readers. A line has a reader and a modality, a digit a case; the last has the truth.
VAN_DYKE = """\
1 1 122151111111411111111131311214111113121211233131133111111221111332111555545554555434245555555154454553555115554451
1 2 333222223213122222211111421312214323123122233111333113412421241442111535555554555544335555555355355554455535555551
2 1 232222222322522232222222422223222222222222222222222222222432232222222535555542555442225555555243354552425225555352
2 2 322222223222222122221222322222212212222231223222222222322322222222122535555552555344245455545252355532425525555552
3 1 222235112242422232221232411322112224121412112222223211211221151421212545555555555542355555555252255552555225555552
3 2 242222322211132222121121411512112122212221132111233113221232341242121525555555555354145555555253355543555534555551
4 1 111111311111111111112111211112111111111111111111331111111111111311111555555555555555155555555554544553555125555555
4 2 221111312111122111211111321212111122112111112121212211111212111323211545555554555455555555555455445555555535555555
5 1 351211112221211122113221111211211231221113332111211111111341231212113525255551545452235555554144322151515115553552
5 2 223122221222111222122212322321212222112121132122332122221222231233111525455555455343335555555251332532545533555553
t 000000000000000000000000000000000000000000000000000000000000000000000111111111111111111111111111111111111111111111"""


@pytest.fixture(scope="module")
def van_dyke() -> tuple[np.ndarray, np.ndarray]:
    "Ratings (modality, reader, case) and truth"
    *lines, truth = (np.array([int(d) for d in line.split()[-1]]) for line in VAN_DYKE.splitlines())
    return np.stack(lines).reshape(5, 2, -1).swapaxes(0, 1), truth


def close(value, published: float, digits: float = 1e-6) -> bool:
    return abs(value - published) <= digits * abs(published)


def test_published_values_of_the_standard_example(van_dyke):
    "As the R package MRMCaov prints them: empirical AUC, DeLong's covariances, random readers and cases"
    found = estimate_reader_areas(*van_dyke)
    squares, parts = found.mean_squares(), variance_components_of_readers(found)
    assert close(found.areas[0].mean(), .8970370) and close(found.areas[1].mean(), .9408374)
    assert close(squares["modality"], .004796171) and close(squares["interaction"], .0005510306)
    for name, value in dict(reader=.0015364254, interaction=.0002045840, error=.0007921325, cov1=.0003420090,
                            cov2=.0003395265, cov3=.0002358497).items():
        assert close(parts[name], value, 1e-5), name
    test = modality_tests(found).iloc[0]
    assert close(test.f, 4.484854) and close(test.df2, 15.06611) and close(test.p, .05123303) and test.df1 == 1
    row = modality_differences(found, ["cine", "spin echo"]).iloc[0]
    assert row.inference == "random readers and cases" and close(row.difference, -.04380032) and close(row.p, .05123303)
    assert close(row.se, .0206825, 1e-5) and close(row.difference_low, -.0878671960) and close(
        row.difference_high, .0002665519, 1e-4)
    single = modality_areas(found, ["cine", "spin echo"]).set_index("inference").loc["random readers and cases"]
    assert close(single.se.iloc[0], .03307642) and close(single.df.iloc[0], 12.59597)
    assert close(single.se.iloc[1], .02150464) and close(single.df.iloc[1], 12.56530)


def test_other_inferences_of_the_standard_example(van_dyke):
    "Fewer things that are a sample give narrower intervals; the jackknife gives nearly the covariances of DeLong"
    found = estimate_reader_areas(*van_dyke)
    rows = modality_differences(found, ["cine", "spin echo"]).set_index("inference")
    contrast = np.repeat([.2, -.2], 5)
    assert np.isclose(rows.se["random cases"]**2, contrast @ found.covariance.reshape(10, 10) @ contrast)
    assert rows.se["random readers and cases"] > rows.se["random cases"]
    jackknife = estimate_reader_areas(*van_dyke, "jackknife")
    assert np.allclose(jackknife.covariance, found.covariance, rtol=.15, atol=5e-5)


def simulated(rise: float, seed: int, readers: int = 5, cases: int = 60) -> pd.DataFrame:
    "Scores of simulated readers of two modalities; the second separates the classes better by `rise`"
    draw, rows = rng("simulated readers", rise, seed), []
    truth, case = np.arange(cases) % 2, draw.normal(0, .6, cases)
    for r in range(readers):
        skill, gain = draw.normal(0, .2), draw.normal(0, .1)
        for m, more in enumerate((0, rise + gain)):
            score = truth * (1.2 + skill + more) + case + draw.normal(0, .8, cases)
            rows += [dict(modality=m, reader=r, case=k, truth=truth[k], score=score[k]) for k in range(cases)]
    return pd.DataFrame(rows)


def test_error_rate_and_power_of_simulated_studies():
    "Of studies without a difference about one in twenty finds one; a large one is found"
    p = np.array([compare_modalities(simulated(0, s))["tests"].p[0] for s in range(120)])
    assert (p < .05).mean() < .12 and .25 < (p < .5).mean() < .75  # 0.12: three standard errors above 0.05
    assert np.mean([compare_modalities(simulated(1.2, s))["tests"].p[0] < .05 for s in range(20)]) > .7
