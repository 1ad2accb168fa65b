"""Nonlinear vector autoregression, a "next-generation reservoir": no neurons, one ridge regression.

Seen of a series u at time t are k samples, s apart, and all their monomials up to an order:

    l_t = (u_t, u_{t-s}, ..., u_{t-(k-1)s}),    features_t = (1, l_t, l_t ⌈⊗⌉ l_t, ...)
    u_{t+1} = u_t + features_t W

After D. J. Gauthier, E. Bollt, A. Griffith, W. A. S. Barbosa: *Next generation reservoir
computing*, Nature Communications 12, 5564 (2021). With order 1 it is a linear autoregression.
"""

import dataclasses
import itertools

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class NVAR:
    """The features, and how their weights are found."""

    delays: int = 4
    """k, samples that are seen."""
    stride: int = 5
    """s, from one of them to the next."""
    order: int = 2
    """Of the highest monomials."""
    ridge: float = 1e-4
    """Weight of the squared weights beside the sum of squared errors."""

    def __post_init__(self):
        if min(self.delays, self.stride, self.order) < 1 or self.ridge < 0:
            raise ValueError(
                f"delays = {self.delays}, stride = {self.stride} and order = {self.order} must be "
                f"at least 1, and ridge = {self.ridge} not negative"
            )

    @property
    def memory(self) -> int:
        """Samples from the first to the last that is seen."""
        return (self.delays - 1) * self.stride + 1

    def features(self, series: Float[np.ndarray, "time *batch n"]) -> np.ndarray:
        """Of each time with enough samples behind it, `[time - memory + 1, *batch, feature]`."""
        n_times = len(series) - self.memory + 1
        if n_times < 1:
            raise ValueError(
                f"{self.delays} samples, {self.stride} apart, are {self.memory} in all, but the "
                f"series has {len(series)}"
            )
        begins = [self.memory - 1 - i * self.stride for i in range(self.delays)]  # newest first
        linear = np.concatenate([series[b : b + n_times] for b in begins], axis=-1)
        monomials = [np.ones_like(linear[..., :1]), linear]
        for order in range(2, self.order + 1):
            chosen = itertools.combinations_with_replacement(range(linear.shape[-1]), order)
            monomials.append(linear[..., np.array(list(chosen))].prod(-1))
        return np.concatenate(monomials, axis=-1)

    def fit(self, series: Float[np.ndarray, "time n"]) -> Float[np.ndarray, "feature n"]:
        """W, of a series to learn from."""
        return ridge_regression(
            self.features(series[:-1]), np.diff(series[self.memory - 1 :], axis=0), self.ridge
        )

    def forecast(
        self,
        weights: Float[np.ndarray, "feature n"],
        past: Float[np.ndarray, "time batch n"],
        n_ahead: int,
    ) -> Float[np.ndarray, "n_ahead batch n"]:
        """What follows the past, of its own predictions from the second sample on."""
        known = past[-self.memory :]
        predicted = np.empty((n_ahead, *past.shape[1:]))
        with np.errstate(over="ignore", invalid="ignore"):  # it may leave the attractor for good
            for i in range(n_ahead):
                predicted[i] = known[-1] + self.features(known)[0] @ weights
                known = np.concatenate([known[1:], predicted[i : i + 1]])
        return predicted


def ridge_regression(
    features: Float[np.ndarray, "samples feature"],
    targets: Float[np.ndarray, "samples n"],
    a: float,
) -> Float[np.ndarray, "feature n"]:
    """The W of least |features W - targets|² + a |W|².

    As least squares with √a I below the features: their squares, in the normal equations, would
    cost half of the digits, and delayed samples are much alike.
    """
    n_features, n = features.shape[1], targets.shape[1]
    below = np.sqrt(a) * np.eye(n_features)
    q, r = np.linalg.qr(np.concatenate([features, below]))
    return np.linalg.solve(r, q.T @ np.concatenate([targets, np.zeros((n_features, n))]))
