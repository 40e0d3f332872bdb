"What is committed under reports/ is whole, and each of its numbers can be traced to the rows it was computed from."
import functools
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import quick_scores
import scipy.stats
import sklearn.metrics
import sklearn.model_selection  # keeps the functions of scipy.stats that it finds, which must not be the quick ones
import sksurv.metrics
import sksurv.nonparametric
import statsmodels.regression.mixed_linear_model
import yaml

from conftest import REPO, find_reports, read_table, stored_runs
from medseg_nb.kit import execution as study
from medseg_nb.study import (ablations, augmentation, benchmark,
                             combinations, errors, explained_networks, fewer_labels, fusion, generalization, hospital,
                             hybrid,
                             instances, leakage, outcomes,
                             peers, preparation, quality, reached, readers, realtime, search,
                             statistics, synthesis, xai)
from medseg_nb.evaluation import power, selective
from medseg_nb.deployment import speed
from medseg_nb.methods import baselines
from medseg_nb.training import plan as training_plan
from medseg_nb.study.benchmark import summarize_scores
from medseg_nb.paper.floats import SUPPLEMENT_DIGITS, format_cells, format_head
from medseg_nb.study.claims import count_verdicts, summarize_judged
from medseg_nb.kit.core import InputError, digest, rng, sha256
from medseg_nb.study.data import summarize_agreement, summarize_copies, summarize_prevalence, summarize_sizes
from medseg_nb.training.plan import training_track
from medseg_nb.training.convergence_runs import TASK, list_complete_runs
from medseg_nb.training.packing import TASK as PACKED_TASK
from medseg_nb.kit.report import (SOURCE_KINDS, SUBJECT_COLUMNS, BUDGET_COLUMNS, check_claim,
                                  check_table, number_key, name_budgets, collect_budgets)
from medseg_nb.training.training import Config

TEXT = dict(case=str, patient=str, site=str, grade=str)


@pytest.fixture(params=["smoke", pytest.param("cpu", marks=pytest.mark.long)])
def reports(request) -> Path:
    "The reports of a profile"
    place = find_reports(request.param)
    if not (place / "supplement.html").is_file(): pytest.skip(f"reports/{request.param} is not there yet")
    return place


def sections(reports: Path) -> list[Path]: return sorted(p.parent for p in reports.glob("[a-z]*/results.json"))
def load(path: Path) -> dict: return json.loads(path.read_text(encoding="utf-8"))
def none(faults: list) -> None: assert not faults, "\n" + "\n".join(map(str, faults))


def close(a, b, within: float) -> bool:
    "Equal numbers; undefined equals undefined"
    a, b = (np.nan if v is None or v is pd.NA else float(v) for v in (a, b))
    return bool(np.isnan(a) and np.isnan(b) or abs(a - b) <= within)


# Whole and traced

def test_all_sections_of_the_study_are_there(reports):
    rows = yaml.safe_load((REPO / "nbs" / "study.yaml").read_text(encoding="utf-8"))["sections"]
    wanted = {r["section"] for r in rows if reports.name in r.get("profiles", [reports.name])}
    assert {p.name for p in sections(reports)} == wanted
    for name in ("article", "supplement"):
        assert (reports / f"{name}.pdf").read_bytes().startswith(b"%PDF") and (reports / f"{name}.html").is_file()


def test_outputs_have_the_recorded_hashes(reports):
    for place in sections(reports):
        outputs = load(place / "provenance.json")["outputs"]
        found = {p.name: sha256(p) for p in place.iterdir()
                 if p.name not in ("provenance.json", "notebook.ipynb", "measured.json")}
        assert found == outputs, place.name


def test_results_name_their_profile_and_section(reports):
    assert all((r["profile"], r["section"]) == (reports.name, p.name)
               for p in sections(reports) for r in [load(p / "results.json")])


def test_results_list_every_table_and_figure(reports):
    for place in sections(reports):
        stored = load(place / "results.json")
        tables = {p.stem for p in place.glob("*.csv")} - {"cases"}
        assert tables == set(stored["tables"]) and {p.stem for p in place.glob("*.svg")} == set(stored["figures"]), (
            place.name)


def test_numbers_are_those_of_the_tables(reports):
    faults = []
    for place in sections(reports):
        stored = load(place / "results.json")
        for name, facts in stored["tables"].items():
            for row in pd.read_csv(place / f"{name}.csv").to_dict("records"):
                for e in facts["estimates"]:
                    number = stored["numbers"][number_key(name, *[row[b] for b in facts["by"]], e)]
                    faults += [f"{place.name}/{name} {row} {e}"
                               for k, c in (("value", e), ("low", f"{e}_low"), ("high", f"{e}_high"))
                               if not close(number[k], row[c], 1e-12)]
    none(faults)


# Data behind each float

@functools.cache
def known_sets() -> dict[str, bool]:
    "Whether each data set is synthetic, by its manifest"
    return {p.parent.name: bool(yaml.safe_load(p.read_text(encoding="utf-8")).get("synthetic"))
            for p in (REPO / "data_manifests").glob("*/dataset.yaml")}


def ids(value) -> set[str]:
    "Data sets that a value names"
    if isinstance(value, str): return {value.split(",")[0]} & set(known_sets())
    return (set().union(*map(ids, value.values() if isinstance(value, dict) else value))
            if isinstance(value, (dict, list)) else set())


def run_sets(config: dict) -> set[str]:
    "Data sets of a stored run's config, and of the generator and the starting point in it"
    return {config["dataset"]}.union(*(run_sets(config[k]) for k in ("generator", "start") if config.get(k)))


@functools.cache
def sets_of_runs(reports: Path) -> dict[str, set[str]]:
    return {k: run_sets(load(p / "config.json")) for k, p in stored_runs(reports).items()}


