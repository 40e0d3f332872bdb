"""Scores of scikit-learn, scikit-survival and SciPy in plain NumPy, for bootstraps that take them a hundred thousand
times, and the equations of a mixed model without the inverse that statsmodels forms at each step.

The packages check their arguments anew in each draw, and loop over patients. `test_reports` recomputes committed tables
with these in their place, and asserts that both say the same, also of what has no score."""
from collections.abc import Callable

import numpy as np
import scipy.linalg


def average_precision_score(event: np.ndarray, risk: np.ndarray) -> float:
    "Precision at each level of risk, weighted by what recall gains there"
    order = np.argsort(-risk, kind="stable")
    last = np.flatnonzero(np.append(np.diff(risk[order]) != 0, True))  # patients of equal risk are called together
    hits = event[order].cumsum()[last]
    return float(np.diff(hits, prepend=0) @ (hits / (last + 1)) / hits[-1])


def followed(train_event: np.ndarray, train_time: np.ndarray, time: np.ndarray) -> np.ndarray:
    "Kaplan and Meier's chance not to be lost up to a time; who has the event at a time was there until then"
    times, place = np.unique(train_time, return_inverse=True)
    lost, ended = (np.bincount(place[chosen], minlength=len(times)) for chosen in (~train_event, train_event))
    at_risk = len(train_time) - (lost + ended).cumsum() + lost
    chance = np.append(1, np.cumprod(1 - lost / np.maximum(at_risk, 1)))
    return chance[np.searchsorted(times, time, side="right")]


class CensoringDistributionEstimator:
    "Weights of patients with the event: the inverse chance to be followed until then"
    def fit(self, outcome: np.ndarray) -> "CensoringDistributionEstimator":
        self.event, self.time = (outcome[name] for name in outcome.dtype.names)
        return self

    def predict_ipcw(self, outcome: np.ndarray) -> np.ndarray:
        event, time = (outcome[name] for name in outcome.dtype.names)
        chance, weights = followed(self.event, self.time, time[event]), np.zeros(len(time))
        if not len(chance) or (chance == 0).any(): raise ValueError("no patient has a weight")
        weights[event] = 1 / chance
        return weights


def concordance_index_ipcw(train: np.ndarray, test: np.ndarray, risk: np.ndarray, tau: float) -> tuple[float]:
    "Uno's concordance: weighted pairs of a patient with the event before `tau` and one who was there for longer"
    event, time = (test[name] for name in test.dtype.names)
    weights, early = np.zeros(len(time)), time < tau
    weights[early] = CensoringDistributionEstimator().fit(train).predict_ipcw(test[early])**2
    first = np.flatnonzero(weights)
    pairs = (time > time[first, None]) | ((time == time[first, None]) & ~event)
    if not pairs.any(): raise ValueError("no pair can be compared")
    ahead = risk[first, None] - risk
    right = ((ahead > 1e-8) & pairs).sum(1) + ((np.abs(ahead) <= 1e-8) & pairs).sum(1) / 2
    return (float(weights[first] @ right) / float(weights[first] @ pairs.sum(1)),)


def rankdata(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    "Ranks from 1 within a list, or within each row of a matrix (axis 1); equal values share the mean of theirs"
    if np.ndim(values) == 1: return rankdata(values[None], 1)[0]
    assert axis == 1
    order = np.argsort(values, 1)
    ordered, ranks = np.take_along_axis(values, order, 1), np.empty(values.shape)
    is_first = np.append(np.ones((len(values), 1), bool), np.diff(ordered) != 0, 1)
    first = np.flatnonzero(is_first)  # of each level, in the rows one after another
    count = np.diff(first, append=values.size)
    mean_ranks = np.repeat(first % values.shape[1] + (count + 1) / 2, count).reshape(values.shape)
    np.put_along_axis(ranks, order, mean_ranks, 1)
    return ranks


def _smw_solver(s: float, A: np.ndarray, AtA: np.ndarray, Qi: np.ndarray, di: np.ndarray) -> Callable:
    "Solves (sI + ABA') y = x with the factors of the small matrix, where statsmodels solves it for every row of A"
    small, m = AtA / s, len(Qi)
    small += scipy.linalg.block_diag(Qi, np.diag(di)) if m else np.diag(di)
    factors = scipy.linalg.lu_factor(small)
    return lambda x: x / s - A @ scipy.linalg.lu_solve(factors, A.T @ x) / s**2
