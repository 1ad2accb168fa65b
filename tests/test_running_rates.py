"""Running averages of firing rates, and what a penalty on them does to the weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eprop
from eprop.running_rates import follow, rates_of_steps, start_rates
from tests.cases import Options, make_case, slow_but
from tests.comparison import assert_close, relative_error

T, BATCH, N, DT = 14, 3, 6, 0.5
SPIKES = (np.random.default_rng(0).random((T, BATCH, N)) < 0.2).astype(float)


def averages(tau):
    given = start_rates(N, jnp.float64), jnp.asarray(SPIKES)
    rates, last = (f(*given, dt=DT, tau=tau) for f in (rates_of_steps, follow))
    assert_close(last.rates, rates[-1], 1e-14, "last")
    compiled = follow(given[0], given[1] > 0, dt=DT, tau=tau)
    assert_close(compiled.rates, rates[-1], 1e-14, "compiled")
    return np.asarray(rates), last


class TestAverage:
    @pytest.mark.parametrize("tau", [T * DT, 1e4])
    def test_of_all_steps_while_tau_is_longer(self, tau):
        """In Hz: spikes per neuron, example and step, by the steps in a second."""
        steps = np.arange(1, T + 1)[:, None]
        expected = np.cumsum(SPIKES.mean(1), axis=0) / steps * 1000 / DT
        rates, last = averages(tau)
        assert_close(rates, expected, 1e-14, "rates")
        assert last.span == T and (expected[-1] > 50).all()

    def test_exponential_after_tau(self):
        """The plain mean of the first τ / dt = 4 steps, and from then on 3/4 r + 1/4 z."""
        expected = [1000 / DT * SPIKES[:4].mean((0, 1))]
        for z in SPIKES[4:].mean(1):
            expected.append(0.75 * expected[-1] + 0.25 * 1000 / DT * z)
        rates, last = averages(tau=2.0)
        assert_close(rates[3:], np.array(expected), 1e-14, "rates")
        assert last.span == 4
        assert relative_error(rates, averages(tau=1e4)[0]) > 0.1

    def test_no_longer_than_a_step(self):
        assert_close(averages(tau=DT / 10)[0], 1000 / DT * SPIKES.mean(1), 1e-14, "rates")

    def test_goes_on(self):
        start = start_rates(N, jnp.float64)
        middle = follow(start, jnp.asarray(SPIKES[:5]), dt=DT, tau=4.0)
        last = follow(middle, jnp.asarray(SPIKES[5:]), dt=DT, tau=4.0)
        assert_close(last.rates, averages(tau=4.0)[1].rates, 1e-14, "rates")
        assert last.span == 8

    def test_a_spike_counts_at_once_only(self):
        """∂r_t/∂z_t' is 0 for t' < t, and what it weighs in the mean for t' = t."""
        jacobian = jax.jacobian(
            lambda z: rates_of_steps(start_rates(N, jnp.float64), z, dt=DT, tau=2.0).sum(1)
        )(jnp.asarray(SPIKES))
        spans = np.minimum(np.arange(1, T + 1), 4)
        expected = np.zeros((T, T, BATCH, N))
        expected[np.arange(T), np.arange(T)] = (1000 / DT / BATCH / spans)[:, None, None]
        assert_close(jacobian, expected, 1e-14, "∂r/∂z")


class TestPenalty:
    TARGET, WEIGHT, TAU = 40.0, 30.0, 2.0

    @staticmethod
    def no_loss(trajectory, targets):
        return jnp.zeros((), trajectory.outputs.dtype)

    @functools.cached_property
    def case(self):
        return make_case("ALIF", Options(n_steps=T, batch=BATCH, dt=DT, seed=2))

    def learned(self, window, weight=WEIGHT):
        network = self.case.network
        learner = eprop.OnlineLearner(
            network, self.no_loss, eprop.EProp(window=window), optax.sgd(1.0), update_every=T,
            rate_penalty=eprop.RatePenalty(self.TARGET, weight), tau_rate=self.TAU,
        )  # fmt: skip
        state, info = learner.run(learner.init(BATCH), (self.case.inputs, None))
        return network.w_in - state.network.w_in, network.w_rec - state.network.w_rec, info.loss

    @pytest.mark.parametrize("window", slow_but([7, None], [1, 7, None]))
    def test_gradient(self, window):
        """dE/dW = Σ_t Σ_b 2 c (r_t - f*) / 1000² · (1000 / dt) / (batch · span_t) · e_t."""
        spikes = np.asarray(self.case.network(self.case.inputs).spikes)
        spans = np.minimum(np.arange(1, T + 1), self.TAU / DT)
        seen, rates, r = spikes.mean(1) * 1000 / DT, np.zeros((T, N)), np.zeros(N)
        for t in range(T):
            rates[t] = r = r + (seen[t] - r) / spans[t]
        factor = 2 * self.WEIGHT / 1000**2 * (1000 / DT) / (BATCH * spans)
        direct = factor[:, None] * (rates - self.TARGET)
        traces = eprop.eligibility_traces(self.case.network, self.case.inputs)
        w_in, w_rec, loss = self.learned(window)
        assert_close(w_in, np.einsum("tj,tbij->ij", direct, traces.w_in.trace), 1e-10, "w_in")
        assert_close(w_rec, np.einsum("tj,tbij->ij", direct, traces.w_rec.trace), 1e-10, "w_rec")
        expected = self.WEIGHT * np.square((rates - self.TARGET) / 1000).sum()
        assert_close(loss, [expected], 1e-10, "penalty")
        assert np.abs(w_in).max() > 1e-4 and np.abs(w_rec).max() > 1e-4 and spikes.any()

    def test_no_weight_no_gradient(self):
        """Negative control: it is the penalty that changes the weights."""
        assert all(not x.any() for x in self.learned(None, weight=0.0))

    @pytest.mark.slow
    def test_draws_each_rate_to_the_target(self):
        """Neurons of 6 to 315 Hz, from one update of ten steps to the next."""
        case = make_case("ALIF", Options(n_rec=20, n_in=20, n_steps=2000, batch=1))
        target = 20.0
        learner = eprop.OnlineLearner(
            case.network, self.no_loss, eprop.EProp(), optax.sgd(0.1), update_every=10,
            rate_penalty=eprop.RatePenalty(target, 10.0), tau_rate=200.0,
        )  # fmt: skip
        state = learner.init()
        for _ in range(6):
            state, _ = learner.run(state, (case.inputs, None))

        def gap(network):
            rates = 1000 * network(case.inputs).spikes.mean((0, 1))
            return np.sqrt(np.mean(np.square(rates - target)))

        assert gap(state.network) < 0.25 * gap(case.network)
