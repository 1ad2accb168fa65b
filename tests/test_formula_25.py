"""A third implementation: the paper's equations for ALIF neurons as loops of NumPy, no engine.

Bellec et al. 2020: the dynamics (6) to (10), eligibility vectors and traces (22) to (25), the
learning signal and the gradient (28); neurons, synapses and steps one at a time.
"""

import jax
import numpy as np
import pytest

import eprop
from tests.comparison import assert_alive, assert_close, relative_error

T, BATCH, N_IN, N, N_OUT, DT = 25, 2, 3, 5, 2, 1.0
GAMMA, KAPPA = 0.3, np.exp(-DT / 20.0)
RNG = np.random.default_rng(4)
PARAMETERS = {
    "tau_v": RNG.uniform(10, 30, N),
    "v_th": RNG.uniform(0.5, 0.8, N),
    "tau_a": RNG.uniform(50, 300, N),
    "beta": np.array([0.0, 0.2, 0.1, 0.3, 0.0]),
    "n_refractory": np.array([0, 1, 2, 3, 5]),
}
W_IN = RNG.uniform(0.1, 0.5, (N_IN, N))
W_REC = RNG.normal(size=(N, N)) * 0.3 * (1 - np.eye(N))
W_OUT, B = RNG.normal(size=(N, N_OUT)), RNG.normal(size=(N, N_OUT))
INPUTS = RNG.random((T, BATCH, N_IN)) < 0.3
TARGETS = RNG.normal(size=(T, BATCH, N_OUT))


def simulate(x):
    """Spikes and pseudo-derivatives `[time, n]` of one example `[time, n_in]`."""
    alpha, rho = np.exp(-DT / PARAMETERS["tau_v"]), np.exp(-DT / PARAMETERS["tau_a"])
    v_th, beta, n_refractory = (PARAMETERS[key] for key in ("v_th", "beta", "n_refractory"))
    v, a, z, psi = np.zeros(N), np.zeros(N), np.zeros((T, N)), np.zeros((T, N))
    last_spike = np.full(N, -1000)
    for t in range(T):
        z_tm1 = z[t - 1] if t > 0 else np.zeros(N)
        v = alpha * v + x[t] @ W_IN + z_tm1 @ W_REC - z_tm1 * v_th
        a = rho * a + z_tm1
        for j in range(N):
            threshold = v_th[j] + beta[j] * a[j]
            if t - last_spike[j] >= n_refractory[j]:  # not refractory
                distance = abs(v[j] - threshold) / v_th[j]
                psi[t, j] = GAMMA / v_th[j] * max(0.0, 1.0 - distance)
                if v[j] > threshold:
                    z[t, j] = 1.0
                    last_spike[j] = t
    return z, psi


def traces(pre, psi):
    """ε_v, ε_a and e `[time, n_pre, n]` of one example, by formulas (24) and (25)."""
    alpha, rho = np.exp(-DT / PARAMETERS["tau_v"]), np.exp(-DT / PARAMETERS["tau_a"])
    beta, n_pre = PARAMETERS["beta"], pre.shape[1]
    vectors_v, vectors_a, trace = (np.zeros((T, n_pre, N)) for _ in range(3))
    for i in range(n_pre):
        for j in range(N):
            epsilon_v, epsilon_a, psi_tm1 = 0.0, 0.0, 0.0
            for t in range(T):
                epsilon_a = psi_tm1 * epsilon_v + (rho[j] - psi_tm1 * beta[j]) * epsilon_a
                epsilon_v = alpha[j] * epsilon_v + pre[t, i]
                vectors_v[t, i, j], vectors_a[t, i, j] = epsilon_v, epsilon_a
                trace[t, i, j] = psi[t, j] * (epsilon_v - beta[j] * epsilon_a)
                psi_tm1 = psi[t, j]
    return vectors_v, vectors_a, trace


def gradients(feedback, fast_only=False):
    """Of E = ½ Σ (y - y*)², by Σ_t L_t F_κ(e_t), summed over the batch; e_t = ψ_t ε_v if fast."""
    g_in, g_rec, g_out = np.zeros_like(W_IN), np.zeros_like(W_REC), np.zeros_like(W_OUT)
    for x, target in zip(INPUTS.swapaxes(0, 1), TARGETS.swapaxes(0, 1), strict=True):
        z, psi = simulate(x)
        z_tm1 = np.concatenate([np.zeros((1, N)), z[:-1]])
        (fast_in, _, e_in), (fast_rec, _, e_rec) = traces(x, psi), traces(z_tm1, psi)
        if fast_only:
            e_in, e_rec = psi[:, None] * fast_in, psi[:, None] * fast_rec
        y, z_bar, bar_in, bar_rec = (np.zeros(s) for s in (N_OUT, N, (N_IN, N), (N, N)))
        for t in range(T):
            y = KAPPA * y + z[t] @ W_OUT
            z_bar = KAPPA * z_bar + z[t]
            bar_in = KAPPA * bar_in + e_in[t]
            bar_rec = KAPPA * bar_rec + e_rec[t]
            signal = feedback @ (y - target[t])
            g_in += signal * bar_in
            g_rec += signal * bar_rec
            g_out += np.outer(z_bar, y - target[t])
    return {"w_in": g_in, "w_rec": g_rec * (1 - np.eye(N)), "w_out": g_out}


@pytest.fixture(scope="module")
def network():
    cell = eprop.ALIF(N, **PARAMETERS, dt=DT, surrogate=eprop.Triangular(GAMMA))
    weights = {"w_in": W_IN, "w_rec": W_REC, "w_out": W_OUT}
    return eprop.Network(cell, n_in=N_IN, n_out=N_OUT, tau_out=20.0, **weights)


def loss(trajectory, targets):
    return 0.5 * ((trajectory.outputs - targets) ** 2).sum()


@pytest.mark.parametrize("example", range(BATCH))
def test_spikes_and_traces(network, example):
    trajectory = network(INPUTS)
    z, psi = simulate(INPUTS[:, example])
    np.testing.assert_array_equal(trajectory.spikes[:, example], z)
    actual = eprop.eligibility_traces(network, INPUTS)
    z_tm1 = np.concatenate([np.zeros((1, N)), z[:-1]])
    for name, pre in (("w_in", INPUTS[:, example]), ("w_rec", z_tm1)):
        of_matrix = getattr(actual, name)
        stored = (of_matrix.vectors.v, of_matrix.vectors.a, of_matrix.trace)
        for field, x, expected in zip("vae", stored, traces(pre, psi), strict=True):
            if name == "w_rec":
                expected = expected * (1 - np.eye(N))
            assert_close(x[:, example], expected, 1e-13, f"{field} of {name}")


@pytest.mark.parametrize("window", [1, 7, None])
@pytest.mark.parametrize("feedback", ["symmetric", "random"])
def test_gradients(network, feedback, window):
    matrix, rule = {
        "symmetric": (W_OUT, eprop.EProp(window=window)),
        "random": (B, eprop.EProp(eprop.RandomFeedback(B), window)),
    }[feedback]
    actual = jax.jit(eprop.grad(loss, rule))(network, INPUTS, TARGETS)
    assert_alive(network, INPUTS, actual)
    for name, expected in gradients(matrix).items():
        assert_close(getattr(actual, name), expected, 1e-12, name)


def test_the_slow_component_matters():
    """Negative control: without it the gradient is another."""
    whole, fast = gradients(W_OUT), gradients(W_OUT, fast_only=True)
    assert relative_error(fast["w_in"], whole["w_in"]) > 1e-2
    assert relative_error(fast["w_rec"], whole["w_rec"]) > 1e-2