@functools.cache
def section_sets(place: Path) -> set[str]:
    "Walked anew from the files: parameters, rows, the runs that rows name, and every section upstream"
    found = ids(load(place / "provenance.json")["parts"]["parameters"])
    if (place / "cases.csv.xz").is_file():
        rows, runs = read_table(place / "cases.csv.xz", dtype=str), sets_of_runs(place.parent)
        found |= {d for c in ("dataset", "source", "target")
                  if c in rows for d in ids(rows[c].dropna().unique().tolist())}
        found = found.union(*(runs[k] for k in (set(rows.run.dropna()) & runs.keys() if "run" in rows else ())))
    return found.union(*(section_sets(place.parent / u) for u in study.sections()[place.name].upstream
                         if (place.parent / u / "provenance.json").is_file()))


def printed_data(page: str) -> dict[str, str]:
    "What the web edition prints below each float, by section and name"
    import html
    found = {}
    for kind, section, name, rest in re.findall(
        r'id="(table|figure)-([a-z_]+)-([\w.]+)"(.*?<div class="provenance">.*?</div>)', page, re.S):
        found[section, kind, name] = html.unescape(re.sub(r"<[^>]+>",
                                                          "", rest[rest.index('<div class="provenance">'):]))
    return found


def test_floats_name_all_their_data(reports):
    """A float names the data that it shows; one that does not say shows all of its section, through every run and
    upstream section. Each is synthetic or real"""
    known, page, faults = known_sets(), printed_data((reports / "supplement.html").read_text(encoding="utf-8")), []
    for place in sections(reports):
        whole, stored = section_sets(place), load(place / "results.json")
        for kind in ("table", "figure"):
            for name, facts in stored[f"{kind}s"].items():
                own = facts.get("data")
                rows = pd.read_csv(place / f"{name}.csv", dtype=str) if kind == "table" else pd.DataFrame()
                wanted = (whole if own is None
                          else {d for d in own if d in known} | (
                    {d for d in rows.get("dataset", pd.Series(dtype=str)).dropna() if d in known}))
                text = page.get((place.name, kind, name), "")
                faults += [f"{place.name}/{name}: {d} is not named" for d in wanted
                           if not re.search(rf"{d} [0-9a-f]{{8}} \({'synthetic' if known[d] else 'real'}\)", text)]
                kinds = {known[d] for d in wanted} | {True for d in own or () if d not in known}
                if not text.strip().endswith(
                    {(): "no data", (False,): "real", (True,): "synthetic",
                     (False, True): "real and synthetic"}[tuple(sorted(kinds))]):
                    faults.append(f"{place.name}/{name}: does not end with synthetic or real")
    none(faults)


# Recomputed

def thresholds(rows: pd.DataFrame) -> pd.DataFrame:
    "Otsu's better side and the mask that is foreground everywhere, with the section's own percentile bootstrap"
    found = []
    for name, here in rows[rows.kind == "threshold"].groupby("dataset", sort=False):
        persons = here.groupby("patient")[["brighter", "darker", "everything"]].mean()
        side = persons[["brighter", "darker"]].mean().idxmax()
        row = dict(dataset=name, side=side, n=len(persons),
                   cases=len(here), without_lesion=here.everything.isna().sum())
        for column, values in dict(dice=persons[side], everything=persons.everything).items():
            values = values.dropna().to_numpy()
            draws = rng(0, "phantoms", name, column).choice(values, (2000, len(values))).mean(1)
            row[column], row[f"{column}_low"], row[f"{column}_high"] = values.mean(), *np.percentile(draws, [2.5, 97.5])
        found.append(row)
    return pd.DataFrame(found)


def summaries(module, *names: str, prepare: Callable = lambda rows: rows) -> dict:
    "For each table of a section the function that makes it from the section's rows"
    def summarize(name): return lambda rows: getattr(module, f"summarize_{name}")(prepare(rows))
    return {(module.__name__.rpartition(".")[2], name): summarize(name) for name in names}


def without_shares(rows: pd.DataFrame) -> pd.DataFrame:
    shares = [f"{q}{end}" for q in ("small", "large") for end in ("", "_low", "_high")]
    return errors.summarize_imbalance(rows).drop(columns=shares)


def model_rows(rows: pd.DataFrame) -> pd.DataFrame:
    return outcomes.nested_rows(rows).reset_index(drop=True)


def of_parts(*parts: str, within: bool = True) -> Callable:
    "The rows of some parts of a section, or all others, with the columns that they fill"
    return lambda rows: rows[rows.part.isin(parts) == within].dropna(axis=1, how="all").reset_index(drop=True)


def of_track(name: str) -> Callable:
    return lambda rows: rows[rows.track == name].reset_index(drop=True)


@functools.cache
def stored_cpu_runs() -> dict[str, zipfile.Path]: return stored_runs(REPO / "reports" / "cpu")


def rising_runs(rows: pd.DataFrame) -> dict[str, bool]:
    "Trainings whose last six of 24 checks have a mean Dice more than .002 above that of the six before"
    rising = {}
    for run in rows.run.unique():
        place = stored_cpu_runs()[run]
        curve = read_table(place / "curve.csv").query("weights == 'average'")
        steps, dice = load(place / "config.json")["steps"], curve.dice.to_numpy()
        rising[run] = curve.step.max() >= steps - round(.2 * steps) and dice[-6:].mean() - dice[-12:-6].mean() > .002
    return rising


def equal_cost(rows: pd.DataFrame) -> pd.DataFrame:
    datasets = [*rows.dataset.unique()]
    chosen = peers.select_by_validation(list_complete_runs(peers.LONGER_PROFILE, datasets))
    return peers.summarize_equal_cost(rows, peers.list_complete_levels(datasets), chosen)


def on_gpu(rows: pd.DataFrame) -> pd.DataFrame: return reached.summarize_gpu(rows, reached.describe_gpu_runs())


