"""Each kind of table, computed a second time from its committed rows in plain NumPy and pandas.

`test_reports` asks whether a table is what the kit's code makes of its rows. Here the code itself is asked: nothing of
the kit is imported, so that a fault in a function and in the table that it wrote cannot agree. Point values and counts
must be equal to the stored digits. Intervals are held against plain ones: see `has_plain_width`."""
import ast
import functools
import hashlib
import io
import json
import lzma
import math
import os
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.special import stdtrit
from scipy.stats import norm, rankdata, skew, zscore

REPO = Path(__file__).resolve().parents[1]
REPORTS = Path(os.environ.get("MEDSEG_REPORTS", REPO / "reports"))  # where the tables are that are looked at
TEXT = dict(case=str, patient=str, site=str, run=str, grade=str)
DRAWS = 1000
KIT_DRAWS = 10_000  # of an interval
FLOOR = .7  # of Dice: what a human would have to mend, as `quality` has it
CONTROL = "another seed (A/A)"


@pytest.fixture(params=["smoke", pytest.param("cpu", marks=pytest.mark.long)])
def reports(request) -> Path:
    place = REPORTS / request.param
    if not place.is_dir(): pytest.skip(f"reports/{request.param} is not there yet")
    return place


def table(reports: Path, section: str, name: str) -> pd.DataFrame:
    path = reports / section / f"{name}.csv"
    if not path.is_file(): pytest.skip(f"{section} has no table {name} in this profile")
    return pd.read_csv(path)


def rows_of(reports: Path, section: str, query: str = "") -> pd.DataFrame:
    rows = read(reports / section / "cases.csv.xz")
    return rows.query(query) if query else rows


@functools.lru_cache(maxsize=2)  # tests of a section follow each other
def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(unpack_text(path.read_bytes())), dtype=TEXT, low_memory=False)


def unpack_text(packed: bytes) -> str:
    "CSV of a packed table, or of one that was packed with its archive, by column"
    mark, _, text = (packed if packed.startswith(b"# ") else lzma.decompress(packed)).decode().partition("\n")
    if mark != "# a table by column": return f"{mark}\n{text}"
    columns = [c.split("\n") for c in text.split("\x1e")]
    if '"' in text or "," in text: return pd.DataFrame({name: cells for name, *cells in columns}).to_csv(index=False)
    return "".join(f"{','.join(row)}\n" for row in zip(*columns, strict=True))


def read_committed_runs(reports: Path):
    "Rows of each committed run that has some; one that diverged has none"
    for path in sorted((reports / "runs").glob("*.zip.xz")):  # each holds many
        with zipfile.ZipFile(io.BytesIO(lzma.decompress(path.read_bytes()))) as archive:
            for name in archive.namelist():
                if not name.endswith("cases.csv.xz"): continue
                text = unpack_text(archive.read(name))
                if text.startswith("# rows of a run "): text = rows_pointed_at(text.partition(": ")[2])
                yield pd.read_csv(io.StringIO(text), dtype=TEXT, low_memory=False)


def rows_pointed_at(text: str) -> str:
    "Rows of a run, most columns of which a section's table holds, as they were when the pointer was written"
    pointer, _, own = text.partition("\n")
    pointer = json.loads(pointer)
    rows = read_as_text(REPORTS / pointer["table"]).get_group(pointer["run"]).reset_index(drop=True)
    for column in own.split("\x1e") if own else ():
        name, *cells = column.split("\n")
        rows[name] = cells
    text = rows[pointer["columns"]].to_csv(index=False, lineterminator="\n")
    stored = json.dumps(text, ensure_ascii=False) + "\n"  # a hash is one of JSON
    assert hashlib.sha256(stored.encode()).hexdigest() == pointer["digest"], pointer
    return text


@functools.lru_cache(maxsize=8)
def read_as_text(path: Path):
    return pd.read_csv(io.StringIO(unpack_text(path.read_bytes())), dtype=str, keep_default_na=False).groupby("run")


def equal(a: float, b: float) -> bool:
    "Equal to the six digits that are stored"
    return math.isnan(a) and math.isnan(b) or abs(a - b) <= 1e-5 * max(.1, abs(b))


def none(faults: list) -> None: assert not faults, "\n".join(map(str, faults[:20]))


def numbers(rows: pd.DataFrame, value: str) -> pd.Series:
    "A column as numbers; infinite distances count as undefined"
    return (
        rows[value].map({True: 1., False: 0., "True": 1., "False": 0.}).fillna(
            pd.to_numeric(rows[value], errors="coerce")).astype(float).replace([np.inf, -np.inf], np.nan))


def cells(rows: pd.DataFrame, value: str, training: tuple[str, ...] = ("fold", "seed")) -> pd.DataFrame:
    "Patients × trainings: means over a patient's cases"
    known = [c for c in training if c in rows and rows[c].notna().any()]  # other parts of a section may be trained
    names = [rows[c].astype(str) for c in known] or [pd.Series("-", rows.index)]
    found = numbers(rows, value).groupby([rows.patient, *names]).mean()
    return found.unstack(list(range(1, found.index.nlevels)))


def spelled(frame: pd.DataFrame) -> pd.DataFrame:
    "Columns as text; a number as `15`, in whatever form it was read, and no budget as `0`"
    return frame.apply(lambda c: c.fillna(0).map("{:g}".format) if pd.api.types.is_numeric_dtype(c) else c.astype(str))


def mean(matrix: np.ndarray) -> float: return float(np.nanmean(matrix)) if np.isfinite(matrix).any() else math.nan


# Intervals

@functools.lru_cache(maxsize=8)  # scores of a table have the same patients and trainings
def draws_of(n: int, t: int) -> tuple[np.ndarray, np.ndarray]:  # (draw, patient), (draw, training)
    "How often each of n patients and each of t trainings is drawn"
    random = np.random.default_rng(0)
    return random.multinomial(n, np.full(n, 1 / n), DRAWS) * 1., random.multinomial(t, np.full(t, 1 / t), DRAWS)


def plain_widths(matrix: np.ndarray) -> list[float]:
    "Widths of the percentile intervals of a mean under draws of patients, and of patients and trainings"
    seen, (patients, columns) = np.isfinite(matrix), draws_of(*matrix.shape)
    sums, widths = [patients @ part for part in (np.where(seen, matrix, 0), seen * 1.)], []
    for weights in (np.ones_like(columns), columns):
        totals, counts = ((part * weights).sum(1) for part in sums)
        low, high = np.nanpercentile(totals[counts > 0] / counts[counts > 0], [2.5, 97.5])
        widths.append(high - low)
    return widths


def student(n: int) -> float:
    """By how much an interval of so few is wider than plain draws say: their spread is too small, and the normal
    quantile too"""
    return stdtrit(n - 1, .975) / 1.96 * math.sqrt(n / (n - 1)) if n > 1 else 1


def has_plain_width(low: float, value: float, high: float, matrix: np.ndarray) -> bool:
    """An interval must hold its value, be at least three quarters as wide as under draws of patients alone, and at most
    half as wide again as under draws of patients and trainings, times Student's factors for so few patients and so few
    trainings. Where patients are very skewed (one of them carries most of the spread), the stored limits are shifted on
    purpose, and both bounds are half as strict. With less than five patients nothing is asked but the order."""
    matrix = matrix[np.isfinite(matrix).any(1)][:, np.isfinite(matrix).any(0)]
    if math.isnan(low) or math.isnan(high): return True  # stated as not estimable
    if not low - 1e-9 <= value <= high + 1e-9: return False
    if len(matrix) < 5 or np.ptp(matrix[np.isfinite(matrix)]) < 1e-9: return True
    alone, both = plain_widths(matrix)
    ease = 2 if abs(skew(np.nanmean(matrix, 1))) > 1.5 else 1
    few = student(len(matrix)) * student(matrix.shape[1])
    return .75 / ease * alone - 2e-6 <= high - low <= 1.5 * ease * max(alone, both) * few + 2e-6


# Means over patients

# peers have more trainings at one of their budgets, which are compared with longer trainings
CURVE = "tool != 'longer' and (tool != 'peer' or fold == 0 and seed == 0)"
WHICH = {  # tables of means, by the rows that they are of
    "": """ablations.scores benchmark.scores benchmark.surfaces benchmark.classes preparation.bias preparation.cropping
           preparation.denoising preparation.resampling readers.consensus readers.performance
           readers.region readers.repair realtime.variants preparation.recovery""",
    CURVE: "peers.scores",
    "part == 'volume'": "ablations.volume_scores",
    "~control": "combinations.scores hybrid.scores",
    "kind == 'agreement'": "data.agreement",
    "kind == 'share'": "data.prevalence",
    "condition == 'known'": "fusion.scores",
    "condition == 'sequences' and seed < 10": "fusion.sequences",
    "seed == 0": "instances.scores instances.recognition",
    "part == 'generator'": "synthesis.heeded",
    "part == 'segmentation'": "synthesis.scores",
    "part == 'cause'": "xai.causes explained_networks.causes",
    "part == 'map'": "xai.faithfulness xai.randomised xai.stability explained_networks.faithfulness",
    "part == 'map' and hit.notna()": "xai.pointing explained_networks.pointing",
    "part == 'instance' and found == 1": "xai.interventions",
    "part == 'instance' and method == 'tipping'": "xai.sets",
    "part == 'counterfactual'": "xai.counterfactuals",
    "part == 'planted'": "xai.planted",
    "part == 'marked'": "xai.marks",
    "part == 'mark effect'": "xai.mark_effects",
    "part == 'score'": "xai.learnt explained_networks.learnt",
}
MEANS = {tuple(name.split(".")): query for query, names in WHICH.items() for name in names.split()}


@pytest.mark.parametrize(("section", "name"), MEANS, ids=[f"{a}.{b}" for a, b in MEANS])
def test_means_are_over_patients_and_trainings(reports, section, name):
    "Each patient counts alike in each training, however many images there are"
    stored, rows, faults = table(reports, section, name), rows_of(reports, section, MEANS[section, name]), []
    by = json.loads((reports / section / "results.json").read_text())["tables"][name]["by"]
    for key, mine in rows.groupby([spelled(rows[by])[b] for b in by], sort=False):
        row, = stored[(spelled(stored[by]) == list(key)).all(axis=1)].to_dict("records") or [None]
        if row is None: continue  # a mark of rows of another part
        for value in [c for c in stored if f"{c}_low" in stored and c in mine]:
            matrix = cells(mine, value).to_numpy()
            if not equal(row[value], mean(matrix)):
                faults.append(f"{key} {value} is {row[value]}, recomputed {mean(matrix)}")
            elif not has_plain_width(row[f"{value}_low"], row[value], row[f"{value}_high"], matrix):
                faults.append(f"{key} {value}: interval {row[f'{value}_low'], row[f'{value}_high']}")
    none(faults)


