("One inference for the whole kit: what is said of a network against itself is the same wherever it is shown, and p "
 "values belong to their intervals.")
import numpy as np
import pandas as pd
import pytest

from conftest import REPO, read_table
from medseg_nb.study import hybrid, leakage, statistics
from medseg_nb.evaluation import comparisons
from medseg_nb.methods import baselines
from medseg_nb.evaluation.comparisons import CONTROL, compare_models

SHOWN = ["difference", "difference_low", "difference_high", "p"]


def simulated(seed: int, folds: int, seeds: int, n: int, luck: float, noise: float = .05) -> pd.DataFrame:
    "Rows of one network, trained again with other seeds; trainings differ by luck"
    r, fold = np.random.default_rng(seed), np.arange(n) % folds
    skill = r.normal(.7, .15, n)
    parts = [dict(dataset="d", model="unet", unit="patient",
                  run=f"u{s}", outcome="found", control=False, patient=[f"p{i:03}" for i in range(n)],
                  case=[f"c{i:03}" for i in range(n)],
                  fold=fold, seed=s, dice=skill + luck * r.normal(size=folds)[fold] + noise * r.normal(size=n))
             for s in range(seeds)]
    return pd.concat([pd.DataFrame(p) for p in parts], ignore_index=True)


def alone(table: pd.DataFrame) -> list[float]:
    "Difference, interval and p value of the one control in a table"
    row = table[table.astype(str).apply(lambda r: r.str.contains("A/A")).any(axis=1)]
    assert len(row) == 1
    return row.iloc[0][SHOWN].tolist()


def test_a_control_is_the_same_in_every_section():
    rows = simulated(0, 5, 2, 60, .03)
    known = alone(baselines.compare_with_unet(rows))
    assert known == alone(statistics.summarize_tests(rows)) == alone(
        leakage.summarize_gain(pd.concat([rows, rows.assign(unit="image")])))
    assert known == alone(
        hybrid.summarize_comparisons(
        pd.concat([rows, rows[rows.seed == 0].assign(model="hybrid")]).assign(control=lambda t: t.seed > 0)))


def test_a_control_of_stored_rows_is_the_same_in_two_sections():
    place = REPO / "reports" / "cpu"
    if not (place / "leakage" / "cases.csv.xz").is_file(): pytest.skip("reports/cpu is not there yet")
    text = dict(case=str, patient=str, site=str, region=str)
    rows, leaking = (read_table(place / name / "cases.csv.xz", dtype=text, low_memory=False)
                     for name in ("benchmark", "leakage"))
    here = dict(dataset="lgg_kaggle3m", model="unet")
    rows, leaking = (t[(t.dataset == here["dataset"]) & (t.model == here["model"])] for t in (rows, leaking))
    assert alone(baselines.compare_with_unet(rows)) == alone(leakage.summarize_gain(leaking))


@pytest.mark.parametrize("folds, seeds", [(1, 3), (3, 1), (5, 1), (3, 2), (2, 1), (1, 4)])
def test_p_lies_below_the_level_where_the_interval_excludes_zero(folds, seeds):
    below = 0
    for k in range(12):
        r, a = np.random.default_rng(k), simulated(k, folds, seeds, 40, .02)
        luck = r.normal(0, .03, folds * seeds)[a.fold * seeds + a.seed]
        b = a.assign(dice=a.dice + .05 * (k % 4) + luck + r.normal(0, .05, len(a)))
        c = compare_models(a, b, "dice")
        assert (c["p"] < .05) == (c["difference_low"] > 0 or c["difference_high"] < 0), c
        below += c["p"] < .05
    assert 0 < below < 12, "both happen"


@pytest.mark.parametrize("folds, seeds, n", [(5, 1, 60), (1, 3, 60)])
def test_a_network_differs_from_itself_in_at_most_one_of_twenty(folds, seeds, n):
    rows = [simulated(k, folds, 2 * seeds, n, .02, noise=.02) for k in range(60)]
    found = [compare_models(t[t.seed < seeds], t[t.seed >= seeds].assign(seed=lambda x: x.seed - seeds), "dice")
             for t in rows]
    assert sum(c["p"] < .05 for c in found) <= 9, "more than 60 studies at the level of 0.05 show in 999 of 1000 cases"


def test_one_training_a_side_has_no_p_value():
    rows = simulated(0, 1, 2, 40, .02)
    c = alone(baselines.compare_with_unet(rows))
    assert np.isfinite(c[:3]).all() and np.isnan(c[3])
    fixed = [rows[rows.seed == s].drop(columns=["fold", "seed"]) for s in (0, 1)]
    assert compare_models(*fixed, "dice")["trainings"] == 0 and compare_models(*fixed, "dice")["p"] <= 1, (
        "nothing was trained: patients are all there is")


def test_counts_leave_out_what_one_training_decides():
    table = baselines.compare_with_unet(simulated(3, 1, 2, 400, .1, noise=.01))
    assert (table.against.tolist() == [CONTROL] and not (table.difference_low <= 0).any()
            or not (table.difference_high >= 0).any())
    assert not comparisons.is_above_zero(table).any() and not comparisons.is_below_zero(table).any()