RECOMPUTE = {  # (section, table): the table from the section's cases.csv
    **summaries(leakage, "leak", "gain"),
    **summaries(fewer_labels, "scores", "gains"),
    **summaries(augmentation, "scores", "effects"),
    **summaries(quality, "estimators", "comparisons"),
    **summaries(benchmark, "scores", "surfaces", "classes", "order", "reached"),
    ("benchmark", "comparisons"): baselines.compare_with_unet,
    **summaries(search, "trials"),
    ("reached", "reached"): lambda rows: reached.summarize_reached(
        of_track("reached")(rows), rising_runs(of_track("reached")(rows))),
    **summaries(reached, "differences", prepare=lambda rows: of_track("reached")(rows)),
    **summaries(reached, "budgets", prepare=lambda rows: of_track("budget")(rows).astype(dict(budget_s=int))),
    ("reached", "gpu"): lambda rows: on_gpu(of_track("gpu")(rows)),
    ("reached", "measures"): lambda rows: reached.summarize_measures(rows, of_track("gpu")(rows)),
    ("reached", "gpu_differences"): lambda rows: reached.summarize_gpu_differences(
        of_track("gpu")(rows), on_gpu(of_track("gpu")(rows))),
    ("reached", "pooled"): lambda rows: reached.summarize_pooled(
        reached.summarize_differences(of_track("reached")(rows)),
        reached.summarize_gpu_differences(of_track("gpu")(rows), on_gpu(of_track("gpu")(rows))),
        reached.list_hybrids("cpu")),
    ("reached", "gpu_scales"): lambda rows: reached.compare_scales(
        of_track("gpu")(rows), on_gpu(of_track("gpu")(rows))),
    **summaries(ablations, "changes", "scores", "where", "unsteady", "sizes", prepare=of_parts("volume", within=False)),
    **summaries(ablations, "volume_scores", "volume_differences", prepare=of_parts("volume")),
    **summaries(peers, "scores", "differences", "rising", prepare=peers.select_curve_rows),
    ("peers", "equal"): equal_cost,
    ("peers", "recipes"): lambda rows: peers.summarize_recipes(
        rows, peers.list_complete_levels([*rows.dataset.unique()]), "monai_unet"),
    ("peers", "studies"): lambda rows: peers.summarize_studies(
        rows, peers.list_complete_levels([*rows.dataset.unique()])),
    ("peers", "study_scores"): peers.summarize_study_scores,
    ("claims", "verdicts"): count_verdicts,
    ("claims", "judged"): summarize_judged,
    **summaries(combinations, "gains", "choices", "scores"),
    **summaries(hybrid, "scores", "comparisons", "complexity"),
    **summaries(instances, "scores", "recognition", "comparisons", "kinds", "counts"),
    **summaries(realtime, "variants"),
    ("realtime", "differences"): speed.compare_variants,
    **summaries(errors, "sizes", "small", "leads", "shapes", "boundary", "bands", "artefacts", "strength", "subgroups",
                "failures"),
    ("errors", "imbalance"): without_shares,
    **summaries(generalization, "zero_shot", "few_shot", "forgetting", "adaptation", "diversity", "carried", "shift"),
    ("generalization", "foretold"): generalization.summarize_promises,
    ("generalization", "reasons"): lambda rows: generalization.summarize_reasons(generalization.collect_losses(rows)),
    ("generalization", "gains"): lambda rows: generalization.summarize_gains(rows).assign(method="fine-tuned"),
    ("data", "sizes"): summarize_sizes,
    ("data", "prevalence"): summarize_prevalence,
    ("data", "agreement"): summarize_agreement,
    ("data", "copies"): summarize_copies,
    ("data", "otsu"): thresholds,
    **summaries(readers, "consensus", "performance", "region", "repair", "differences", "left_out",
                prepare=of_parts("consensus", "performance", "region", "repair", "left out")),
    **summaries(preparation, "spread", "resampling", "cropping", "denoising", "bias", "gains", "recovery"),
    **summaries(statistics, "tests", "empty_rules", "ranks", "stability", "variance"),
    **summaries(synthesis, "scores", "gain", "copying", "heeded", "scarcity", "uses", "small_lesions", "robustness"),
    **summaries(statistics, "resampled", prepare=power.average_patients),
    ("statistics", "power"): lambda rows: power.summarize_power(power.average_patients(rows)),
    **summaries(outcomes, "discrimination", "calibration", "survival", "differences", "sources", "subgroups",
                "fairness", "precision", "timed", "brier", "needed", prepare=model_rows),
    ("outcomes", "optimism"): lambda rows: outcomes.summarize_optimism(
        model_rows(rows), outcomes.summarize_discrimination(model_rows(rows)),
        outcomes.summarize_survival(model_rows(rows))),
    ("outcomes", "stability"): lambda rows: outcomes.summarize_stability(rows[rows.feature.notna()]),
    **summaries(outcomes, "importance", "directions", prepare=lambda rows: rows[rows.field.notna()]),
    **summaries(outcomes, "transfer", "sites", "learning", "encoders"),
    **summaries(readers, "agreement", "non_inferiority", "reliability", "sizes", "simulated_within",
                "simulated_between", "simulated_effects",
                prepare=of_parts("agreement", "size", "annotation", "study")),
    **summaries(fusion, "scores", "comparisons", "ambiguity", "missing", "importance", "ranking"),
    ("fusion", "chosen"): fusion.summarize_cases,
    ("fusion", "sequences"): lambda rows: fusion.summarize_sequences(rows.astype(dict(missing="Int64"))),
    ("fusion", "sequence_differences"): lambda rows: fusion.compare_sequences(rows.astype(dict(missing="Int64"))),
    **summaries(hospital, "reading", "round_trip"),
    **summaries(explained_networks, "learnt", "causes", "pointing", "faithfulness", "differences", "orders"),
    **summaries(xai, "learnt", "causes", "pointing", "faithfulness", "randomised", "stability", "counterfactuals",
                "planted", "marks", "mark_effects", "mark_differences", "mark_tracking", "suspects", "alarms", "cost",
                "sets", "interventions", "differences"),
}


