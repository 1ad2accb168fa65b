"""Learning online against the paper's equations for ALIF neurons as loops of NumPy, no engine.

Bellec et al. 2020, as in `test_formula_25`; but here the weights change while the network runs.
"""

import numpy as np
import optax
import pytest

import eprop
from tests.comparison import assert_close, relative_error

T, BATCH, N_IN, N, N_OUT, DT = 36, 2, 3, 5, 2, 1.0
GAMMA, KAPPA, DECAY, LEARNING_RATE = 0.3, np.exp(-DT / 20.0), 0.05, 0.01
RNG = np.random.default_rng(4)
PARAMETERS = {
    "tau_v": RNG.uniform(10, 30, N),
    "v_th": RNG.uniform(0.5, 0.8, N),
    "tau_a": RNG.uniform(50, 300, N),
    "beta": np.array([0.0, 0.2, 0.1, 0.3, 0.0]),
    "n_refractory": np.array([0, 1, 2, 3, 5]),
}
WEIGHTS = {
    "w_in": RNG.uniform(0.1, 0.5, (N_IN, N)),
    "w_rec": RNG.normal(size=(N, N)) * 0.3 * (1 - np.eye(N)),
    "w_out": RNG.normal(size=(N, N_OUT)),
}
B = RNG.normal(size=(N, N_OUT))
INPUTS = RNG.random((T, BATCH, N_IN)) < 0.4
TARGETS = RNG.normal(size=(T, BATCH, N_OUT))
FEEDBACK = {
    "symmetric": eprop.SymmetricFeedback(),
    "random": eprop.RandomFeedback(B),
    "adaptive": eprop.AdaptiveFeedback(B, decay=DECAY),
}


class Example:
    """One example's neurons, traces and readout."""

    def __init__(self):
        self.v, self.a, self.z, self.psi = (np.zeros(N) for _ in range(4))
        self.since_spike = np.full(N, 1000)
        self.epsilon_v, self.epsilon_a, self.e_bar = (np.zeros((N_IN + N, N)) for _ in range(3))
        self.z_bar, self.y = np.zeros(N), np.zeros(N_OUT)

    def step(self, x, w_in, w_rec, w_out):
        """Equations (6) to (10), (24), (25), and the readout."""
        alpha, rho = np.exp(-DT / PARAMETERS["tau_v"]), np.exp(-DT / PARAMETERS["tau_a"])
        v_th, beta, n_refractory = (PARAMETERS[key] for key in ("v_th", "beta", "n_refractory"))
        pre = np.concatenate([x, self.z])
        self.v = alpha * self.v + x @ w_in + self.z @ w_rec - v_th * self.z
        self.a = rho * self.a + self.z
        self.epsilon_a = self.psi * self.epsilon_v + (rho - self.psi * beta) * self.epsilon_a
        self.epsilon_v = alpha * self.epsilon_v + pre[:, None]
        self.since_spike += 1
        may_spike = self.since_spike >= n_refractory
        distance = (self.v - v_th - beta * self.a) / v_th
        self.psi = may_spike * GAMMA / v_th * np.maximum(0, 1 - np.abs(distance))
        self.z = (may_spike & (distance > 0)).astype(float)
        self.since_spike[self.z > 0] = 0
        self.e_bar = KAPPA * self.e_bar + self.psi * (self.epsilon_v - beta * self.epsilon_a)
        self.z_bar = KAPPA * self.z_bar + self.z
        self.y = KAPPA * self.y + self.z @ w_out


def trajectory(kind, update_every):
    """The weights after each update, B, and the number of spikes, by gradient descent."""
    w_in, w_rec, w_out = WEIGHTS.values()
    b = w_out if kind == "symmetric" else B
    examples = [Example() for _ in range(BATCH)]
    weights, n_spikes = [], 0
    g_synapses, g_out = np.zeros((N_IN + N, N)), np.zeros((N, N_OUT))
    for t in range(T):
        for x, target, example in zip(INPUTS[t], TARGETS[t], examples, strict=True):
            example.step(x, w_in, w_rec, w_out)
            error = example.y - target
            g_synapses += (b @ error) * example.e_bar
            g_out += np.outer(example.z_bar, error)
            n_spikes += example.z.sum()
        if (t + 1) % update_every == 0:
            w_in = w_in - LEARNING_RATE * g_synapses[:N_IN]
            w_rec = w_rec - LEARNING_RATE * g_synapses[N_IN:] * (1 - np.eye(N))
            keep = 1 - DECAY if kind == "adaptive" else 1.0
            w_out = keep * w_out - LEARNING_RATE * g_out
            if kind == "symmetric":
                b = w_out
            elif kind == "adaptive":
                b = keep * b - LEARNING_RATE * g_out
            weights.append((w_in, w_rec, w_out))
            g_synapses, g_out = np.zeros_like(g_synapses), np.zeros_like(g_out)
    return weights, b, n_spikes


def loss(trajectory, targets):
    return 0.5 * ((trajectory.outputs - targets) ** 2).sum()


def make_learner(kind, update_every):
    cell = eprop.ALIF(N, **PARAMETERS, dt=DT, surrogate=eprop.Triangular(GAMMA))
    network = eprop.Network(cell, n_in=N_IN, n_out=N_OUT, tau_out=20.0, **WEIGHTS)
    rule, optimizer = eprop.EProp(FEEDBACK[kind]), optax.sgd(LEARNING_RATE)
    return eprop.OnlineLearner(network, loss, rule, optimizer, update_every=update_every)


@pytest.mark.parametrize("update_every", [1, 9])
@pytest.mark.parametrize("kind", FEEDBACK)
def test_weights_at_every_update(kind, update_every):
    learner = make_learner(kind, update_every)
    weights, b, n_spikes = trajectory(kind, update_every)
    assert 0.05 < n_spikes / (T * BATCH * N) < 0.4
    state, expected = learner.init(BATCH), iter(weights)
    for t in range(T):
        state, _ = learner.step(state, INPUTS[t], TARGETS[t])
        if (t + 1) % update_every == 0:
            for name, weight in zip(WEIGHTS, next(expected), strict=True):
                assert_close(getattr(state.network, name), weight, 1e-10, f"{name} at {t + 1}")
    for name, weight in zip(WEIGHTS, weights[-1], strict=True):
        assert relative_error(weight, WEIGHTS[name]) > 1e-2, f"{name} hardly changed"
    matrix = state.rule.feedback.matrix(state.network)
    assert_close(matrix, b, 1e-10, "feedback")


def test_a_chunk_gives_the_same_weights():
    learner = make_learner("adaptive", 9)
    state, _ = learner.run(learner.init(BATCH), (INPUTS, TARGETS))
    for name, weight in zip(WEIGHTS, trajectory("adaptive", 9)[0][-1], strict=True):
        assert_close(getattr(state.network, name), weight, 1e-10, name)


def test_the_interval_matters():
    """Negative control: traces that meet other weights lead to others."""
    often, seldom = (trajectory("random", update_every)[0][-1] for update_every in (1, 9))
    for a, b in zip(often, seldom, strict=True):
        assert relative_error(a, b) > 1e-4


def test_adaptive_feedback_comes_to_be_the_readout():
    """The difference of B and W_out shrinks by the decay at each update, and by nothing else."""
    learner = make_learner("adaptive", 1)
    state, _ = learner.run(learner.init(BATCH), (INPUTS, TARGETS))
    difference = state.rule.feedback.b - state.network.w_out
    assert_close(difference, (1 - DECAY) ** T * (B - WEIGHTS["w_out"]), 1e-10, "B - W_out")
