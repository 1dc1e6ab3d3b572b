"""Scaling laws: error against training compute, on the Pareto frontier, with the irreducible error and without.

    power    E(C) = a C^-alpha                 what a law leaves out bends its exponent: with a true alpha of 0.25 and
    offset   E(C) = a C^-alpha + E_inf         an E_inf of 0.1 the pure power law finds 0.16, very precisely
    shifted  E(C) = a (b + C)^-alpha + E_inf   (Scaling MLPs, arXiv 2306.13575, section 4.3)

All are fitted by maximum likelihood of Huber's density in log E, its scale free, from many starts; AICc compares them.
Intervals are percentiles of a hierarchical bootstrap: configurations, then seeds within each, then the frontier anew.
Here all runs are one frontier, whatever their family; `analysis/compare/exponents.py` fits each family apart and
compares. C counts multiply-accumulates: 3 x MACs of a forward pass x images seen. FLOPs are twice that.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.compare.samples import images
from analysis.typeset import Sheet, number, quantity
from engine.errors import Refusal

KINDS = ("power", "offset", "shifted")
LEAST_POINTS, LEAST_DECADES = 8, 1.5
RESAMPLES = 1000
_HUBER = 1.345  # 95 % efficient for normal residuals
_FLOOR = 1e-12  # of the scale: noiseless points


class Fit(NamedTuple):
    """One law on the frontier. Bounds are 95 % intervals by bootstrap, NaN without one."""

    kind: str
    a: float
    alpha: float
    b: float
    e_inf: float
    scale: float  # of the residuals in log E
    aicc: float
    alpha_bounds: tuple[float, float] = (math.nan, math.nan)
    e_inf_bounds: tuple[float, float] = (math.nan, math.nan)
    draws: np.ndarray = np.empty(0)
    """alpha of each bootstrap fit."""

    def error(self, compute: np.ndarray) -> np.ndarray:
        """E(C)."""
        return self.a * (self.b + compute) ** -self.alpha + self.e_inf


def points(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per finished run: configuration, family, seed, compute (MACs), params, seen (images), error (a share)."""
    done = frame[frame["acc1"].notna() & frame["macs"].notna()]
    seen = images(done) * done["epochs"].astype(float)
    table = done[["family", "seed", "params"]].assign(configuration=done["rung"], seen=seen)
    table["compute"], table["error"] = 3 * done["macs"] * seen, 1 - done["acc1"] / 100
    return table.dropna()[["configuration", "family", "seed", "compute", "params", "seen", "error"]]


def on_frontier(compute: np.ndarray, error_RN: np.ndarray) -> np.ndarray:
    """Mask (R, N) of the configurations that no other beats in both; an infinite error is out."""
    order = np.argsort(compute, kind="stable")
    _, first, group = np.unique(compute[order], return_index=True, return_inverse=True)
    lowest = np.minimum.reduceat(error_RN[:, order], first, axis=1)  # of each compute
    cheaper = np.minimum.accumulate(np.pad(lowest, ((0, 0), (1, 0)), constant_values=np.inf), axis=1)
    place = np.empty_like(order)
    place[order] = group
    return np.isfinite(error_RN) & (error_RN <= lowest[:, place]) & (error_RN < cheaper[:, place])