# from what `control_risk_by_dataset` makes of the cases
RECOMPUTE_CONTROL = summaries(quality, "guarantee", "workload")


@functools.lru_cache(maxsize=1)  # tests of a section follow each other
def read_cases(place: Path) -> pd.DataFrame: return read_table(place / "cases.csv.xz", dtype=TEXT)


@functools.lru_cache(maxsize=1)
def control_of_risk(place: Path) -> pd.DataFrame: return quality.control_risk_by_dataset(read_cases(place))


QUICK = {sklearn.metrics: ["average_precision_score"], sksurv.metrics: ["concordance_index_ipcw"],
         sksurv.nonparametric: ["CensoringDistributionEstimator"], scipy.stats: ["rankdata"], selective: ["rankdata"],
         statsmodels.regression.mixed_linear_model: ["_smw_solver"]}


@pytest.fixture
def quick(monkeypatch):
    "Scores that bootstraps take in each draw, and the equations of a mixed model, in plain NumPy"
    for package, names in QUICK.items():
        for name in names: monkeypatch.setattr(package, name, getattr(quick_scores, name))


def recompute(place: Path, name: str) -> pd.DataFrame:
    "A table from the section's rows; one that is not known here must be added"
    rows = read_cases(place).copy()
    if (place.name, name) not in RECOMPUTE_CONTROL: return RECOMPUTE[place.name, name](rows).reset_index(drop=True)
    return RECOMPUTE_CONTROL[place.name, name](control_of_risk(place).copy()).reset_index(drop=True)


def table_faults(place: Path, name: str, facts: dict) -> list[str]:
    "Numbers of a table that are not what its section's rows say"
    stored, again = pd.read_csv(place / f"{name}.csv"), recompute(place, name)
    if "budget_s" in set(stored) - set(again): again = name_budgets(again, read_cases(place))
    # words, which test_no_table_or_claim_compares_unnamed_budgets checks
    stored, again = (t.drop(columns="budgets", errors="ignore") for t in (stored, again))
    assert list(again.columns) == list(stored.columns) and len(again) == len(stored), name
    keys, keys_again = (t[facts["by"]].astype(object).fillna("").astype(str) for t in (stored, again))
    assert (keys == keys_again).all(axis=None), name
    return [f"{place.name}/{name} row {i}: {column} is {a}, recomputed {b}"
            for column in stored.select_dtypes("number") for i, (a, b) in enumerate(zip(stored[column], again[column]))
            if not close(a, b, 5e-6 * max(.2, abs(a)))]


# one test a table, so that two processes share the work
OF_CASES = sorted((p.parent.parent.name, p.parent.name, name) for profile in ("smoke", "cpu")
                  for p in (REPO / "reports" / profile).glob("[a-z]*/results.json")
                  for name, facts in load(p)["tables"].items() if facts["source"] == "cases.csv")


@pytest.mark.parametrize(("profile", "section", "name"), [
    pytest.param(*names, id=".".join(names), marks=[pytest.mark.long] if names[0] == "cpu" else [])
    for names in OF_CASES])
def test_tables_are_recomputed_from_cases(quick, profile, section, name):
    "Every number of every table that names cases.csv as its source"
    place = REPO / "reports" / profile / section
    none(table_faults(place, name, load(place / "results.json")["tables"][name]))


