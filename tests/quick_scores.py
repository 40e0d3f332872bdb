"""Scores of scikit-learn and scikit-survival in plain NumPy, for bootstraps that take them a hundred thousand times.

The packages check their arguments anew in each draw, and loop over patients. `test_reports` recomputes committed tables
with these in their place, and asserts that both say the same, also of what has no score."""
import numpy as np


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