def frontier(table: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Means over seeds by configuration, and which of them (N,) are on the frontier.

    The frontier favours configurations whose few seeds were lucky; the bootstrap, which draws it anew, shows how much.
    Raises Refusal for one of less than 8 points or 1.5 decades: an exponent of it would mean nothing.
    """
    means = table.groupby("configuration", sort=False)[["compute", "params", "seen", "error"]].mean()
    means = means[means["error"] > 0]
    compute, error = means["compute"].to_numpy(), means["error"].to_numpy()
    front = on_frontier(compute, error[None])[0]
    decades = math.log10(compute[front].max() / compute[front].min()) if front.any() else 0.0
    if front.sum() < LEAST_POINTS or decades < LEAST_DECADES:
        raise Refusal(
            f"a scaling fit needs {LEAST_POINTS} points on the frontier over {LEAST_DECADES} decades of compute, and "
            f"{len(means)} configurations give {front.sum()} over {decades:.1f}; train more sizes"
        )
    return means, front


def fits(table: pd.DataFrame, resamples: int = RESAMPLES, seed: int = 0) -> tuple[list[Fit], pd.DataFrame]:
    """The three laws, best AICc first, and the frontier that they fit. Raises Refusal as `frontier`."""
    means, front = frontier(table)
    compute, error = means["compute"].to_numpy(), means["error"].to_numpy()
    centre = math.exp(np.log(compute[front]).mean())
    x = np.log(compute / centre)
    drawn, weights = _resample(table, means.index, compute, resamples, seed)
    ever = (weights > 0).any(axis=0)
    drawn, weights = drawn[:, ever], weights[:, ever]
    found = []
    for kind in KINDS:
        best, scale, objective = _fit(
            x, np.log(error)[None], front[None].astype(float), kind, _starts(kind, error[front])
        )
        k, n = best.shape[1] + 1, int(front.sum())
        aicc = 2 * objective[0] + 2 * k + (2 * k * (k + 1) / (n - k - 1) if n > k + 1 else math.inf)
        a, alpha, b, e_inf = (float(value[0]) for value in _natural(best, kind, centre))
        bounds, alphas = [(math.nan, math.nan)] * 2, np.empty(0)
        if resamples:
            usable = (weights > 0).sum(1) > k
            again, _, _ = _fit(x[ever], drawn[usable], weights[usable], kind, best)
            _, alphas, _, floors = _natural(again, kind, centre)
            bounds = [tuple(map(float, np.quantile(values, (0.025, 0.975)))) for values in (alphas, floors)]
        found.append(Fit(kind, a, alpha, b, e_inf, float(scale[0]), float(aicc), *bounds, alphas))
    return sorted(found, key=lambda fit: fit.aicc), means[front].sort_values("compute")


def _resample(
    table: pd.DataFrame, order: pd.Index, compute: np.ndarray, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Log errors and weights, (R, N): configurations drawn, seeds drawn within each; weight 0 is off the frontier."""
    rng, N = np.random.default_rng(seed), len(order)
    errors = np.empty((resamples, N))
    for i, name in enumerate(order):
        values = table.loc[table["configuration"] == name, "error"].to_numpy()
        errors[:, i] = values[rng.integers(0, len(values), (resamples, len(values)))].mean(1)
    counts = rng.multinomial(N, np.full(N, 1 / N), resamples)
    present = np.where((counts > 0) & (errors > 0), errors, np.inf)
    front = on_frontier(compute, present)
    return np.log(np.where(front, errors, 1.0)), np.where(front, counts, 0).astype(float)


def _starts(kind: str, error: np.ndarray) -> np.ndarray:
    """Parameters (R, k) to start from: log a, log alpha, then log E_inf, log b / centre."""
    alphas = np.log([0.05, 0.1, 0.2, 0.4, 0.8])
    floors = np.log(error.min() * np.array([0.03, 0.3, 0.6, 0.9])) if kind != "power" else [0.0]
    shifts = np.log([1e-3, 0.1, 1.0]) if kind == "shifted" else [0.0]
    middle = np.log(np.median(error))
    grid = np.array([(middle, alpha, floor, shift) for alpha in alphas for floor in floors for shift in shifts])
    return grid[:, : 2 + KINDS.index(kind)]


def _predict(x: np.ndarray, theta_RK: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """log E (R, N) at log C / centre, and its derivatives (R, N, k)."""
    log_a, log_alpha = theta_RK[:, :1], theta_RK[:, 1:2]
    log_b = theta_RK[:, 3:4] if kind == "shifted" else np.full_like(log_a, -np.inf)
    floor = theta_RK[:, 2:3] if kind != "power" else np.full_like(log_a, -np.inf)
    alpha, log_sum = np.exp(log_alpha), np.logaddexp(log_b, x[None])
    law = log_a - alpha * log_sum
    predicted = np.logaddexp(law, floor)
    share = np.exp(law - predicted)  # of the error that compute can still reduce
    columns = [share, -share * alpha * log_sum, 1 - share, -share * alpha * np.exp(log_b - log_sum)]
    return predicted, np.stack(columns[: theta_RK.shape[1]], axis=-1)


def _fit(
    x: np.ndarray, y_RN: np.ndarray, weights_RN: np.ndarray, kind: str, starts: np.ndarray, steps: int = 120
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best parameters (R, k), scales (R,) and negative log-likelihoods (R,) of each row, over all starts.

    Levenberg-Marquardt with Huber's weights and the scale of maximum likelihood, all rows and starts at once.
    """
    rows, first = len(y_RN), len(starts)
    trial = np.tile(starts, (rows, 1)).astype(float)
    y, weights = np.repeat(y_RN, first, 0), np.repeat(weights_RN, first, 0)
    total = weights.sum(1)
    theta, residual, slopes = trial, *_residuals(x, y, trial, kind)
    scale, objective = _likelihood(residual, weights, total, np.ones(len(trial)))
    damping, before = np.full(len(trial), 1e-2), np.inf
    for step in range(steps):
        robust = weights * np.minimum(1, _HUBER * scale[:, None] / np.maximum(np.abs(residual), _FLOOR))
        gradient = np.einsum("rnk,rn->rk", slopes, robust * residual)
        hessian = np.einsum("rnk,rnl->rkl", slopes * robust[:, :, None], slopes)
        ridge = damping[:, None] * (np.einsum("rkk->rk", hessian) + 1e-9)
        move = np.linalg.solve(hessian + ridge[:, :, None] * np.eye(trial.shape[1]), gradient[:, :, None])[:, :, 0]
        trial = np.clip(theta + np.clip(move, -2, 2), -30, 30)
        new_residual, new_slopes = _residuals(x, y, trial, kind)
        new_scale, new = _likelihood(new_residual, weights, total, scale)
        better = new < objective
        theta, residual, slopes, scale, objective = (
            np.where(better.reshape(-1, *[1] * (now.ndim - 1)), now, old)
            for now, old in (
                *((trial, theta), (new_residual, residual), (new_slopes, slopes)),
                *((new_scale, scale), (new, objective)),
            )
        )
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-12, 1e12)
        if step % 10 == 9:
            if (before - objective).max() < 1e-7:
                break
            before = objective
    best = objective.reshape(rows, first).argmin(1) + first * np.arange(rows)
    return theta[best], scale[best], objective[best]


def _residuals(x: np.ndarray, y_RN: np.ndarray, theta: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    predicted, slopes = _predict(x, theta, kind)
    return y_RN - predicted, slopes


def _likelihood(
    residual: np.ndarray, weights: np.ndarray, total: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The scale of maximum likelihood under Huber's density, and the negative log-likelihood but for a constant."""
    size = np.abs(residual)
    for _ in range(8):  # a fixed point: mean of psi(u) u = 1
        robust = np.minimum(1, _HUBER * scale[:, None] / np.maximum(size, _FLOOR))
        scale = np.sqrt((weights * robust * size**2).sum(1) / total) + _FLOOR
    u = size / scale[:, None]
    loss = np.where(u <= _HUBER, u**2 / 2, _HUBER * u - _HUBER**2 / 2)
    return scale, (weights * loss).sum(1) + total * np.log(scale)


def _natural(theta: np.ndarray, kind: str, centre: float) -> tuple[np.ndarray, ...]:
    """a, alpha, b and E_inf of compute in MACs."""
    alpha = np.exp(theta[:, 1])
    e_inf = np.exp(theta[:, 2]) if kind != "power" else np.zeros(len(theta))
    b = centre * np.exp(theta[:, 3]) if kind == "shifted" else np.zeros(len(theta))
    return np.exp(theta[:, 0] + alpha * math.log(centre)), alpha, b, e_inf


def allocation(table: pd.DataFrame, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """Exponents of compute-optimal parameters and images seen: slopes of log P*, log D* on log C along the frontier.

    Each with its 95 % interval by the bootstrap of `fits`. Where MACs are a fixed multiple of the parameters, the two
    add up to 1; "sum" says whether they do. Raises Refusal as `frontier`.
    """
    means, front = frontier(table)
    compute = means["compute"].to_numpy()
    _, weights = _resample(table, means.index, compute, resamples, seed)
    weights = np.concatenate([front[None].astype(float), weights[(weights > 0).sum(1) > 2]])
    x = np.log(compute)
    spread = x - (weights @ x / weights.sum(1))[:, None]
    slopes = {}
    for key in ("params", "seen"):
        y = np.log(means[key].to_numpy())
        slopes[key] = (weights * spread * y).sum(1) / (weights * spread**2).sum(1)
    slopes["sum"] = slopes["params"] + slopes["seen"]
    return {key: (float(v[0]), *map(float, np.quantile(v[1:], (0.025, 0.975)))) for key, v in slopes.items()}


def laws_sheet(dataset: str, laws: list[Fit], front: pd.DataFrame) -> Sheet:
    """The laws of `fits`, the best first."""
    rows: list[list[str]] = []
    for fit in laws:
        alpha = f"[{number(fit.alpha_bounds[0], 3)}, {number(fit.alpha_bounds[1], 3)}]"
        e_inf = f"[{number(100 * fit.e_inf_bounds[0], 1)}, {number(100 * fit.e_inf_bounds[1], 1)}]"
        cells = [number(fit.alpha, 3), alpha, number(100 * fit.e_inf, 1), e_inf, quantity(fit.b)]
        rows.append([fit.kind, *cells, number(fit.aicc - laws[0].aicc, 1)])
    header = ("law", "alpha", "95 %", "E_inf, %", "95 %", "b, MACs", "AICc - best")
    data = pd.DataFrame(laws).drop(columns="draws")
    for name in ("alpha", "e_inf"):
        data[[f"{name}_low", f"{name}_high"]] = data.pop(f"{name}_bounds").tolist()
    low, high = front["compute"].min(), front["compute"].max()
    note = f"{len(front)} points on the frontier, {quantity(low)} to {quantity(high)} MACs (FLOPs: twice that)"
    return Sheet(f"Scaling of the error on {dataset}, all families on one frontier", header, rows, data, note)


def allocation_sheet(dataset: str, slopes: dict[str, tuple[float, float, float]]) -> Sheet:
    """The exponents of `allocation`."""
    rows: list[list[Any]] = [
        [key, number(value, 3), f"[{number(low, 3)}, {number(high, 3)}]"] for key, (value, low, high) in slopes.items()
    ]
    data = pd.DataFrame([(key, *values) for key, values in slopes.items()], columns=["of", "exponent", "low", "high"])
    return Sheet(f"Compute-optimal allocation on {dataset}", ("of", "exponent", "95 %"), rows, data)