def drawn_patients(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    "Events, times and risks of a few patients, many of them tied"
    n = random.integers(3, 60)
    return (random.random(n) < random.choice([.1, .5, 1]), random.integers(1, random.choice([9, 99]), n) * 1.,
            random.integers(0, random.choice([4, 99]), n) / 99)


def said(score: Callable, *given):
    "What a score says, or that there is none"
    try: return score(*given)
    except (ValueError, ZeroDivisionError): return np.nan


def test_quick_scores_are_those_of_the_packages():
    random, defined = np.random.default_rng(0), 0
    for _ in range(400):
        event, time, risk = drawn_patients(random)
        if event.any(): assert quick_scores.average_precision_score(event, risk) == pytest.approx(
            sklearn.metrics.average_precision_score(event, risk), abs=1e-12)
        patients, until = sksurv.util.Surv.from_arrays(event, time), random.choice(time) + .5
        mine, other = (said(lambda: m.concordance_index_ipcw(patients, patients, risk, tau=until)[0])
                       for m in (quick_scores, sksurv.metrics))
        assert mine == pytest.approx(other, abs=1e-12, nan_ok=True)
        early = patients[time < until]
        mine, other = (said(lambda: m.CensoringDistributionEstimator().fit(patients).predict_ipcw(early))
                       for m in (quick_scores, sksurv.nonparametric))
        assert mine == pytest.approx(other, abs=1e-9, nan_ok=True)
        defined += np.ndim(mine)
    assert 100 < defined < 400


def test_quick_ranks_and_equations_are_those_of_the_packages():
    random, packages = np.random.default_rng(0), statsmodels.regression.mixed_linear_model
    for _ in range(200):
        values = random.integers(0, random.choice([3, 99]), random.integers(1, 40, 2)) / 7
        assert (quick_scores.rankdata(values, axis=1) == scipy.stats.rankdata(values, axis=1)).all()
        assert (quick_scores.rankdata(values[0]) == scipy.stats.rankdata(values[0])).all()
        rows, fixed, others = random.integers(5, 40), random.integers(0, 3), random.integers(1, 9)
        design, x = random.normal(size=(rows, fixed + others)), random.normal(size=(rows, random.integers(1, 4)))
        given = (random.uniform(.5, 2), design, design.T @ design, np.eye(fixed) * 3, random.uniform(.5, 9, others))
        mine, other = (m._smw_solver(*given) for m in (quick_scores, packages))
        assert mine(x) == pytest.approx(other(x), abs=1e-9) and mine(x[:, 0]) == pytest.approx(other(x[:, 0]), abs=1e-9)


def test_other_numbers_name_their_file(reports):
    "What is no statistic over cases says of what kind it is, and where it can be looked up"
    faults = []
    for place in sections(reports):
        for name, facts in load(place / "results.json")["tables"].items():
            for source in {facts["source"], *facts["others"].values()} - {"cases.csv"}:
                kind, _, file = source.partition(": ")
                if kind not in SOURCE_KINDS or not ((place / file).is_file() or any(REPO.glob(file))):
                    faults.append(f"{place.name}/{name}: {source}")
    none(faults)


def test_every_number_can_be_quoted(reports):
    "A key without a dot is text to the paper, and would be printed as it stands"
    faults = [f"{place.name}: {name}" for place in sections(reports)
              for name in load(place / "results.json")["numbers"] if "." not in name]
    none(faults)


def test_recomputing_sees_an_edited_number(reports):
    rows = read_table(reports / "benchmark" / "cases.csv.xz", dtype=TEXT)
    stored, k = summarize_scores(rows), rows.dice.first_valid_index()
    rows.loc[k, "dice"] += .01
    assert not close(stored.dice[0], summarize_scores(rows).dice[0], 1e-6)


def test_means_are_over_patients(reports):
    "An oracle of its own: the mean of patients' mean Dice, each training weighing the same"
    rows = read_table(reports / "benchmark" / "cases.csv.xz", dtype=TEXT)
    for r in pd.read_csv(reports / "benchmark" / "scores.csv").itertuples():
        mine = rows[(rows.dataset == r.dataset) & (rows.model == r.model)]
        assert (r.dice == pytest.approx(mine.groupby(["fold", "seed", "patient"]).dice.mean().mean(), abs=1e-6)
                and r.n == mine.patient.nunique())
        assert r.dice_low <= r.dice <= r.dice_high


# Verdicts

def rule(kind: str, claimed: str, low: float | None, high: float | None) -> str:
    "The rule of the interfaces, written a second time"
    if low is None or high is None: return "undecided"
    if kind == "difference": return "supported" if low > 0 else "refuted" if high < 0 else "undecided"
    wanted = [float(v) for v in re.findall(r"-?\d+(?:\.\d+)?", claimed)]
    if claimed.startswith("at least") or claimed == "1" and kind == "score":
        return "refuted" if high < wanted[0] else "supported" if low >= wanted[0] or high - low <= .10 else "undecided"
    if claimed.startswith("at most") or claimed == "0" and kind == "score":
        return "refuted" if low > wanted[0] else "supported" if high <= wanted[0] or high - low <= .10 else "undecided"
    if high < wanted[0] or low > wanted[-1]: return "refuted"
    if kind == "gain":
        return "supported" if (low > 0 or high < 0) and high - low <= 2 * (wanted[-1] - wanted[0]) else "undecided"
    return "supported" if high - low <= .10 else "undecided"


def test_verdicts_follow_the_rule(reports):
    """On the data that a claim names; a claim measured elsewhere has a value and no result of a test, and one training
    a side settles no comparison"""
    claims = [c for p in sections(reports) for c in load(p / "results.json")["claims"]]
    assert claims and not any("test" in c for c in claims)
    compared = [c for c in claims if " for " not in c["dataset"]]
    once = [c for c in compared if c["kind"] != "score" and c["trainings"] == 1]
    none([c for c in claims if (c["verdict"] == "not comparable") != (" for " in c["dataset"])])
    none([c for c in once if c["verdict"] not in ("undecided: one training", "undecided")])
    none([c for c in compared if c not in once and c["verdict"] != rule(c["kind"], c["claimed"], c["low"], c["high"])])
    none([c for c in claims if c["source"] != "ours" and c["dataset"].startswith("phantom")
          and c["verdict"] != "not comparable"])


def test_a_claim_names_the_set_that_it_was_tested_on(reports):
    "Whatever data the source spoke of, or none; what follows the name of the set says which part of it"
    claims = [c for p in sections(reports) for c in load(p / "results.json")["claims"] if c["source"] != "ours"]
    known = {p.parent.name for p in (REPO / "data_manifests").glob("*/dataset.yaml")}
    assert claims
    none([(c["id"], c["dataset"]) for c in claims if re.split("[ ,]", c["dataset"])[0] not in known])


@functools.cache
def claims_that_name_no_data() -> tuple[str, ...]:
    "Beginnings of their ids; what a sentence without data says, it says of any patients' images"
    quotes = pd.read_csv(REPO / "nbs" / "claims" / "quotes.csv", keep_default_na=False)
    return tuple(f"{i}." for i in quotes.id[quotes.data == ""])


def in_the_ledger(c: dict) -> str:
    "The ledger's verdict, by the rule written a second time: at least and at most need the whole interval"
    if (c["source"] != "ours" and c["kind"] == "difference" and c["id"].startswith(claims_that_name_no_data())
            and c["verdict"] == "not comparable" and not c["dataset"].startswith("phantom")):
        return ("undecided: one training" if c["trainings"] == 1
                else rule("difference", c["claimed"], c["low"], c["high"]))
    is_open = c["kind"] == "score" and c["claimed"].startswith("at ") and c["verdict"] != "not comparable"
    if not is_open or c["low"] is None: return c["verdict"]
    low, high, bound = c["low"], c["high"], float(c["claimed"].split()[-1])
    if low == high in (0, 1):  # Wilson, in the form for no hits and for all
        low, high = (0, 3.8415 / (c["n"] + 3.8415)) if high == 0 else (c["n"] / (c["n"] + 3.8415), 1)
    if "most" in c["claimed"]: low, high, bound = -high, -low, -bound
    return "supported" if low >= bound else "refuted" if high <= bound else "undecided"


def without_repeats(claims: list[dict]) -> list[dict]:
    "Rows of the sources that measure the same for the same claim count once"
    def key(c): return (*(c[k] for k in ("source", "dataset", "measured", "low", "high", "n")), c["id"].split(".")[1])
    seen, kept = set(), []
    for c in claims:
        is_repeated = c["source"] != "ours" and c["kind"] == "difference" and c["low"] is not None and key(c) in seen
        seen.add(key(c))
        if not is_repeated: kept.append(c)
    return kept


def test_claims_of_the_sources_and_of_the_kit_are_counted_apart(reports):
    "Plain counts over the stored claims but for a positive control; what is not comparable has no other verdict"
    every = [c for p in sections(reports) for c in load(p / "results.json")["claims"]]
    claims = without_repeats([c for c in every if "(8 patients;" not in c["statement"]])  # overfitted on purpose
    stored = pd.read_csv(reports / "claims" / "verdicts.csv")
    numbers = load(reports / "claims" / "results.json")["numbers"]
    for of in ("sources", "kit"):
        own = [in_the_ledger(c) for c in claims if (c["source"] == "ours") == (of == "kit")]
        for column, verdict in dict(supported="supported", refuted="refuted", undecided="undecided",
                                    one_training="undecided: one training", not_comparable="not comparable").items():
            assert stored[stored.claims_of == of][column].sum() == own.count(
                verdict) == numbers[f"{of}.{column}"]["value"]


def test_a_one_sided_claim_needs_its_whole_interval(reports):
    ledger = pd.read_csv(reports / "claims" / "judged.csv")
    least, most = (ledger[ledger.claimed.str.startswith(f"at {way}") & (ledger.verdict == "supported")]
                   for way in ("least", "most"))
    none([*least.id[least.measured_low < least.claimed.str.split().str[-1].astype(float)],
          *most.id[most.measured_high > most.claimed.str.split().str[-1].astype(float)]])
    bounded = ledger[ledger.claimed.str.startswith("at ")]
    none([*bounded.id[(bounded.measured_low < 0) | (bounded.measured_high > 1)]])


def test_the_sources_sentences_stand_beside_their_rows(reports):
    "Each row of the sources has its sentence, and no sentence is counted twice"
    table = pd.read_csv(reports / "claims" / "sentences.csv")
    numbers = load(reports / "claims" / "results.json")["numbers"]
    assert table.sentence.is_unique and table.claims.sum() == numbers["sources.count"]["value"]
    printed = table.sentence.str.startswith("(")
    assert (~printed).sum() == numbers["sources.sentences"]["value"]
    assert table.claims[~printed].sum() == numbers["sources.worded"]["value"]


def test_corrected_p_values_are_those_of_the_sections(reports):
    "Recomputed by hand for the hybrid, whose claim is a row of a table"
    table = pd.read_csv(reports / "hybrid" / "comparisons.csv").query("model == 'hybrid' and against == 'unet'")
    judged = pd.read_csv(reports / "claims" / "judged.csv").set_index("id").p_holm
    for r in table.itertuples():
        stored = judged.get(f"hybrid.above_parts.{r.dataset}")
        assert stored == pytest.approx(r.p_holm, nan_ok=True)


def test_claims_measure_what_the_tables_say(reports):
    stored = load(reports / "benchmark" / "results.json")
    by_key = {(n["value"], n["low"], n["high"], n["n"]) for n in stored["numbers"].values()}
    none([c for c in stored["claims"] if (c["measured"], c["low"], c["high"], c["n"]) not in by_key])


# One inference

FITTED = {("readers", "simulated_effects")}  # of people: nothing is trained


def test_p_values_know_of_the_trainings(reports):
    "A table with a p value counts the trainings of each side, and one training has none"
    faults = []
    for place in sections(reports):
        for path in (p for p in place.glob("*.csv") if p.stem != "cases"):
            table = pd.read_csv(path)
            if "p" not in table or (place.name, path.stem) in FITTED: continue
            if "trainings" not in table: faults.append(f"{place.name}/{path.stem}: trainings are not counted")
            elif once := int(((table.trainings == 1) & table.p.notna()).sum()):
                faults.append(f"{place.name}/{path.stem}: p in {once} rows of one training")
    none(faults)


# Coverage

GROUPED = ("dataset", "source", "target", "part", "setting", "k", "unit", "control", *SUBJECT_COLUMNS)


def designs_in(rows: pd.DataFrame) -> set[tuple[int, int, int]]:
    "Folds, seeds and patients of each network that was trained several times and has an interval"
    rows, found = rows[rows.run.astype(str).str.fullmatch("[0-9a-f]{16}") & rows.fold.notna()], set()
    for _, mine in rows.groupby([c for c in GROUPED if c in rows], dropna=False):
        trainings, folds = len(mine[["fold", "seed"]].drop_duplicates()), mine.fold.nunique()
        n = mine.patient.nunique()
        if trainings > 1 and n >= 5: found.add((folds, -(-trainings // folds), n))
    return found


def test_every_design_of_the_study_is_simulated(reports):
    "By folds and seeds, with patients from as few to as many as the study has, or half as many again"
    known, faults = {}, []
    for folds, seeds, n in statistics.STUDY_DESIGNS: known.setdefault((folds, seeds), []).append(n)
    for place in sections(reports):
        file = next(place.glob("cases.csv*"), None)
        rows = read_table(file, dtype=TEXT, low_memory=False) if file else pd.DataFrame()
        for folds, seeds, n in designs_in(rows) if {"run", "fold", "seed", "patient"} <= set(rows) else ():
            near = known.get((folds, seeds), [])
            if near and min(near) / 1.5 <= n <= max(near) * 1.5: continue
            faults.append(f"{place.name}: {folds} folds × {seeds} seeds, {n} patients")
    none(faults)


# Runs

def test_committed_runs_belong_to_the_grid(reports):
    """All runs of a section whose results are of today's runs; others only where a section's results are older, and
    stale"""
    if reports.name == "smoke": assert not (reports / "runs").exists(); return
    planned = {name: study.list_run_configs(name, study.section_parameters(name, reports.name))
               for name, s in study.sections().items() if reports.name in s.profiles}
    elsewhere = (TASK, PACKED_TASK)  # see test_convergence.py and test_packed.py
    grids = {name: {c.key: c for c in configs if c.task not in elsewhere} for name, configs in planned.items()}
    runs = stored_runs(reports)
    found = {k: load(p / "config.json") for k, p in runs.items()}
    # those of nbs/plans.yaml: see test_convergence.py
    found = {k: c for k, c in found.items() if c["task"] != TASK}
    there = {name: reports / name / "provenance.json" for name in grids}
    today = [name for name, p in there.items()
             if p.is_file() and load(p)["parts"]["runs"] == digest(list(dict.fromkeys(c.key for c in planned[name])))]
    assert ({k for name in today for k in grids[name]} <= set(found)
            and (len(today) < len(grids) or set(found) == {k for runs in grids.values() for k in runs}))
    none([k for runs in grids.values() for k in runs if k in found and Config(**found[k]) != runs[k]])
    files = {"config.json", "history.csv.xz", "cases.csv.xz", "scored.json"}
    none([k for k in found if not files <= {p.name for p in runs[k].iterdir()} <= files | {"measured.json"}])


def test_every_network_takes_what_the_search_chose():
    place = REPO / "reports" / "cpu" / "search" / "trials.csv"
    if not place.is_file(): pytest.skip("the search has no results yet")
    best = pd.read_csv(place).query("chosen").iloc[0]
    chosen = ({name: best[name] for name in search.SEARCH_SPACE}
              | dict(rate=best.rate * (10 if best.optimiser == "sgd" else 1), average=best.average or None))
    assert {k: v for k, v in chosen.items() if v is not None} == {
        k: v for k, v in training_plan.load_plan("cpu").settings.items() if k in chosen}


def costs_against_plan(configs, spent, wanted: dict[str, float]) -> list[str]:
    """Networks whose budget is not the one that is named for them, and networks that took more or less than U-Net for
    each planned second"""
    rows = pd.DataFrame([dict(dataset=c.dataset, model=c.model, flat=c.depth is None,
                              budget_s=training_track(c)["budget_s"], spent=spent(c)) for c in configs])
    named = rows[rows.flat].assign(wanted=rows.model.map(wanted).fillna(wanted[""]))
    faults = [f"{r.dataset}, {r.model}: trained for {r.budget_s:g} s, not for {r.wanted:g}"
              for r in named[named.budget_s != named.wanted].drop_duplicates().itertuples()]
    share = (rows.spent / rows.budget_s).groupby([rows.dataset, rows.model]).median()
    against = share / share.xs("unet", level="model").reindex(share.index, level="dataset")
    return faults + [f"{d}, {m}: {v:.2f} of U-Net's seconds for each planned one"
                     for (d, m), v in against.items() if not .75 <= v <= 1.25]


# as the paper names them: a network with another one changes the text too
BUDGETS = {"": 60, "residual_unet": 180, "unet_lite0": 180, "mask_rcnn": 180}


def benchmark_configs() -> list[Config]:
    return list(dict.fromkeys(c for name in ("benchmark", "hybrid")
                              for c in study.list_run_configs(name, study.section_parameters(name, "cpu"))))


def stored_seconds(config: Config) -> float:
    return load(stored_cpu_runs()[config.key] / "measured.json")["train_cpu_seconds"]


def test_networks_had_the_cost_that_was_planned():
    """Each network was trained for the budget that its rows name, and took as much processor time for each planned
    second as U-Net did"""
    none(costs_against_plan(benchmark_configs(), stored_seconds, BUDGETS))


def test_another_budget_is_seen():
    "A network that was given three times the budget, and one that took three times its budget"
    configs = benchmark_configs()
    longer = [replace(c, steps=3 * c.steps) if c.model == "fcn" else c for c in configs]
    def spent(c):
        return stored_seconds(next(o for o in configs if replace(o, steps=1) == replace(c, steps=1))) * (
            3 if c.model == "fcn" else 1)
    assert {f.split(":")[0].split(", ")[1] for f in costs_against_plan(longer, spent, BUDGETS)} == {"fcn"}
    assert any("fcn" in f and "for each planned one" in f for f in costs_against_plan(configs, spent, BUDGETS))


def test_rows_name_the_budget_of_their_run(reports):
    "Every row of a trained run that a section stores says what the run's steps stand for"
    studies = training_plan.load_plan("cpu").sections.peers.studies
    planned = peers.list_planned_runs("cpu", [*studies]).items()
    configs, faults, studied = {}, [], {c.key for c, (how, _) in planned if how == peers.BY_RULES}
    by_hand = {c.key for c, (how, _) in planned if how == peers.BY_HAND}
    for key, place in stored_runs(reports).items():
        config = Config(**load(place / "config.json"))  # a training to convergence has copies of several budgets
        if config.task != TASK: configs[key] = training_track(config)
        # a study measured its own throughput, which holds for the settings by hand too where its grid is finer
        if key in studied or key in by_hand and config.size > 128:
            study = studies[config.dataset]
            configs[key] |= dict(budget_s=round(config.steps * config.batch / study.throughput[config.model]))
    for place in sections(reports):
        rows = (read_table(place / "cases.csv.xz", dtype=TEXT)
                if (place / "cases.csv.xz").is_file() else pd.DataFrame(dict(run=[])))
        for run, mine in rows[rows.run.isin(configs)].groupby("run") if "run" in rows else ():
            told = mine.reindex(columns=BUDGET_COLUMNS).drop_duplicates().to_dict("records")
            if len(told) != 1 or not close(told[0]["budget_s"],
                                           configs[run]["budget_s"], 0) or told[0]["start"] != configs[run]["start"]:
                faults.append((place.name, run, told))
    none(faults)


# about images, about steps, and about a search that gives all the seconds that its caption names: no rows of the
# section's networks; and about several sets, whose budgets test_recomputed holds against those of the differences
UNTRAINED = {("generalization", "shift"), ("xai", "cost"), ("reached", "designs"), ("reached", "pooled")}


def test_no_table_or_claim_compares_unnamed_budgets(reports):
    "The gate of the report layer, over what is committed"
    faults = []
    for place in sections(reports):
        if not (place / "cases.csv.xz").is_file(): continue
        stored, budgets = load(place / "results.json"), collect_budgets(
            read_table(place / "cases.csv.xz", dtype=TEXT, low_memory=False))
        checks = [(check_table, (budgets, name, pd.read_csv(place / f"{name}.csv"), facts["source"]))
                  for name, facts in stored["tables"].items() if (place.name, name) not in UNTRAINED]
        for check, given in [*checks, *((check_claim, (budgets, c)) for c in stored["claims"])]:
            try: check(*given)
            except InputError as e: faults.append(f"{place.name}: {e}")
    none(faults)


def test_rows_of_the_benchmark_are_those_of_its_runs(reports):
    rows = read_table(reports / "benchmark" / "cases.csv.xz", dtype=TEXT)
    # whose runs are not committed
    trained = rows[rows.run.str.fullmatch("[0-9a-f]{16}")].groupby("run") if reports.name != "smoke" else ()
    runs = stored_runs(reports)
    for run, mine in trained:
        stored = read_table(runs[run] / "cases.csv.xz", dtype=TEXT)
        pd.testing.assert_frame_equal(mine[stored.columns].reset_index(drop=True), stored, check_dtype=False)


def test_no_patient_is_trained_and_tested(reports):
    "The patients of a run's rows are the test side of its frozen fold"
    rows = read_table(reports / "benchmark" / "cases.csv.xz", dtype=TEXT)
    for (dataset, fold), mine in rows.groupby(["dataset", "fold"]):
        split = load(REPO / "data_manifests" / dataset / "splits.json")["folds"][fold]
        assert set(mine.patient) == set(split["test"]) and not set(mine.patient) & set(split["train"]), dataset


# The smoke profile's own

@pytest.fixture
def smoke() -> Path:
    place = REPO / "reports" / "smoke"
    if not (place / "benchmark" / "scores.csv").is_file(): pytest.skip("reports/smoke is not there yet")
    return place


def test_executed_notebooks_are_small(smoke):
    sizes = {p.parent.name: p.stat().st_size for p in smoke.glob("[a-z]*/notebook.ipynb")}
    assert set(sizes) == {p.name for p in sections(smoke)} and [k for k, n in sizes.items() if n >= 300_000] == []


def test_executed_notebooks_have_no_machine_in_them(smoke):
    stored = [load(p) for p in smoke.glob("[a-z]*/notebook.ipynb")]
    assert not [c for nb in stored for c in nb["cells"] if set(c["metadata"]) - {"tags"}
                or any(o.get("output_type") == "error" or o.get("name") == "stderr" for o in c.get("outputs", []))]


def test_phantoms_are_neither_trivial_nor_hopeless(smoke):
    dice = pd.read_csv(smoke / "benchmark" / "scores.csv").pivot(index="dataset", columns="model", values="dice")
    assert {"phantom_mri", "phantom_skin", "phantom_lung", "phantom_nuclei"} <= set(dice.index)
    assert dice.unet.between(.70, .97).all() and (dice.otsu < .60).all(), dice


def test_chance_is_a_row(reports):
    models = pd.read_csv(reports / "benchmark" / "scores.csv").groupby("dataset").model.apply(set)
    assert all({"chance", "fcn", "unet"} <= found for found in models)


@pytest.mark.parametrize("name", ["article", "supplement"])
def test_each_float_is_marked(reports, name):
    page = (reports / f"{name}.html").read_text(encoding="utf-8")
    captions = re.findall(r"<(?:fig)?caption[^>]*>\s*(.{40})", page, re.S)
    floats = len(re.findall(r'class="float ', page))
    assert len(captions) == floats > 5
    is_marked = [c.startswith("[smoke profile] ") for c in captions]
    assert all(is_marked) if reports.name == "smoke" else not any(is_marked)


def is_rounded(cell: str, value: float) -> bool:
    "Whether the first number of a printed cell is a value to the digits that it shows, three or more below ten"
    number = re.match(r"[\d.]+", cell.replace(",", "").lstrip("−"))
    if number is None: return not np.isfinite(value)
    digits = len(number[0].partition(".")[2])
    shown = float(number[0]) * (-1 if cell.startswith("−") else 1)
    is_large = max(map(float, re.findall(r"\d[\d.]*", cell.replace(",", "")))) >= 10  # one of the limits
    return abs(shown - value) <= .50001 * 10**-digits and (digits >= 3 or is_large or shown == value)


def test_each_number_of_the_tables_stands_in_the_paper(reports):
    "As it is printed: value and interval, whose limits lie within the bounds of a bounded mean"
    page = (reports / "supplement.html").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    for place in sections(reports):
        for name, facts in load(place / "results.json")["tables"].items():
            stored = pd.read_csv(place / f"{name}.csv")
            printed = format_cells(stored, facts["estimates"], place.name, SUPPLEMENT_DIGITS)
            for e in facts["estimates"] if len(stored) else ():
                if stored[e].isna().all(): continue  # a column in which nothing stands is not printed
                cells = printed[format_head(e, place.name)]
                assert [v for v in cells if v not in page] == [], name
                assert [c for c, v in zip(cells, stored[e]) if not is_rounded(c, v)] == [], (name, e)


def test_real_sets_are_in_the_cpu_table():
    place = REPO / "reports" / "cpu"
    rows = read_table(place / "benchmark" / "cases.csv.xz", dtype=TEXT)
    assert set(rows.dataset) == {"lgg_kaggle3m", "skin_isic2017", "lidc_nodule_patches"}
    trained = rows[rows.run.str.fullmatch("[0-9a-f]{16}")].groupby(["dataset", "model"]).run.nunique()
    assert trained.index.get_level_values("model").nunique() > 10 and trained.ge(3).all(), (
        "no rank of any network rests on one training")
