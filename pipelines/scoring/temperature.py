"""Temperature scaling: one number that makes a classifier's probabilities mean what they say, fitted on validation
logits and kept beside the weights (Guo et al. 2017, "On Calibration of Modern Neural Networks").

Legend: n rows, K outputs.

It divides every logit, so it changes no ranking: AUROC of two classes or of a finding stays as it is, bit for bit up to
rounding. The loss is convex in 1 / T, so bisection on its slope finds the one minimum, with numpy alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from domains.sample import TaskKind

Floats = npt.NDArray[np.float64]

MIN_ROWS = 20
"""Fewer labelled validation rows than this decide nothing about a temperature."""
LOWEST, HIGHEST = 0.05, 20.0
"""Temperatures are looked for in here: beyond, the probabilities are 0 and 1, or all alike, to two digits."""


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature, with what it did."""

    value: float
    """Logits are divided by this. 1 leaves them."""
    nll_before: float | None
    """Mean negative log likelihood of the validation labels at temperature 1, in nats; None without a label."""
    nll_after: float | None
    """The same at `value`."""
    num_rows: int
    """Labels that it was fitted on (of all findings together in a multi_label task)."""
    note: str = ""
    """Why `value` is 1 or stands at an end of its range, where it does."""


def probabilities(logits: npt.ArrayLike, kind: TaskKind, temperature: float = 1.0) -> Floats:
    """n K logits -> n K probabilities: softmax (single_label), logistic (multi_label); regression passes unchanged."""
    z = np.asarray(logits, dtype=np.float64)
    if kind == "regression":
        return z
    if kind == "multi_label":
        return 0.5 * (1.0 + np.tanh(0.5 * z / temperature))  # the logistic function, without overflow
    shifted = z / temperature - (z / temperature).max(axis=1, keepdims=True)
    return np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)


def negative_log_likelihood(logits: npt.ArrayLike, labels: npt.ArrayLike, kind: TaskKind,
                            temperature: float = 1.0) -> float:
    """Mean over known labels, in nats; NaN without one. Not for regression."""
    z, y = _known(np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.float64), kind)
    if len(y) == 0:
        return float("nan")
    z = z / temperature
    if kind == "multi_label":
        return float((np.logaddexp(0.0, z) - y * z).mean())
    top = z.max(axis=1)
    return float((top + np.log(np.exp(z - top[:, None]).sum(axis=1)) - z[np.arange(len(y)), y.astype(int)]).mean())


def fit_temperature(logits: npt.ArrayLike, labels: npt.ArrayLike, kind: TaskKind,
                    min_rows: int = MIN_ROWS) -> Temperature:
    """The temperature with the lowest negative log likelihood on these validation rows.

    Args:
        logits: n K, as the model gives them.
        labels: n 1 class indices, or n K of 0/1; NaN is unknown and left out.

    Returns:
        1.0 with the reason in `note` for regression, for too few labels, and where every label is predicted right:
        the likelihood then rises without end as T falls to 0, and a small split would make the model certain.
    """
    if kind == "regression":
        return Temperature(1.0, None, None, 0, "regression has no probabilities; T=1")
    z, y = _known(np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.float64), kind)
    if len(y) == 0:
        return Temperature(1.0, None, None, 0, "no labelled validation row; T=1")
    before = negative_log_likelihood(logits, labels, kind)
    if len(y) < min_rows:
        return Temperature(1.0, before, before, len(y), f"{len(y)} labelled validation rows, needs {min_rows}; T=1")
    if ((z > 0) == (y == 1) if kind == "multi_label" else z.argmax(axis=1) == y).all():
        return Temperature(1.0, before, before, len(y),
                           "every validation label is already predicted right, so no temperature is best; T=1")
    too_hot, too_cold = _slope(z, y, kind, 1 / HIGHEST) >= 0, _slope(z, y, kind, 1 / LOWEST) <= 0
    if too_hot or too_cold:
        limit = HIGHEST if too_hot else LOWEST
        return Temperature(limit, before, negative_log_likelihood(logits, labels, kind, limit), len(y),
                           f"the best temperature lies beyond the limit {limit:g}; T={limit:g}")
    low, high = np.log(1 / HIGHEST), np.log(1 / LOWEST)
    for _ in range(60):  # halves log(1/T) down to rounding
        middle = (low + high) / 2
        low, high = (low, middle) if _slope(z, y, kind, float(np.exp(middle))) > 0 else (middle, high)
    value = float(np.exp(-(low + high) / 2))
    return Temperature(value, before, negative_log_likelihood(logits, labels, kind, value), len(y))


def _slope(z: Floats, y: Floats, kind: TaskKind, inverse: float) -> float:
    """Derivative of the mean negative log likelihood with respect to 1 / T; rises with 1 / T."""
    p = probabilities(z, kind, 1 / inverse)
    if kind == "multi_label":
        return float(((p - y) * z).mean())
    return float(((p * z).sum(axis=1) - z[np.arange(len(y)), y.astype(int)]).mean())


def _known(z: Floats, y: Floats, kind: TaskKind) -> tuple[Floats, Floats]:
    """The logits and labels that count: rows (single_label), or single entries of all findings (multi_label)."""
    if not np.isfinite(z).all():
        raise ValueError(f"logits: found {int((~np.isfinite(z)).sum())} of {z.size} that are NaN or infinite, "
                         "expected finite numbers. Remedy: the training diverged; train again at a lower rate.")
    if kind == "multi_label":
        known = ~np.isnan(y)
        return z[known], y[known]
    known = ~np.isnan(y[:, 0])
    return z[known], y[known, 0]