@pytest.mark.parametrize(("section", "name"), MEANS, ids=[f"{a}.{b}" for a, b in MEANS])
def test_patients_cases_and_edges_are_counted(reports, section, name):
    stored, rows, faults = table(reports, section, name), rows_of(reports, section, MEANS[section, name]), []
    by = json.loads((reports / section / "results.json").read_text())["tables"][name]["by"]
    named = spelled(rows[by])
    for key, row in zip(spelled(stored[by]).to_numpy().tolist(), stored.to_dict("records")):
        mine = rows[(named == key).all(axis=1)]
        found = dict(n=mine.patient.nunique(), cases=len(mine[["dataset", "case"]].drop_duplicates()))
        if "outcome" in mine:
            found["edges"] = " / ".join(str((mine.outcome == k).sum()) for k in ("missed", "false alarm", "empty"))
        faults += [f"{[row[b] for b in by]} {k} is {row[k]}, counted {v}" for k, v in found.items() if k in row
                   and row[k] != v]
    none(faults)


# Differences

def paired(a: pd.DataFrame, b: pd.DataFrame, value: str, once: bool = False) -> pd.DataFrame:
    """Patients × trainings: differences within a patient and a training, of the seeds that both have; what has no seed
    (`once`) stands beside every seed of the other"""
    shared = set(a.seed.astype(str)) & set(b.seed.astype(str)) if "seed" in a else set()
    if not once and shared: a, b = (x[x.seed.astype(str).isin(shared)] for x in (a, b))
    left, right = cells(a, value), cells(b, value, ("fold",) if once else ("fold", "seed"))
    return left - (pd.DataFrame({c: right[c[0]] for c in left}) if once else right)


def again(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    "The same model with its first and its second seed, each as one training a fold"
    first, second = sorted(rows.seed.unique())[:2]
    return rows[rows.seed == first].assign(seed=0), rows[rows.seed == second].assign(seed=0)


DIFFERENCES = {  # (section, table): which rows, column of what is compared, score, columns that are shared
    ("ablations", "volume_differences"): ("part == 'volume'", "way", "dice", ["dataset"]),
    ("benchmark", "comparisons"): ("", "model", "dice", ["dataset"]),
    ("combinations", "gains"): ("~control", "model", "dice", ["dataset"]),
    ("explained_networks", "differences"): ("part == 'map'", "explanation", "score", ["dataset", "model"]),
    ("fusion", "comparisons"): ("condition == 'known'", "variant", "dice", ["dataset"]),
    ("hybrid", "comparisons"): ("~control", "model", "dice", ["dataset"]),
    ("instances", "comparisons"): ("seed == 0", "method", "pq", ["dataset", "part"]),
    ("peers", "differences"): (f"tool != 'control' and {CURVE}", "model", "dice", ["dataset", "budget_s"]),
    ("preparation", "gains"): ("", "method", "measure", ["step", "dataset"]),
    ("readers", "differences"): ("part == 'consensus'", "method", "dice", ["dataset", "panel"]),
    ("readers", "left_out"): ("part == 'left out'", "method", "dice", ["dataset", "readers"]),
    ("statistics", "empty_rules"): ("", "model", "dice", ["dataset"]),
    ("statistics", "tests"): ("", "model", "dice", ["dataset"]),
    ("synthesis", "gain"): ("part == 'segmentation'", "training", "dice", ["dataset", "setting"]),
    ("synthesis", "uses"): ("part == 'use'", "training", "dice", ["dataset"]),
    ("synthesis", "small_lesions"): ("part == 'use' and small == 1", "training", "dice", ["dataset"]),
    ("synthesis", "robustness"): ("part == 'artefact'", "training", "score", ["dataset"]),
    ("xai", "mark_differences"): ("part == 'marked' and planted == 'cue'", "method", "mass", ["dataset"]),
    ("xai", "differences"): ("part == 'map' or found == 1", "method", "score", ["dataset", "event"]),
}
AGAINST = {("readers", "differences"): ("staple", "majority"), ("readers", "left_out"): ("staple", "majority")}
WITHOUT = dict(bias="before", denoising="noisy")  # what `preparation` compares with


def changed_by_artefacts(rows: pd.DataFrame) -> pd.DataFrame:
    "Answers to images with artefacts, with what changed from the answers to the same images without"
    image = ["training", "fold", "seed", "case", "region"]
    both = rows[rows.level > 0].merge(rows[rows.level == 0][[*image, "dice"]], on=image, suffixes=("", "_without"))
    return both.assign(change=both.dice - both.dice_without)


def sides(reports: Path, section: str, name: str, row: dict) -> tuple[pd.DataFrame, pd.DataFrame]:
    "Rows of the two sides of a comparison"
    query, way, _, shared = DIFFERENCES[section, name]
    rows = rows_of(reports, section)
    if section == "xai" and row.get("event") == "region": shared = ["dataset"]
    mine = rows[np.logical_and.reduce([rows[c] == row[c] for c in shared])]
    if row.get("against") == CONTROL:
        mine = rows[(rows.dataset == row["dataset"]) & (rows[way] == row[way])]
        return again(mine.query("tool == 'control'") if "tool" in mine else mine)
    if "event" in row: query = "part == 'map'" if row["event"] == "region" else "part == 'instance' and found == 1"
    if query: mine = mine.query(query)
    if name == "robustness": mine = changed_by_artefacts(mine)
    if row.get("rule") == "counts as one": mine = mine.assign(dice=np.where(mine.outcome == "empty", 1, mine.dice))
    if row.get("rule") == "lesions alone": mine = mine[mine.outcome.isin(["found", "missed"])]
    a, b = AGAINST.get((section, name)) or (row[way], WITHOUT[row["step"]] if section == "preparation"
                                            else row.get("against", row.get("compared_with")))
    return mine[mine[way] == a], mine[mine[way] == b]


@pytest.mark.parametrize(("section", "name"), DIFFERENCES, ids=[f"{a}.{b}" for a, b in DIFFERENCES])
def test_differences_are_within_patients_and_trainings(reports, section, name):
    "Also of the A/A rows: a model minus itself with another seed"
    faults, (_, _, value, _) = [], DIFFERENCES[section, name]
    for row in table(reports, section, name).to_dict("records"):
        if isinstance(row.get("collapsed"), str):  # nothing is compared with a training that collapsed
            if not math.isnan(row["difference"]): faults.append(f"{row} compares a collapsed training")
            continue
        d = paired(*sides(reports, section, name, row), row.get(value, value), (section, row.get("against"))
                   == ("ablations", "chance"))
        patients, what = d.mean(axis=1).dropna(), f"{[v for v in row.values() if isinstance(v, str)]}"
        expected = dict(difference=mean(d.to_numpy()), n=len(patients))
        spread = patients.std(ddof=1)
        if spread > 1e-9: expected["effect"] = patients.mean() / spread
        faults += [f"{what} {k} is {row[k]}, recomputed {v}" for k, v in expected.items() if not equal(row[k], v)]
        if not has_plain_width(row["difference_low"], row["difference"], row["difference_high"], d.to_numpy()):
            faults.append(f"{what}: interval")
    none(faults)


def test_orders_of_explanations(reports):
    "Rank correlation of the methods' means that two networks have in common"
    stored, faults = table(reports, "explained_networks", "orders"), []
    rows = rows_of(reports, "explained_networks", "part == 'map' and not explanation.str.startswith('random')")
    for row in stored.to_dict("records"):
        mine = rows[rows.dataset == row["dataset"]].dropna(subset=[row["score"]])
        means = [mine[mine.model == row[k]].groupby("explanation")[row["score"]].mean() for k in ("model", "against")]
        shared = sorted(set(means[0].index) & set(means[1].index))
        ranks = [rankdata(m[shared]) for m in means]
        expected = dict(methods=len(shared), correlation=np.corrcoef(*ranks)[0, 1])
        faults += [(row, k, v) for k, v in expected.items() if not equal(row[k], v)]
    none(faults)


def test_peers_at_equal_cost_are_compared_on_the_trainings_that_both_have(reports):
    stored, faults = table(reports, "peers", "equal"), []
    rows = rows_of(reports, "peers")
    for row in stored.to_dict("records"):
        here = rows[rows.dataset == row["dataset"]]
        own = here[(here.tool == "longer") & (here.model == row["model"])]
        peer = here[(here.tool == "peer") & (here.model == row["against"]) & (here.budget_s == row["against_budget_s"])]
        empty = peer[peer.outcome.isin(["found", "missed"])].groupby(["fold", "seed"]).outcome.apply(
            lambda outcomes: (outcomes == "missed").mean() >= .95)
        a, b = (side.groupby(["patient", "fold", "seed"]).dice.mean().unstack(["fold", "seed"]) for side in (own, peer))
        shared = [t for t in a if t in b and not empty[t]]
        d = (a[shared] - b[shared]).dropna(how="all") if shared else a.iloc[:0]
        expected = dict(trainings=len(shared), collapsed=int(empty.sum()), n=len(d),
                        difference=mean(d.to_numpy()) if len(shared) > 1 else np.nan)
        faults += [(row, k, v) for k, v in expected.items() if not equal(row[k], v)]
        if len(shared) > 1 and not has_plain_width(row["difference_low"], row["difference"], row["difference_high"],
                                                   d.to_numpy()): faults.append((row, "interval"))
    none(faults)


def list_difference_faults(row: dict, differences: pd.DataFrame) -> list:  # patients × trainings
    "What a row of a table says in another way than the differences"
    d = differences.to_numpy()
    expected = dict(difference=mean(d), n=len(d), trainings=d.shape[1])
    faults = [(row, k, v) for k, v in expected.items() if not equal(row[k], v)]
    limits = row["difference_low"], row["difference"], row["difference_high"]
    return faults + [(row, "interval")] * (not has_plain_width(*limits, d))


def test_recipes_are_compared_on_the_same_patients_and_trainings(reports):
    stored, rows, faults = table(reports, "peers", "recipes"), rows_of(reports, "peers"), []
    def by_patient(of): return of.groupby(["patient", "fold", "seed"]).dice.mean().unstack(["fold", "seed"])
    for row in stored.to_dict("records"):
        here = rows[rows.dataset == row["dataset"]]
        other = (here.training == row["against"]) | (here.model == row["against"]) & (
            here.budget_s == row["against_budget_s"])
        d = (by_patient(here[here.training == row["training"]]) - by_patient(here[other])).dropna(how="all")
        faults += list_difference_faults(row, d)
    none(faults)


def test_planned_studies_are_compared_on_the_same_patients_and_folds(reports):
    stored, rows, faults = table(reports, "peers", "studies"), rows_of(reports, "peers"), []
    def by_patient(of): return of.groupby(["patient", "fold"]).dice.mean().unstack("fold")
    for row in stored.to_dict("records"):
        here = rows[rows.dataset == row["dataset"]]
        own = here[(here.tool == "study") & (here.model == row["model"]) & (here.budget_s == row["budget_s"])]
        other = here[(here.training == row["against"]) & (here.model == row["model"])]
        if other.empty: other = here[(here.model == row["against"]) & (here.budget_s == row["against_budget_s"])]
        for _, training in other.groupby("fold"):
            if (training.outcome == "missed").mean() > .9: other = other.drop(training.index)
        d = (by_patient(own) - by_patient(other)).dropna(how="all").dropna(how="all", axis=1)
        faults += list_difference_faults(row, d)
    none(faults)


def test_fewer_labels_are_compared_on_the_same_labels(reports):
    gains, rows, faults = table(reports, "fewer_labels", "gains"), rows_of(reports, "fewer_labels"), []
    def by_patient(of): return of.groupby(["patient", "fold", "draw"]).dice.mean()
    rows = rows.assign(draw=rows.seed % 10)
    for row in gains.to_dict("records"):
        few = rows[(rows.dataset == row["dataset"]) & (rows.labels == row["labels"])]
        alone, is_control = few[few.method == "labels alone"], row["method"] == CONTROL
        other = alone[alone.seed >= 10] if is_control else few[few.method == row["method"]]
        d = (by_patient(other) - by_patient(alone[alone.seed < 10])).groupby("patient").mean()
        if not equal(row["difference"], d.mean()) or row["n"] != len(d): faults.append((row, d.mean()))
    none(faults)


def test_sequences_are_compared_on_the_same_sets(reports):
    rows, faults = rows_of(reports, "fusion").query("condition == 'sequences'"), []
    for row in table(reports, "fusion", "sequence_differences").to_dict("records"):
        here = rows[(rows.dataset == row["dataset"]) & (rows.missing == row["missing"])]
        def dice(variant, control=False):
            chosen = here[(here.variant == variant) & ((here.seed >= 10) == control)]
            return chosen.groupby(["patient", "fold", chosen.seed % 10]).dice.mean()
        a = dice("early", True) if row["against"] == CONTROL else dice(row["variant"])
        d, n_trainings = (a - dice("early")).groupby("patient").mean(), len(a.groupby(["fold", "seed"]))
        if (row["n"], row["trainings"]) != (len(d), n_trainings) or not equal(row["difference"], d.mean()):
            faults.append((row, d.mean(), n_trainings))
    none(faults)


def test_patients_of_fusion_are_chosen_by_their_gain(reports):
    stored, rows, faults = table(reports, "fusion", "chosen"), rows_of(reports, "fusion"), []
    for row in stored.to_dict("records"):
        here = rows[rows.dataset == row["dataset"]]
        def dice(variant):
            known = here[(here.variant == variant) & (here.condition == "known")]
            return known.groupby(["patient", "fold", "seed"]).dice.mean()
        spoken = here[(here.variant == row["variant"]) & here.shapley.notna()]
        gain = (dice(row["variant"]) - dice("image alone")).dropna().groupby("patient").mean()
        gain = gain[gain.index.isin(spoken.patient)].sort_values()
        expected = gain.iloc[{"largest loss": 0, "median": len(gain) // 2, "largest gain": -1}[row["chosen"]]]
        loudest = spoken[spoken.patient == row["patient"]].groupby("field").shapley.mean()[row["field"]]
        pairs = [(row["gain"], expected), (row["gain"], gain[row["patient"]]), (row["shapley"], loudest)]
        if row["n"] != len(gain) or not all(equal(a, b) for a, b in pairs): faults.append((row, pairs))
    none(faults)


def test_augmentation_is_compared_on_the_same_patients(reports):
    effects, rows, faults = table(reports, "augmentation", "effects"), rows_of(reports, "augmentation"), []
    for row in effects.to_dict("records"):
        here = rows[(rows.dataset == row["dataset"]) & (rows.share == row["share"])]
        def dice(method, control=False):
            chosen = here[(here.method == method) & (here.control == control)]
            return chosen.groupby(["patient", "fold", chosen.seed % 10]).dice.mean()
        if row["method"] == CONTROL: a, b = dice("none", True), dice("none")
        elif row["change"] == "added": a, b = dice(row["method"]), dice("none")
        else: a, b = dice("all six"), dice(f"all but {row['method']}")
        d, n_trainings = (a - b).groupby("patient").mean(), len(a.groupby(["fold", "seed"]))
        gain = a.groupby("patient").mean().mean() / b.groupby("patient").mean().mean() - 1
        counts = (row["n"], row["trainings"]) == (len(d), n_trainings)
        if not counts or not equal(row["difference"], d.mean()) or not equal(row["gain"], gain):
            faults.append((row, d.mean(), gain, n_trainings))
    none(faults)


ARM = "part == 'diversity' & method == "
HOSPITALS = {1: "one hospital", 2: "two hospitals", 3: "three hospitals", 4: "four hospitals"}
MOVES = {  # table of `generalization`: query of the rows before, of those after
    "adaptation": ("part == 'away' & method == 'unet'", "part == 'adapted' & method == @row['method']"),
    "diversity": (f"{ARM}'one hospital'", f"{ARM}@row['arm']"),
    "forgetting": ("part == 'at home again' & method == 'before' & k == @row['patients']",
                   "part == 'at home again' & method == 'fine-tuned' & k == @row['patients']"),
}


def of_pair(rows, source, target):
    "Rows of a source and a target, or of all hospitals that were left out"
    pooled = rows.target.str.contains(", ") & ~rows.target.str.contains("dial|half")
    return rows[pooled if source == "the other hospitals" else (rows.source == source) & (rows.target == target)]


@pytest.mark.parametrize("name", MOVES)
def test_moved_networks_are_compared_on_the_same_patients(reports, name):
    "Of each patient and training before and after; several hospitals together hold the patients of each"
    stored, rows, faults = table(reports, "generalization", name), rows_of(reports, "generalization"), []
    for row in stored.to_dict("records"):
        here = of_pair(rows, row["source"], row["target"])
        row["arm"] = HOSPITALS.get(row.get("hospitals"))
        chosen = [here.query(q, local_dict=dict(row=row)) for q in MOVES[name]]
        if row.get("hospitals") == 1:  # A/A: two draws of one hospital
            chosen = [chosen[0].query("seed == @seed").assign(seed=0) for seed in (0, 1)]
        before, after = (side.groupby(["patient", "fold", "seed"]).dice.mean() for side in chosen)
        before = before.reindex(after.index)  # a translator tests one fold of those who were away
        patients = (after - before).groupby("patient").mean()
        expected = dict(difference=patients.mean(), n=len(patients), trainings=len(after.groupby(["fold", "seed"])))
        faults += [(row["target"], k, row[k], v) for k, v in expected.items() if not equal(row[k], v)]
        matrix = (after - before).unstack(["fold", "seed"]).to_numpy()
        if not has_plain_width(row["difference_low"], row["difference"], row["difference_high"], matrix):
            faults.append((row["target"], "interval"))
    none(faults)


def test_promised_changes_are_those_of_the_means(reports):
    stored, faults = table(reports, "generalization", "foretold"), []
    rows = rows_of(reports, "generalization", "part in ('home', 'away') & method == 'unet' & dice.notna()")
    for row in stored.to_dict("records"):
        here = of_pair(rows, row["source"], row["target"])
        cells = here.groupby(["part", "patient", "fold", "seed"])[["dice", "promised", "calibration_error"]].mean()
        change = cells.groupby(["part", "patient"]).mean().groupby("part").mean()
        change = change.loc["away"] - change.loc["home"]
        expected = dict(change=change.dice, promised=change.promised, error=change.promised - change.dice,
                        calibration=change.calibration_error, n=here[here.part == "away"].patient.nunique())
        faults += [(row["target"], k, row[k], v) for k, v in expected.items()
                   if abs(row[k] - v) > 2e-6 or not row.get(f"{k}_low", -9) <= row[k] <= row.get(f"{k}_high", 999)]
    none(faults)


def test_reasons_are_those_of_a_mixed_model_that_is_solved_by_hand(reports):
    "The random intercept's share by restricted likelihood, on a grid that closes in; coefficients by weighted squares"
    stored, rows, parts = table(reports, "generalization", "reasons"), rows_of(reports, "generalization"), []
    looks = ["brightness", "contrast", "colour", "skewness", "sharpness", "noise", "vignette"]
    rows = rows[~rows.source.str.startswith("phantom")]
    for names, pair in rows.groupby(["source", "target"]):
        if not (pair.part == "away").any(): continue
        per_run = pair[(pair.method == "unet") & (pair.part == "home")].groupby(["patient", "fold", "seed"]).dice.mean()
        source, target = (pair[pair.side == side].set_index("patient") for side in ("source", "target"))
        away = pair[(pair.method == "unet") & (pair.part == "away")].groupby(["patient", "fold", "seed"]).dice.mean()
        far = ((target[looks] - source[looks].mean()).abs() / source[looks].std().clip(lower=1e-6))
        part = pd.DataFrame({"intensity": np.log1p(far[looks[:3]].mean(axis=1)),
                             "texture": np.log1p(far[looks[3:]].mean(axis=1)),
                             "encoding": np.log1p(target.encoding),
                             "size": np.log2(target.lesion.clip(lower=1e-4) / source.lesion.mean()),
                             "loss": per_run.groupby("patient").mean().mean() - away.groupby("patient").mean()})
        parts.append(part.dropna().assign(pair=str(names)))
    data = pd.concat(parts)
    z = ((data[stored.term] - data[stored.term].mean()) / data[stored.term].std()).assign(one=1.).to_numpy()
    y, groups = data.loss.to_numpy(), [np.flatnonzero(data.pair == g) for g in data.pair.unique()]

    def solve(ratio):  # variance of intercepts over that of patients
        a, b, c, logs = np.zeros((z.shape[1],) * 2), np.zeros(z.shape[1]), 0., 0.
        for i in groups:
            inverse = np.eye(len(i)) - ratio / (1 + ratio * len(i))
            a, b, c = a + z[i].T @ inverse @ z[i], b + z[i].T @ inverse @ y[i], c + y[i] @ inverse @ y[i]
            logs += math.log(1 + ratio * len(i))
        beta = np.linalg.solve(a, b)
        free = len(y) - len(beta)
        return free * math.log((c - b @ beta) / free) + logs + np.linalg.slogdet(a)[1], beta

    low, high = -8., 8.
    for _ in range(4):
        grid = np.linspace(low, high, 81)
        best = min(grid, key=lambda x: solve(math.exp(x))[0])
        low, high = best - (grid[1] - grid[0]), best + (grid[1] - grid[0])
    beta = solve(math.exp(best))[1]
    assert stored.n.eq(len(data)).all() and stored.pairs.eq(len(groups)).all()
    assert np.allclose(stored.coefficient, beta[:-1], atol=2e-4), (stored.coefficient.tolist(), beta)
    assert (stored.coefficient_low < stored.coefficient).all() and (stored.coefficient < stored.coefficient_high).all()


def test_leakage_compares_the_same_images(reports):
    """The split by image minus the split by patient; folds are no trainings of a patient here, since a split by image
    tests one patient in several. A patient's mean is over its images and then over seeds, or over both at once: the two
    differ where an image is empty and Dice undefined for one seed alone."""
    rows, faults = rows_of(reports, "leakage"), []
    def parts(model, unit): return rows[(rows.dataset == row["dataset"]) & (rows.model == model) & (rows.unit == unit)]
    for row in table(reports, "leakage", "leak").to_dict("records"):
        mine = parts(row["model"], row["unit"])
        values = mean(cells(mine, "dice", ("seed",)).to_numpy()), mine.groupby("patient").dice.mean().mean()
        if not any(equal(row["dice"], v) for v in values) or row["n"] != mine.dropna(subset="dice").patient.nunique():
            faults.append((row, values))
    for row in table(reports, "leakage", "gain").to_dict("records"):
        model, _, control = row["model"].partition(", by patient, ")
        a, b = again(parts(model, "patient")) if control else (parts(model, u) for u in ("image", "patient"))
        d, both = (cells(a, "dice", ("seed",)) - cells(b, "dice", ("seed",)),
                   a.merge(b, on=["patient", "case", "region", "seed"], validate="1:1"))
        whole = d.mean(axis=1).dropna()
        paired_images = (both.dice_x - both.dice_y).groupby(both.patient).mean().dropna()
        ways = [(mean(d.to_numpy()), whole), (paired_images.mean(), paired_images)]
        right = [equal(row["difference"], v) and row["n"] == len(x) and equal(row["effect"], x.mean() / x.std(ddof=1))
                 for v, x in ways]
        if not any(right): faults.append((row, [v for v, _ in ways]))
    none(faults)


def test_readers_and_a_model_are_compared_on_the_same_cases(reports):
    stored, faults = table(reports, "readers", "non_inferiority"), []
    rows = rows_of(reports, "readers", "part == 'agreement'")
    columns = {"a reader": ("model_reader", "reader"), "others' STAPLE": ("model_others", "reader_others"),
               "a reader, blank counts": ("model_blank", "reader_blank")}
    for row in stored.to_dict("records"):
        mine = rows[(rows.dataset == row["dataset"]) & (rows.model == row["model"])]
        if row["against"] == CONTROL: d = paired(*again(mine), "model_reader")
        else: d = cells(mine, columns[row["against"]][0]) - cells(mine, columns[row["against"]][1])
        low, high, margin = row["difference_low"], row["difference_high"], .05
        above = "superior" if low > 0 else "non-inferior" if low > -margin else ""
        said, value = above or ("inferior" if high < -margin else "inconclusive"), mean(d.to_numpy())
        if not equal(row["difference"], value) or row["n"] != d.notna().any(axis=1).sum(): faults.append((row, value))
        if row.get("trainings") == 1: said = "one training"  # which decides nothing, whatever the patients say
        if row["against"] != CONTROL and low <= high and row["verdict"] != said: faults.append((row, said))
        if not equal(row["within_low"], low + margin): faults.append((row, "within"))
        if not has_plain_width(low, row["difference"], high, d.to_numpy()): faults.append((row, "interval"))
    none(faults)


def test_p_values_are_adjusted_over_their_table(reports):
    "Holm's steps one after the other, of every table that prints them; what is undefined does not count"
    faults, tables = [], 0
    for path in sorted(reports.glob("[a-z]*/*.csv")):
        stored = pd.read_csv(path, low_memory=False)
        if not {"p", "p_holm"} <= set(stored): continue
        tables += 1
        # the same comparisons under another rule are another family
        for _, family in stored.groupby("rule") if "rule" in stored else [("", stored)]:
            least, known = 0., family[family.p.notna()].sort_values("p")
            if not known.p.between(0, 1).all(): faults.append(f"{path}: p")
            for k, (p, adjusted) in enumerate(zip(known.p, known.p_holm)):
                least = max(least, min(1, p * (len(known) - k)))
                if not equal(adjusted, least): faults.append(f"{path}: {p} to {adjusted}, not {least}")
    none(faults)
    assert tables > 10


def test_suspects_and_alarms_of_the_shortcut_report(reports):
    "Effects beyond random patches, Holm's steps within each network, flags, and networks counted by what was planted"
    rows, stored = rows_of(reports, "xai", "part == 'shortcut'"), table(reports, "xai", "suspects")
    alarms, network, faults = table(reports, "xai", "alarms"), ["dataset", "planted", "fold", "seed"], []
    for key, mine in stored.groupby(network):
        least = 0.
        for k, row in enumerate(mine[mine.p_network.notna()].sort_values("p_network").to_dict("records")):
            least = max(least, min(1, row["p_network"] * (mine.p_network.notna().sum() - k)))
            if not equal(row["p_network_holm"], least): faults.append((key, row["suspect"], "Holm"))
        for row in mine.to_dict("records"):
            tested = rows[(rows[network] == list(key)).all(axis=1) & (rows.suspect == row["suspect"])]
            lost = (tested.effect - tested.random_effect).groupby(tested.patient).mean()
            flagged = (row["p_network_holm"] < .05 and row["difference_low"] > 0
                       and lost.mean() / abs(tested.log_odds.mean()) >= .1)
            faults += [(key, row["suspect"], name) for name, value, expected in (
                ("difference", row["difference"], lost.mean()), ("n", row["n"], len(lost)),
                ("on_mark", row["on_mark"], tested.on_mark.mean()), ("flagged", row["flagged"], flagged))
                if not equal(float(value), float(expected))]
    flagged = stored[stored.flagged].groupby(["dataset", "planted"])[["fold", "seed"]].apply(
        lambda x: len(x.drop_duplicates()))
    for row in alarms.to_dict("records"):
        names = row["dataset"], row["planted"]
        mine = rows[(rows.dataset == names[0]) & (rows.planted == names[1])]
        expected = len(mine[["fold", "seed"]].drop_duplicates()), flagged.get(names, 0)
        if (row["networks"], row["alarms"]) != expected or row["hits"] > row["alarms"]: faults.append((names, expected))
        if not all(map(equal, [row[c] for c in ("rate", "rate_low", "rate_high")], wilson(expected[1], expected[0]))):
            faults.append((names, "rate"))
    none(faults)


# Shares

def wilson(hits: float, n: int) -> tuple[float, float, float]:
    "The shares that a count does not refute at 5 %, by the score test; a unit may count in part"
    if not n: return math.nan, math.nan, math.nan
    p, z = hits / n, 1.959963984540054
    ends = np.roots([1 + z * z / n, -2 * p - z * z / n, p * p]).real
    return p, max(0, ends.min()), min(1, ends.max())


def test_shares_have_the_intervals_of_the_score_test(reports):
    faults = []
    def look(what, row, name, hits, n):
        if not all(equal(a, b) for a, b in zip((row[name], row[f"{name}_low"], row[f"{name}_high"]), wilson(hits, n))):
            faults.append((what, row, name, hits, n))
    rows = rows_of(reports, "hospital")
    for row in table(reports, "hospital", "reading").to_dict("records"):
        mine = rows[(rows.part == "reading") & (rows.defect == row["defect"]) & (rows.reader == row["reader"])]
        for name in ("refused", "wrong", "right"): look("reading", row, name, numbers(mine, name).sum(), row["n"])
        assert row["n"] == len(mine)
    for row in table(reports, "hospital", "round_trip").to_dict("records"):
        turned = str(row["series"].startswith("oblique"))
        mine = rows[(rows.part == "round trip") & (rows.kind == row["kind"]) & (rows.turned.astype(str) == turned)]
        look("round trip", row, "equal", numbers(mine, "equal").sum(), len(mine))
    for row in table(reports, "synthesis", "copying").to_dict("records"):
        look("copying", row, "share", row["share"] * row["n"], row["n"])
    study = rows_of(reports, "readers", "part == 'study'")
    for row in table(reports, "readers", "simulated_within").to_dict("records"):
        mine = study if row["reader"] == "all" else study[study.reader == row["reader"]]
        ratings = [
            mine[mine["repeat"].astype(float) == k].set_index(
                ["reader", "session", "arm", "dataset", "case"]).rating.astype(float) for k in (0, 1)]
        both = pd.concat(ratings, axis=1, join="inner").dropna()
        look("within", row, "equal", (both.iloc[:, 0] == both.iloc[:, 1]).sum(), len(both))
    none(faults)


# Ranks

def test_ranks_follow_the_means_and_their_draws(reports):
    "Mean rank, and how often a model is first, under draws of patients and trainings that all models share"
    stored, rows, faults = table(reports, "statistics", "ranks"), rows_of(reports, "statistics"), []
    # networks of one budget and start rank each other
    for (dataset, _), mine in stored.groupby(["dataset", "group"], sort=False):
        own = {m: cells(g, "dice") for m, g in rows[rows.dataset == dataset].groupby("model")}
        patients, columns = (sorted(set().union(*(t.index for t in own.values()))),
                             sorted(set().union(*(t.columns for t in own.values()))))
        x = np.stack([own[m].reindex(patients, columns=columns).to_numpy() for m in mine.model])
        random, draws = np.random.default_rng(1), []
        for _ in range(600):
            i, j = random.integers(0, len(patients), len(patients)), random.integers(0, len(columns), len(columns))
            drawn = x[:, i][:, :, j]
            if np.isfinite(drawn).any((1, 2)).all(): draws.append(rankdata(-np.nanmean(drawn, (1, 2))))
        means, draws = np.nanmean(x, (1, 2)), np.array(draws)
        for k, row in enumerate(mine.to_dict("records")):
            right = (equal(row["dice"], means[k]) and row["rank"] == rankdata(-np.round(means, 9))[k] and row["n"]
                     == len(patients))
            near = (abs(row["mean_rank"] - draws[:, k].mean()) < .25 + .05 * len(mine) / 10
                    and abs(row["first"] - (draws[:, k] == 1).mean()) < .1)
            if not (right and near and row["rank_low"] <= row["rank"] <= row["rank_high"]):
                faults.append((row, means[k], draws[:, k].mean()))
    none(faults)


def test_methods_that_track_a_mark_are_ranked_with_it(reports):
    "Over networks, the share on the mark against what the mark is worth: a correlation of ranks, on Fisher's scale"
    stored, names, faults = table(reports, "xai", "mark_tracking"), ["planted", "fold", "seed"], []
    effects = rows_of(reports, "xai", "part == 'mark effect' and method == 'mark'")
    shares = rows_of(reports, "xai", "part == 'marked'")
    for row in stored.to_dict("records"):
        def network_means(rows, value):
            mine = rows[rows.dataset == row["dataset"]]
            return numbers(mine, value).groupby([mine[name] for name in names]).mean()
        share = network_means(shares[shares.method == row["method"]], "mass")
        both = pd.DataFrame(dict(share=share, worth=network_means(effects, "needed"))).dropna()
        r = np.corrcoef(both.rank().to_numpy().T)[0, 1]
        half = 1.959964 * math.sqrt((1 + r**2 / 2) / (len(both) - 3))
        expected = [r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)]
        found = [row[f"correlation{end}"] for end in ("", "_low", "_high")]
        if row["trainings"] != len(both) or not all(map(equal, found, expected)): faults.append((row, expected))
    none(faults)


# Counts

VERDICTS = dict(supported="supported", refuted="refuted", undecided="undecided", one_training="undecided: one training",
                not_comparable="not comparable", waiting="waiting", beyond="not testable here")  # by column


def test_counts_are_counted(reports):
    faults = []
    def look(what, found, expected):
        if found != expected and not (isinstance(expected, float) and equal(found, expected)):
            faults.append((what, found, expected))
    rows = rows_of(reports, "data")
    shares = rows[rows.kind == "share"]
    for row in table(reports, "data", "prevalence").to_dict("records"):
        x = shares[(shares.dataset == row["dataset"]) & (shares.label == row["label"])].share
        for name, value in dict(smallest=float(x.min()), largest=float(x.max()), empty=int((x == 0).sum())).items():
            look(("prevalence", row["dataset"], name), row[name], value)
    for row in table(reports, "data", "sizes").to_dict("records"):
        x = shares[shares.dataset == row["dataset"]].groupby("case").pixels.first()
        for name, value in dict(n=len(x), smallest=float(x.min()), median=float(x.median()),
                                largest=float(x.max())).items():
            look(("sizes", row["dataset"], name), row[name], value)
    if (reports / "data" / "copies.csv").is_file():
        for row in table(reports, "data", "copies").to_dict("records"):
            x = rows[(rows.kind == "copy") & (rows.change == row["change"])].likeness
            look(("copies", row["change"]), (row["copies"], round(row["near"] * len(x))),
                 (len(x), int(x.notna().sum())))
    ledger = rows_of(reports, "claims")
    for row in table(reports, "claims", "verdicts").to_dict("records"):
        mine = ledger[(ledger.claims_of == row["claims_of"]) & (ledger.group == row["group"])].verdict
        for name, verdict in VERDICTS.items():
            look(("claims", row["group"], name), row[name], int((mine == verdict).sum()))
        look(("claims", row["group"]), row["claims"], len(mine))
    trials, chosen = rows_of(reports, "search"), table(reports, "search", "trials")
    people = trials.groupby(["trial", "dataset", "patient"]).dice.mean().groupby(["trial",
        "dataset"]).mean().unstack()  # each data set counts alike
    for row in chosen[chosen.dice.notna()].to_dict("records"):
        look(("trial", row["trial"]), row["dice"], float(people.loc[row["trial"]].mean()))
    look("chosen", chosen.trial[chosen.chosen].tolist(), [chosen.trial[chosen.dice.idxmax()]])
    choices = rows_of(reports, "combinations", "~control")
    for row in table(reports, "combinations", "choices").to_dict("records"):
        mine = choices[(choices.dataset == row["dataset"]) & (choices.model == row["model"])]
        look(("choices", row["model"]), row["trainings"], len(mine[["fold", "seed"]].drop_duplicates()))
    none(faults)


# Discrimination and calibration

def order(risk: np.ndarray, event: np.ndarray) -> np.ndarray:  # patients with the event × patients without
    "Whether each pair is ranked rightly; ties count half"
    return (np.sign(risk[event][:, None] - risk[~event]) + 1) / 2


def added_by_patients(kernel: np.ndarray, event: np.ndarray) -> np.ndarray:
    "What each patient adds to the mean of a kernel over pairs"
    m, n = kernel.shape
    added = np.empty(m + n)
    added[event] = kernel.mean() + (kernel.mean(1) - kernel.mean()) * (m + n) / m
    added[~event] = kernel.mean() + (kernel.mean(0) - kernel.mean()) * (m + n) / n
    return added


def over_folds(values: np.ndarray, folds: np.ndarray) -> float:
    """Half of a 95 % interval of a mean, each patient tested once: patients within the folds, and the folds' trainings,
    of whose spread the part that their patients explain is taken off"""
    parts, n = [values[folds == f] for f in np.unique(folds)], len(values)
    share, means = (np.array([g(p) for p in parts]) for g in (lambda p: len(p) / n, np.mean))
    within = np.array([p.var(ddof=1) * len(p) / n**2 for p in parts])
    second, third = (share**2).sum(), (share**3).sum()
    scale = second / (second - 2 * third + second**2)
    between = scale * (share**2 * (means - values.mean())**2).sum()
    deviations = np.eye(len(parts)) - share[:, None]
    explained = scale * (deviations**2 @ within).sum()
    form = deviations @ np.diag(share**2) @ deviations.T
    t, tf = (stdtrit(f, .975) for f in (n - 1, max(1, np.trace(form)**2 / (form**2).sum())))
    return math.sqrt(max(t**2 * (within.sum() - explained) + tf**2 * between, t**2 * within.sum()))


def shifted_over_folds(values: np.ndarray, folds: np.ndarray) -> np.ndarray:  # (lowest, value, highest) of both ends
    """Ends of a 95 % interval as wide as `over_folds` says, shifted for bias and acceleration: draws of patients and
    folds, each draw's share below the value as bias, skewness over six roots of n as acceleration; and how far chance
    may move an end of the kit's draws (three standard errors of its share): far where few patients differ"""
    random, n, value = np.random.default_rng(0), len(values), values.mean()
    parts, place = np.unique(folds, return_inverse=True)
    weights = (random.multinomial(n, np.full(n, 1 / n), DRAWS * 10)
               * random.multinomial(len(parts), np.full(len(parts), 1 / len(parts)), DRAWS * 10)[:, place])
    draws = weights @ values / weights.sum(1)
    z = np.array([-1, 1]) * over_folds(values, folds) / draws.std()
    tied = np.abs(draws - value) < 1e-9 * draws.std()  # many where few patients differ; half of them lie below
    bias = norm.ppf(np.mean((draws < value) & ~tied) + tied.mean() / 2)
    speed = skew(values) / (6 * math.sqrt(n))
    shares = norm.cdf(bias + (bias + z) / (1 - speed * (bias + z)))
    chance = 3 * np.sqrt(shares * (1 - shares) / KIT_DRAWS)
    return np.quantile(draws, np.clip([shares - chance, shares, shares + chance], 0, 1))


def patients_of(reports: Path, row: dict) -> pd.DataFrame:
    rows = rows_of(reports, "outcomes", "fold.notna() & field.isna() & partition.isna()")
    return rows[(rows.study == row["study"]) & (rows.model == row["model"])].sort_values("patient")


def test_discrimination_counts_pairs_of_patients(reports):
    faults = []
    for row in table(reports, "outcomes", "discrimination").to_dict("records"):
        mine = patients_of(reports, row)
        event, called = mine.event.astype(float).to_numpy() > 0, (mine.risk - mine.level >= 0).to_numpy()
        kernel = order(mine.risk.to_numpy(), event)
        area, logit = kernel.mean(), lambda p: math.log(p / (1 - p))
        shares = dict(accuracy=(called == event, event | True), precision=(event, called), recall=(called, event),
                      specificity=(~called, ~event))
        right = equal(row["auc"], area) and (row["n"], row["events"]) == (len(mine), event.sum())
        right &= all(equal(row[f"{k}{end}"], v) for k, (hit, among) in shares.items()
                     for end, v in zip(("", "_low", "_high"), wilson((hit & among).sum(), among.sum())))
        half = over_folds(added_by_patients(kernel, event), mine.fold.to_numpy())
        if half > 1e-12:
            ends = (logit(area) + side * half / (area * (1 - area)) for side in (-1, 1))
            right &= all(abs(logit(row[f"auc_{end}"]) - v) < 2e-5 / (row["auc"] * (1 - row["auc"]))
                         for end, v in zip(("low", "high"), ends))
        if not right: faults.append((row, area))
    for row in table(reports, "outcomes", "differences").to_dict("records"):
        mine, other = patients_of(reports, row), patients_of(reports, row | dict(model=row["against"]))
        event = mine.event.astype(float).to_numpy() > 0
        kernel = order(mine.risk.to_numpy(), event) - order(other.risk.to_numpy(), event)
        assert list(mine.patient) == list(other.patient)
        right = equal(row["difference"], kernel.mean()) and row["n"] == len(mine)
        half = over_folds(added_by_patients(kernel, event), mine.fold.to_numpy())
        ends = row["difference_low"], row["difference_high"]
        # draws that are corrected for skewness move the ends, and keep the width but for that
        right &= row["trainings"] == mine.fold.nunique() and .9 < (ends[1] - ends[0]) / (2 * half) < 1.5
        right &= (row["p"] < .05) == (ends[0] > 0 or ends[1] < 0)
        if not right: faults.append((row, kernel.mean()))
    none(faults)


def followed_weights(time: np.ndarray, event: np.ndarray) -> np.ndarray:
    """Inverse squared chance of being followed until a patient's event, by products over the times at which patients
    were lost; 0 for who had none, or had it after nine of ten"""
    until, weights = np.quantile(time[event], .9), np.zeros(len(time))
    for i in np.flatnonzero(event & (time < until)):
        followed = 1.
        for u in np.unique(time[~event & (time <= time[i])]):
            followed *= 1 - (~event & (time == u)).sum() / ((time > u) | (~event & (time == u))).sum()
        weights[i] = followed**-2
    return weights


def is_difference(row: dict, mine: pd.DataFrame, other: pd.DataFrame) -> bool:
    """AUC as shares of pairs; Uno's concordance as shares of weighted pairs, its spread by leaving out each patient.
    The draws are others than the kit's, so each end may differ by a tenth of the width"""
    event, folds = mine.event.astype(float).to_numpy() > 0, mine.fold.to_numpy()
    assert list(mine.patient) == list(other.patient) and list(mine.fold) == list(other.fold)
    if row["score"] == "AUC":
        kernel = order(mine.risk.to_numpy(), event) - order(other.risk.to_numpy(), event)
        value, added = kernel.mean(), added_by_patients(kernel, event)
    else:
        time, n = mine.time.to_numpy(), len(mine)
        first, second = (r.groupby("fold").risk.rank(pct=True).to_numpy() for r in (mine, other))
        pairs = followed_weights(time, event)[:, None] * (
            (time[None] > time[:, None]) | ((time[None] == time[:, None]) & ~event[None]))
        right = pairs * (np.sign(first[:, None] - first) - np.sign(second[:, None] - second)) / 2
        def score(keep): return right[np.ix_(keep, keep)].sum() / pairs[np.ix_(keep, keep)].sum()
        value = score(np.arange(n))
        added = np.array([n * value - (n - 1) * score(np.delete(np.arange(n), i)) for i in range(n)])
    right_so = abs(row["difference"] - value) < 1e-5 and (row["n"], row["trainings"]) == (len(mine), len({*folds}))
    half, ends = over_folds(added, folds), np.array([row["difference_low"], row["difference_high"]])
    if half > 1e-12:
        low, shifted, high = shifted_over_folds(added, folds)
        is_near = np.abs(ends - shifted) < .1 * 2 * half
        right_so &= bool((is_near | ((low <= ends) & (ends <= high))).all())
        right_so &= (row["p"] < .05) == (ends[0] > 0 or ends[1] < 0)
    return bool(right_so)


def name_against(row: dict) -> str: return f"{row['model']}, {CONTROL}" if row["against"] == CONTROL else row["against"]


def test_sources_are_compared_on_the_same_patients(reports):
    stored = table(reports, "outcomes", "sources")
    none([row for row in stored.to_dict("records") if not is_difference(
        row, patients_of(reports, row), patients_of(reports, row | dict(model=name_against(row))))])
    assert (stored.p_holm >= stored.p - 1e-9).all() and (stored.p_holm <= 1).all()


def test_encoders_are_compared_on_the_folds_of_the_segmentation(reports):
    "Each patient is tested in the frozen fold whose network did not learn from the patient; scores and differences"
    stored = table(reports, "outcomes", "encoders")
    rows = rows_of(reports, "outcomes", "partition.notna()").sort_values("patient").copy()
    rows["risk"] = rows.groupby(["study", "model", "fold"]).risk.rank(pct=True)  # an AUC is of these as well
    faults, parts = [], dict(iter(rows.groupby(["study", "model"])))
    for (study, _), part in parts.items():
        dataset = "lgg_kaggle3m" if study.startswith("glioma") else "phantom_mri"
        folds = json.loads((REPO / "data_manifests" / dataset / "splits.json").read_text())["folds"]
        assert part.patient.is_unique and set(part.fold) == {*range(len(folds))}
        for k, tested in part.groupby("fold").patient:
            assert {*tested} <= {*folds[int(k)]["test"]} and not {*tested} & {*folds[int(k)]["train"]}, study
    for row in stored.to_dict("records"):
        mine, other = parts[row["study"], row["model"]], parts[row["study"], name_against(row)]
        value, added = added_to_score(mine)
        half = over_folds(added, mine.fold.to_numpy()) / (value * (1 - value))
        limits = [1 / (1 + math.exp(-math.log(value / (1 - value)) - side * half)) for side in (-1, 1)]
        right = equal(row["value"], value) and np.allclose([row["value_low"], row["value_high"]], limits, atol=1e-4)
        if not (right and is_difference(row, mine, other)): faults.append((row, value, limits))
    none(faults)
    models = {"ImageNet, frozen", "ImageNet, tuned", "segmentation, frozen", "segmentation, tuned"}
    assert {*stored.model} == models and stored.groupby("study").size().eq(8).all()
    ranked = stored.p.sort_values()  # Holm: the smallest times their number, the next times one less
    adjusted = (ranked * np.arange(len(ranked), 0, -1)).cummax().clip(upper=1)
    assert np.allclose(stored.p_holm[ranked.index], adjusted, atol=1e-5)


def test_calibration_is_a_logistic_fit(reports):
    "Intercept with the logit as offset, then intercept and slope, by Newton's method; Brier score as a mean square"
    def fitted(design, offset, y):
        beta = np.zeros(design.shape[1])
        for _ in range(50):
            p = 1 / (1 + np.exp(-(design @ beta + offset)))
            beta = beta + np.linalg.solve(design.T * (p * (1 - p)) @ design, design.T @ (y - p))
        return beta
    faults = []
    for row in table(reports, "outcomes", "calibration").to_dict("records"):
        mine = patients_of(reports, row)
        y, risk = mine.event.astype(float).to_numpy(), np.clip(mine.risk.to_numpy(), 1e-6, 1 - 1e-6)
        logit, one = np.log(risk / (1 - risk)), np.ones((len(y), 1))
        expected = dict(intercept=fitted(one, logit, y)[0], slope=fitted(np.column_stack([one, logit]), 0, y)[1],
                        brier=np.mean((mine.risk - y)**2))
        faults += [(row["study"], row["model"], k, row[k], v) for k, v in expected.items() if abs(row[k] - v) > 1e-4
                   * max(1, abs(v))]
    none(faults)


def test_average_precision_is_a_mean_over_events(reports):
    "Of each patient with the event, the share of events among those whose risk is not lower; ties stand together"
    faults = []
    for row in table(reports, "outcomes", "precision").to_dict("records"):
        mine = patients_of(reports, row)
        event, risk = mine.event.astype(float).to_numpy() > 0, mine.risk.to_numpy()
        value = np.mean([event[risk >= r].mean() for r in risk[event]])
        right = equal(row["ap"], value) and equal(row["share"], event.mean()) and row["events"] == event.sum()
        if not (right and row["ap_low"] <= row["ap"] <= row["ap_high"]): faults.append((row, value))
    none(faults)


def test_auc_at_one_time_weighs_those_followed(reports):
    "Pairs of who had the event by then and who was seen longer; the chance of being followed as a product by hand"
    faults = []
    for row in table(reports, "outcomes", "timed").to_dict("records"):
        mine = patients_of(reports, row)
        event, time = mine.event.astype(float).to_numpy() > 0, mine.time.to_numpy()
        rank, at, followed = mine.groupby("fold").risk.rank(pct=True).to_numpy(), np.median(time[event]), []
        early, late = event & (time <= at), time > at
        for u in time[early]:
            lost = np.unique(time[~event & (time <= u)])
            # who has the event at a time was still there when others were lost at it
            at_risk = [((time > v) | (~event & (time == v))).sum() for v in lost]
            followed.append(np.prod([1 - (~event & (time == v)).sum() / n for v, n in zip(lost, at_risk)]))
        order = (np.sign(rank[early][:, None] - rank[late]) + 1) / 2
        value = np.average(order.mean(1), weights=1 / np.array(followed))
        right = abs(row["at"] - at) < 1e-3 * at and (row["by"], row["without"]) == (early.sum(), late.sum())
        if not (right and equal(row["auc"], value)): faults.append((row, value))
    none(faults)


def still_there(leaves: np.ndarray, time: np.ndarray, at: np.ndarray, first: np.ndarray) -> np.ndarray:
    "Kaplan-Meier by hand: the share that has not left by each time; those of `first` go before others of their time"
    moments = np.unique(time[leaves])
    at_risk = [((time > v) | ((time == v) & (leaves | ~first))).sum() for v in moments]
    stays = 1 - np.array([(leaves & (time == v)).sum() for v in moments]) / np.array(at_risk)
    return np.array([np.prod(stays[moments <= t]) for t in at])


def brier_of_all_by_hand(mine: pd.DataFrame) -> np.ndarray:
    "Of each patient: the survival of all who were learned from, against what came, weighed by those followed"
    times, shares = np.quantile(mine.time[mine.event], np.linspace(.1, .9, 17)), pd.Series(np.nan, mine.index)
    for fold, tested in mine.groupby("fold"):
        learnt = mine[mine.fold != fold]
        event, time = learnt.event.to_numpy(), learnt.time.to_numpy()
        survival = still_there(event, time, times, np.zeros(len(time), bool))
        for k, patient in tested.iterrows():
            own = still_there(~event, time, np.array([patient.time]), event)[0]
            errors = [s ** 2 / own if patient.event and patient.time <= t else
                      (1 - s) ** 2 / g if patient.time > t else 0
                      for t, s, g in zip(times, survival, still_there(~event, time, times, event))]
            shares[k] = np.trapezoid(errors, times) / np.ptp(times)
    return shares.to_numpy()


def test_brier_scores_are_squared_errors(reports):
    faults = []
    for row in table(reports, "outcomes", "brier").to_dict("records"):
        mine = patients_of(reports, row)
        mine = mine.assign(event=mine.event.astype(float) > 0)
        if mine.time.any(): own, of_all = mine.brier.to_numpy(), brier_of_all_by_hand(mine)
        else: own, of_all = ((mine[c] - mine.event) ** 2 for c in ("risk", "level"))
        right = (np.allclose(mine.brier, own, atol=1e-5) and np.allclose(mine.brier_of_all, of_all, atol=1e-4)
                 and abs(row["brier"] - np.mean(own)) < 1e-5 and abs(row["gain"] - np.mean(of_all - own)) < 1e-4)
        ordered = row["brier_low"] <= row["brier"] <= row["brier_high"] and row["gain_low"] <= row["gain"]
        if not (right and ordered and row["n"] == len(mine)): faults.append((row, np.mean(own), np.mean(of_all)))
    none(faults)


def test_optimism_is_what_the_held_out_take_back(reports):
    scores = {(r["study"], r["model"]): r[score] for name, score in (("discrimination", "auc"), ("survival", "c"))
              for r in table(reports, "outcomes", name).to_dict("records")}
    faults, stored = [], table(reports, "outcomes", "optimism")
    for row in stored.to_dict("records"):
        apparent = patients_of(reports, row).groupby("fold").apparent.first()
        right = abs(row["tested"] - scores[row["study"], row["model"]]) < 1e-5
        right &= abs(row["apparent"] - apparent.mean()) < 1e-5 and row["score"][0] in "AU"
        if not (right and abs(row["optimism"] - (row["apparent"] - row["tested"])) < 1e-5): faults.append(row)
    assert len(stored) and not faults, faults


def test_fairness_counts_patients_of_a_group(reports):
    faults = []
    for row in table(reports, "outcomes", "fairness").to_dict("records"):
        mine = patients_of(reports, row)
        name, _, value = row["group"].partition(" ")
        chosen = {"to median": mine.age <= mine.age.median(), "above": ~(mine.age <= mine.age.median())}
        mine = mine[chosen[value] if name == "age" else mine[name].astype(str) == value]
        event, called = mine.event.astype(float).to_numpy() > 0, (mine.risk >= mine.level).to_numpy()
        right = (row["n"], row["events"]) == (len(mine), event.sum())
        right &= equal(row["excess"], (mine.risk - event).mean()) and equal(row["recall"], called[event].mean())
        if not (right and equal(row["specificity"], (~called[~event]).mean())): faults.append(row)
    none(faults)


def explained_by_hand(mine: pd.DataFrame) -> float:
    "Cox and Snell's share: logarithms of risks patient by patient; with time, of chances to be the one of those there"
    event, gain = mine.event.astype(float).to_numpy() > 0, 0.
    if not mine.time.any():
        for risk, had in zip(mine.risk, event):
            gain += math.log(risk / event.mean()) if had else math.log((1 - risk) / (1 - event.mean()))
    for _, part in mine.assign(event=event).groupby("fold") if mine.time.any() else ():
        for r in part[part.event].itertuples():
            there = part[part.time >= r.time]
            gain += r.risk - math.log(np.exp(there.risk).mean())
    return 1 - math.exp(-2 * gain / len(mine))


def fewest(is_enough) -> int:
    "The smallest number of patients that is enough, by halving"
    low, high = 1, 2**24
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle + 1, high)
    return low


def test_patients_needed_are_the_fewest_that_are_enough(reports):
    "Shrinkage, optimism and error of the overall risk at a number of patients, and the AUC's error, as Riley has them"
    faults, stored = [], table(reports, "outcomes", "needed")
    for row in stored.to_dict("records"):
        mine = patients_of(reports, row | dict(model="cox" if math.isnan(row["to_test"]) else "logistic"))
        event, n = mine.event.astype(float).to_numpy() > 0, len(mine)
        share, shown, timed = event.mean(), explained_by_hand(mine), bool(mine.time.any())
        null = share * math.log(share) - share if timed else (
            share * math.log(share) + (1 - share) * math.log(1 - share))
        most = 1 - math.exp(2 * null)
        r2, p = row["r2"], row["parameters"]
        def shrinks_to(s): return fewest(lambda k: p <= k * (1 - s) * -math.log(1 - r2 / s))
        rate, at = share / (mine.time.mean() or 1), np.median(mine.time[event])
        def error(k):
            if not timed: return 1.96 * math.sqrt(share * (1 - share) / k)
            ends = (rate + s * 1.96 * math.sqrt(rate / (k * mine.time.mean())) for s in (-1, 1))
            return max(abs(math.exp(-e * at) - math.exp(-rate * at)) for e in ends)
        by = dict(by_shrinkage=shrinks_to(.9), by_optimism=shrinks_to(r2 / (r2 + .05 * most)),
                  by_risk=fewest(lambda k: error(k) <= .05))
        right = abs(shown - row["shown_r2"]) < 1e-5 and abs(r2 - (shown if shown > 0 else .15 * most)) < 1e-5
        right &= (row["n"], row["events"]) == (n, event.sum()) and abs(row["largest_r2"] - most) < 1e-5
        # r2 is stored with six digits
        right &= all(abs(row[k] - v) <= 1 + 1e-5 * v for k, v in by.items()) and row["needed"] == max(
            row[k] for k in by)
        right &= row["needed_events"] == math.ceil(row["needed"] * share - 1e-9)
        right &= equal(row["events_each"], row["needed"] * share / p)
        if not timed:
            area = order(mine.risk.to_numpy(), event).mean()
            def auc_error(k):
                a, b = k * share, k * (1 - share)
                return math.sqrt((area * (1 - area) + (a - 1) * (area / (2 - area) - area**2)
                                  + (b - 1) * (2 * area**2 / (1 + area) - area**2)) / (a * b))
            right &= row["to_test"] == fewest(lambda k: k * min(share, 1 - share) > 1 and auc_error(k) <= .1 / 3.92)
        if not right: faults.append((row, shown, most, by))
    assert len(stored) and not faults, faults


def learned_from(reports: Path, row: dict) -> list[pd.DataFrame]:
    "Risks of the patients, in their order, from each draw of a share of the training patients, or from all of them"
    whole = patients_of(reports, row)
    if row["share"] == 1: return [whole]
    rows = rows_of(reports, "outcomes", "share.notna()")
    here = rows[(rows.study == row["study"]) & (rows.model == row["model"]) & (rows.share == row["share"])]
    return [whole.assign(risk=part.set_index("patient").risk.loc[whole.patient].to_numpy())
            for _, part in here.groupby("draw")]


def added_to_score(mine: pd.DataFrame) -> tuple[float, np.ndarray]:
    "AUC over pairs, or concordance over weighted pairs, and what each patient adds to it"
    event, time, n = mine.event.astype(float).to_numpy() > 0, mine.time.to_numpy(), len(mine)
    if not time.any():
        kernel = order(mine.risk.to_numpy(), event)
        return kernel.mean(), added_by_patients(kernel, event)
    rank = mine.groupby("fold").risk.rank(pct=True).to_numpy()
    pairs = followed_weights(time, event)[:, None] * (
        (time[None] > time[:, None]) | ((time[None] == time[:, None]) & ~event[None]))
    right = pairs * (np.sign(rank[:, None] - rank) + 1) / 2
    value = right.sum() / pairs.sum()
    return value, value + ((right.sum(0) + right.sum(1)) - value * (pairs.sum(0) + pairs.sum(1))) * n / pairs.sum()


def test_directions_are_shap_values_along_a_field(reports):
    "Covariance of SHAP value and standardized field over tested patients, whose interval has patients and folds"
    stored, faults = table(reports, "outcomes", "directions"), []
    parts = dict(iter(rows_of(reports, "outcomes", "field.notna() and value.notna()").groupby(["study", "field"])))
    for row in stored.to_dict("records"):
        part = parts[row["study"], row["field"]].sort_values("patient")
        along, folds = np.zeros(len(part)), part.fold.to_numpy()
        for k in np.unique(folds):
            value = part.value.to_numpy()[folds == k].astype(float)
            if value.std(): along[folds == k] = part.shap.to_numpy()[folds == k] * zscore(value)
        low, pull, high = shifted_over_folds(along, folds)
        ends, near = np.array([row["pull_low"], row["pull_high"]]), .1 * 2 * over_folds(along, folds)
        right = abs(row["pull"] - along.mean()) < 1e-5 and row["n"] == len(part) and row["trainings"] == len({*folds})
        right &= bool(((np.abs(ends - pull) < near) | ((low <= ends) & (ends <= high))).all())
        signs = ends if row["known"] == "rises" else -ends[::-1]
        right &= row["agrees"] == ("yes" if signs[0] > 0 else "no" if signs[1] < 0 else "not shown")
        if not right: faults.append((row, along.mean(), pull))
    none(faults)
    assert {*stored.known} <= {"rises", "falls"} and (stored.p_holm >= stored.p - 1e-9).all()


def test_learning_curves_are_means_of_draws(reports):
    "On the same patients from each share; the difference of all from half, with intervals over patients and folds"
    stored, faults = table(reports, "outcomes", "learning"), []
    def scores(row):
        draws = [added_to_score(d) for d in learned_from(reports, row)]
        return len(draws), np.mean([v for v, _ in draws]), np.mean([a for _, a in draws], 0)
    for row in stored.to_dict("records"):
        mine = patients_of(reports, row)
        folds, events = mine.fold.to_numpy(), (mine.event.astype(float) > 0).sum()
        draws, value, added = scores(row)
        learnt = row["share"] * .8
        right = draws == (1 if row["share"] == 1 else 3) and equal(row["value"], value)
        right &= (row["n"], row["patients"], row["events"]) == (
            len(mine), round(learnt * len(mine)), round(learnt * events))
        half, ends = over_folds(added, folds) / (value * (1 - value)), [row["value_low"], row["value_high"]]
        limits = [1 / (1 + math.exp(-math.log(value / (1 - value)) - side * half)) for side in (-1, 1)]
        # trees that could not split rank nobody: no pair differs, and nothing is estimated
        right &= np.allclose(ends, limits, atol=1e-4) if half > 1e-12 else bool(np.isnan(ends).all())
        if row["share"] == .5:
            _, whole, of_whole = scores(row | dict(share=1))
            low, shifted, high = shifted_over_folds(of_whole - added, folds)
            ends = np.array([row["difference_low"], row["difference_high"]])
            is_near = np.abs(ends - shifted) < .1 * 2 * over_folds(of_whole - added, folds)
            right &= abs(row["difference"] - (whole - value)) < 1e-5 and row["trainings"] == len({*folds})
            right &= bool((is_near | ((low <= ends) & (ends <= high))).all())
            right &= (row["p"] < .05) == (ends[0] > 0 or ends[1] < 0)
        else: right &= math.isnan(row["difference"])
        if not right: faults.append((row, value))
    none(faults)
    assert (stored.p_holm.dropna() >= stored.p.dropna() - 1e-9).all() and set(stored.share) <= {.25, .5, .75, 1}


def lins(a: np.ndarray, b: np.ndarray) -> float:
    "Lin's concordance by the correlation and the two kinds of bias, which its formula joins"
    sa, sb = a.std(), b.std()
    if not sa or not sb: return 0.
    scale, shift = sa / sb, (a.mean() - b.mean()) / np.sqrt(sa * sb)
    return np.corrcoef(a, b)[0, 1] * 2 / (scale + 1 / scale + shift**2)


def test_stability_of_features_under_two_masks(reports):
    stored, faults = table(reports, "outcomes", "stability"), []
    rows = rows_of(reports, "outcomes", "feature.notna()")
    for row in stored.to_dict("records"):
        mine = rows[(rows.study == row["study"]) & (rows.feature == row["feature"])]
        value = lins(mine.reader.to_numpy(), mine.network.to_numpy())
        if not (row["n"] == mine.patient.nunique() == len(mine) and abs(row["concordance"] - value) < 1e-4):
            faults.append((row, value))
    none(faults)


def test_stability_of_ibsi_features(reports):
    "By family of the features' names: how many reach 0.9 between the two masks of a patient, median and lowest"
    stored, faults = table(reports, "outcomes", "radiomics"), []
    rows = read(REPO / "reports" / "peers" / "radiomics" / "cases.csv.xz")
    family = dict(stat="first order", morph="shape", cm="GLCM", rlm="GLRLM", szm="GLSZM")
    rows = rows.assign(family=[family[n.partition("_")[0]] for n in rows.feature])
    for row in stored.to_dict("records"):
        mine = rows[(rows.dataset == row["dataset"]) & (rows.family == row["family"])]
        pairs = [p.pivot(index="patient", columns="mask", values="value") for _, p in mine.groupby("feature")]
        values = np.array([lins(*(p[m].to_numpy() for m in row["masks"].split(" and "))) for p in pairs])
        right = (row["features"], row["stable"]) == (len(values), (values >= .9).sum())
        right &= row["n"] == mine.patient.nunique() and abs(row["lowest"] - values.min()) < 1e-4
        if not (right and abs(row["median"] - np.median(values)) < 1e-4): faults.append((row, values))
    none(faults)
    counts = stored.groupby("dataset").features.sum()
    assert counts.pop("lgg_kaggle3m") == 75 and counts.eq(98).all(), "a slice has no features of shape"


def test_hospitals_left_out_have_no_patient_elsewhere(reports):
    stored, faults = table(reports, "outcomes", "sites"), []
    rows = rows_of(reports, "outcomes", "study.str.contains(' without ')")
    for row in stored.to_dict("records"):
        mine = rows[(rows.study == f"{row['study']} without {row['site']}") & (rows.model == row["model"])]
        event = mine.event.astype(float).to_numpy() > 0
        right = (row["n"], row["events"]) == (len(mine), event.sum()) and (mine.site == row["site"]).all()
        if row["score"] == "AUC": right &= equal(row["value"], order(mine.risk.to_numpy(), event).mean())
        if not right: faults.append(row)
    none(faults)


@pytest.mark.parametrize("section", ["benchmark", "ablations", "search", "runs"])
def test_calibration_of_masks_is_bounded(reports, section):
    """A Brier score is a mean square over pixels and classes: at most two wrong classes a pixel. For two classes it is
    that of the chosen one, and no mean square is below the square of a mean gap between frequency and probability."""
    if section == "runs": found = [*read_committed_runs(reports)]
    else: found = [*map(read, reports.glob(f"{section}/cases.csv.xz"))]
    found = [r[r.brier.notna()] for r in found if "brier" in r]
    if not found: pytest.skip(f"{section} has no probabilities in this profile")
    rows = pd.concat(found)
    assert rows.brier.between(0, 1).all() and rows.calibration_error.between(0, 1).all()
    two = rows[~rows.dataset.isin([d for d in rows.dataset.unique() if classes(d) > 2])]
    assert ((two.brier >= two.calibration_error**2 - 1e-6).all()
            and all((r.brier <= 2 / classes(d)).all() for d, r in rows.groupby("dataset")))


def classes(dataset: str) -> int:
    "The background, and every label up to the highest"
    facts = yaml.safe_load((REPO / "data_manifests" / dataset / "dataset.yaml").read_text(encoding="utf-8"))
    return max(facts["labels"].values()) + 1


def test_estimators_of_quality_rank_answers(reports):
    "Spearman's coefficient, AUC for bad answers and the area under risk over coverage: the mean over seeds"
    rows, faults = rows_of(reports, "quality"), []
    names = dict(together="predicted_together", oracle="dice")
    for row in table(reports, "quality", "estimators").to_dict("records"):
        mine, found = rows[rows.dataset == row["dataset"]], []
        if names.get(row["estimator"], row["estimator"]) not in mine: continue
        for _, own in mine.groupby("seed"):
            score, dice = own[names.get(row["estimator"], row["estimator"])].to_numpy(float), own.dice.to_numpy(float)
            bad = dice < FLOOR
            a, b = rankdata(score), rankdata(dice)
            found.append((np.corrcoef(a, b)[0, 1] if np.ptp(a) and np.ptp(b) else math.nan, order(-score, bad).mean()
                          if bad.any() and not bad.all() else math.nan, bad.mean()))
        expected = (dict(zip(("spearman", "auc", "bad"), np.mean(found, 0)))
                    | dict(error=mean(cells(mine, f"error_{row['estimator']}").to_numpy())))
        faults += [(row["dataset"], row["estimator"], k, row[k], v) for k, v in expected.items()
                   if not equal(row[k], v)]
    none(faults)


# Instances

def test_panoptic_quality_follows_from_the_counts(reports):
    "Of every image, and of the patients' means"
    rows, stored = rows_of(reports, "instances"), table(reports, "instances", "scores")
    objects = rows.true + rows.predicted
    rq = 2 * rows.matched / objects.where(objects > 0)
    assert np.allclose(rows.ap50, rows.matched / (objects - rows.matched).where(objects > 0), atol=1e-5, equal_nan=True)
    hit = rows.matched > 0
    assert np.allclose(rows.pq[hit], (rq * rows.sq)[hit], atol=2e-5) and (rows.pq[~hit & (objects > 0)] == 0).all()
    assert (rows.sq[hit] > .5).all() and rows.sq[~hit].isna().all()
    first, faults = rows.assign(pq=(rq * rows.sq).where(hit, rq))[rows.seed == 0], []
    for r in stored.to_dict("records"):
        mine = first[(first.dataset == r["dataset"]) & (first.part == r["part"]) & (first.method == r["method"])]
        if not equal(r["pq"], mean(cells(mine, "pq").to_numpy())): faults.append(r)
        if mine.group.nunique() > 1 and not has_clustered_ends(mine.pq, mine.group, r["pq_kinds_low"],
                                                               r["pq_kinds_high"]): faults.append(("kinds", r))
    none(faults)


def has_clustered_ends(values: pd.Series, clusters: pd.Series, low: float, high: float) -> bool:
    "Whether an interval is that of draws of whole clusters, but for a tenth of its width"
    parts = [g.dropna().to_numpy() for _, g in values.groupby(clusters)]
    parts, random = [p for p in parts if len(p)], np.random.default_rng(0)
    draws = [np.concatenate([parts[k] for k in random.integers(len(parts), size=len(parts))]).mean()
             for _ in range(2 * DRAWS)]
    return bool((np.abs(np.quantile(draws, [.025, .975]) - [low, high]) <= .1 * (high - low) + 1e-6).all())


def test_kinds_and_counts_of_instances(reports):
    "Means of the same images in two views, and objects counted by image"
    if not (reports / "instances" / "kinds.csv").is_file(): pytest.skip("no kind of image was left out")
    rows, faults = rows_of(reports, "instances", "seed == 0"), []
    for r in table(reports, "instances", "kinds").to_dict("records"):
        mine = rows[(rows.dataset == r["dataset"]) & (rows.method == "distance")]
        wide = mine[mine.part.isin(["folds", "transfer"])].pivot(index=["case", "group"], columns="part", values="pq")
        wide = wide.dropna().reset_index("group")
        if r["kind"] != "all kinds": wide = wide[wide.group == r["kind"]]
        expected = dict(n=len(wide), known=wide.folds.mean(), left_out=wide.transfer.mean(),
                        difference=(wide.transfer - wide.folds).mean())
        faults += [(r["kind"], k, r[k], v) for k, v in expected.items() if not equal(r[k], v)]
        if r["kind"] == "all kinds" and wide.group.nunique() > 1:
            ends = r["difference_low"], r["difference_high"]
            if not has_clustered_ends(wide.transfer - wide.folds, wide.group, *ends):
                faults.append((r, "interval"))
    for r in table(reports, "instances", "counts").to_dict("records"):
        mine = rows[(rows.dataset == r["dataset"]) & (rows.part == r["part"]) & (rows.method == r["method"])]
        d = mine.predicted - mine.true
        expected = dict(objects=mine.true.sum(), bias=d.mean(), lower=d.mean() - 1.96 * d.std(),
                        upper=d.mean() + 1.96 * d.std())
        for k in ("splits", "merges"):
            if k in r and mine[k].notna().all(): expected[k] = 100 * mine[k].sum() / mine.true.sum()
        faults += [(r["part"], r["method"], k, r[k], v) for k, v in expected.items() if not equal(r[k], v)]
    none(faults)


# Agreement of readers

def values_of(texts: pd.Series) -> np.ndarray:  # (unit, reader), nan where there are fewer
    found = [[float(v) for v in str(t).split()] for t in texts]
    return np.array([f + [math.nan] * (max(map(len, found)) - len(f)) for f in found])


def krippendorff(values: np.ndarray, level: str) -> float:
    "Alpha from all pairs of values: within units, and of all values together"
    units = [u[np.isfinite(u)] for u in values]
    units = [u for u in units if len(u) > 1]
    pooled = np.concatenate(units)
    names, counts = np.unique(pooled, return_counts=True)
    place = pooled if level == "interval" else (np.cumsum(counts) - counts / 2)[np.searchsorted(names, pooled)]
    def apart(x): return np.not_equal.outer(x, x) * 1. if level == "nominal" else np.subtract.outer(x, x)**2
    at = np.split(place, np.cumsum([len(u) for u in units])[:-1])
    if level == "nominal": expected = len(place)**2 - (counts.astype(float)**2).sum()
    else: expected = 2 * len(place) * np.square(place - place.mean()).sum()
    return 1 - (len(place) - 1) * sum(apart(u).sum() / (len(u) - 1) for u in at) / expected


def intraclass(x: np.ndarray, form: str) -> float:
    "ICC from the mean squares of subjects, readers and the rest"
    x = x[np.isfinite(x).all(1)]
    n, k = x.shape
    between = k * np.square(x.mean(1) - x.mean()).sum() / (n - 1)
    within = np.square(x - x.mean(1, keepdims=True)).sum() / (n * (k - 1))
    if form == "ICC(1,1)": return (between - within) / (between + (k - 1) * within)
    readers = n * np.square(x.mean(0) - x.mean()).sum() / (k - 1)
    rest = (within * n * (k - 1) - readers * (k - 1)) / ((n - 1) * (k - 1))
    return (between - rest) / (between + (k - 1) * rest + k / n * (readers - rest))


def test_reliability_of_readers(reports):
    rows, faults = rows_of(reports, "readers", "part in ('size', 'annotation')"), []
    for row in table(reports, "readers", "reliability").to_dict("records"):
        mine, logs = rows[rows.dataset == row["dataset"]], row["what"].startswith("log ")
        x = values_of(mine[row["what"].removeprefix("log ")])
        if logs: x = np.log(x)
        expected = dict(alpha=krippendorff(x, row["level"]), n=mine.patient.nunique(),
                        units=int((np.isfinite(x).sum(1) > 1).sum()))
        if isinstance(row["form"], str) and row["form"]:
            expected |= dict(icc=intraclass(x, row["form"]), subjects=int(np.isfinite(x).all(1).sum()))
        faults += [(row["dataset"], row["what"], k, row[k], v) for k, v in expected.items() if not equal(row[k], v)]
    none(faults)


def test_limits_of_agreement(reports):
    "Bias and limits of a model's sizes against the mean of the readers but one, lesion by lesion"
    rows, faults, looked = rows_of(reports, "readers", "part in ('size', 'annotation')"), [], 0
    for row in table(reports, "readers", "sizes").to_dict("records"):
        mine = rows[rows.dataset == row["dataset"]]
        if f"size_{row['who']}" not in mine: continue
        f = np.log if row["scale"] == "ratio" else lambda x: x
        x, model = values_of(mine["size"]), mine[f"size_{row['who']}"].to_numpy(float)
        with np.errstate(divide="ignore", invalid="ignore"):
            x, model = (f(np.where(v > 0, v, np.nan)) if row["scale"] == "ratio" else v for v in (x, model))
        others = np.array([[np.nanmean(np.delete(u, j)) if np.isfinite(np.delete(u, j)).any() and np.isfinite(u[j])
                            else math.nan for j in range(len(u))] for u in x])
        d = (model[:, None] - others)[np.isfinite(model[:, None] - others)]
        found = np.array([d.mean(), d.mean() - 1.96 * d.std(ddof=1), d.mean() + 1.96 * d.std(ddof=1)])
        looked += 1
        expected = dict(zip(("bias", "lower", "upper"), np.exp(found) if row["scale"] == "ratio"
                            else found)) | dict(cases=len(d))
        faults += [(row["dataset"], row["who"], row["scale"], k, row[k], v) for k, v in expected.items()
                   if not equal(row[k], v)]
    none(faults)
    assert looked


# The recomputations themselves

def test_nothing_of_the_kit_is_imported():
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    names = ({a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
             | {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)})
    assert not [n for n in names if n.split(".")[0] in ("medseg_nb", "conftest")]


def pooled_by_hand(values: np.ndarray, errors: np.ndarray) -> tuple[float, float, float]:
    "Mean over data sets, its error with Knapp and Hartung's factor of at least one, and the variance between sets"
    def weighted(between):
        w = 1 / (errors**2 + between)
        mean = w @ values / w.sum()
        return mean, w, w @ (values - mean)**2 / (len(values) - 1)
    low, high = 0., 1.
    for _ in range(200 if weighted(0)[2] > 1 else 0):  # by halving
        middle = (low + high) / 2
        low, high = (middle, high) if weighted(middle)[2] > 1 else (low, middle)
    mean, w, factor = weighted(low)
    return mean, math.sqrt(max(1, factor) / w.sum()), low


def test_differences_are_pooled_over_data_sets(reports):
    pooled = table(reports, "reached", "pooled")
    parts = dict(processor=table(reports, "reached", "differences"), GPU=table(reports, "reached", "gpu_differences"))
    parts["GPU"] = parts["GPU"][parts["GPU"].scale == "usual"]
    assert len(pooled) > 10
    for r in pooled.itertuples():
        rows = parts[r.device]
        same = rows[(rows.model == r.model) & (rows.against == r.against)]
        turned = rows[(rows.model == r.against) & (rows.against == r.model)]
        values = np.concatenate([same.difference, -turned.difference])
        both = pd.concat([same, turned])
        assert r.device == "GPU" or {480.} == {r.budget_s, r.against_budget_s, *both.budget_s, *both.against_budget_s}
        assert r.device != "GPU" or both.budget_s.isna().all() and math.isnan(r.budget_s), "images, and no seconds"
        mean, error, between = pooled_by_hand(
            values, ((both.difference_high - both.difference_low) / (2 * norm.ppf(.975))).to_numpy())
        quantile = stdtrit(len(values) - 1, .975)
        expected = [mean, mean - quantile * error, mean + quantile * error, math.sqrt(between),
                    mean - quantile * math.hypot(error, math.sqrt(between))]
        stored = [r.difference, r.difference_low, r.difference_high, r.spread, r.next_low]
        assert np.allclose(stored, expected, atol=2e-5) and (r.sets, r.n) == (len(values), both.n.sum()), r
