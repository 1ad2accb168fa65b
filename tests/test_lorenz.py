"""Lorenz's attractor: the series, the regressions, networks that forecast it, and the figure."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eprop
from eprop.files import read_rows
from experiments import lorenz as experiment
from experiments.attractor import (
    LYAPUNOV_EXPONENT,
    Attractor,
    errors_of,
    lorenz,
    runge_kutta,
)
from experiments.learners import make_rule
from experiments.nvar import NVAR, ridge_regression
from figures import finished, plotting
from figures import lorenz as figure
from tests.test_experiments import assert_drawn, assert_options, help_of

RESULTS = finished.RESULTS / "lorenz"
pytestmark = pytest.mark.experiment

SERIES = Attractor(n_train=1000, n_validation=100, n_test=800, warm_up=20, horizon=0.5, starts=5)
SPIKING = experiment.Spiking(n_lif=8, n_alif=7)
STACK = experiment.LSTMStack(n=5, depth=2, dropout=0.5)
SMALL = experiment.Config(
    network=SPIKING, seeds=(0, 3), series=SERIES, nvar=NVAR(delays=2, stride=2),
    length=15, settle=5, batch_size=4, iterations=5, check_every=2,
)  # fmt: skip
LEARNERS = {
    "spiking_random": {},
    "spiking_symmetric": {"feedback": "symmetric"},
    "spiking_bptt": {"rule": "bptt"},
    "lstm_random": {"network": STACK},
    "lstm_symmetric": {"network": STACK, "feedback": "symmetric"},
    "lstm_bptt": {"network": STACK, "rule": "bptt"},
}


def trial_of(folder):
    with np.load(folder / "trial.npz") as arrays:
        return dict(arrays)


@functools.cache
def split_of(seed=0, n_train=1000):
    return dataclasses.replace(SERIES, n_train=n_train, n_test=2500).trajectory(seed)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder of runs of each network by two rules."""
    folder = tmp_path_factory.mktemp("here") / RESULTS
    for name in ("spiking_random", "spiking_bptt", "lstm_symmetric"):
        config = dataclasses.replace(SMALL, results=folder, **LEARNERS[name])
        experiment.run(config, progress=False)
    return folder


class TestAttractor:
    def test_the_equations(self):
        np.testing.assert_array_equal(
            lorenz(jnp.array([1.0, 2.0, 3.0])), [10.0, 28.0 - 3.0 - 2.0, 2.0 - 8.0]
        )
        x = np.sqrt(8 / 3 * 27)  # where it would stay
        np.testing.assert_allclose(lorenz(jnp.array([x, x, 27.0])), 0, atol=1e-12)

    def test_runge_kutta_is_of_fourth_order(self):
        def error(n):
            u = jnp.array([1.0, 2.0])
            for _ in range(n):
                u = runge_kutta(lambda u: -u * u, u, 1 / n)
            return np.abs(u - jnp.array([1 / 2, 2 / 3])).max()  # 1 / (1 / u_0 + t)

        ratios = [error(n) / error(2 * n) for n in (10, 20)]
        assert 13 < min(ratios) <= max(ratios) < 19 and error(10) < 1e-4

    def test_the_lyapunov_exponent(self):
        """Of the tangent that all come close to, over 2000 of the system's time."""
        advance, dt = functools.partial(runge_kutta, lorenz, dt=0.01), 0.01

        def step(carry, _):
            u, tangent = carry
            u, tangent = jax.jvp(advance, (u,), (tangent,))
            size = jnp.linalg.norm(tangent)
            return (u, tangent / size), jnp.log(size)

        start = jnp.array([1.0, 2.0, 20.0]), jnp.array([1.0, 0.0, 0.0])
        growth = jax.jit(lambda start: jax.lax.scan(step, start, length=200_000)[1])(start)
        assert growth[10_000:].mean() / dt == pytest.approx(LYAPUNOV_EXPONENT, abs=0.015)

    def test_a_trajectory_is_cut_in_time(self):
        split = SERIES.trajectory(0)
        assert [len(part) for part in split] == [1000, 100, 800]
        np.testing.assert_allclose(split.train.mean(0), 0, atol=1e-12)
        np.testing.assert_allclose(split.train.std(0), 1, rtol=1e-12)
        assert np.abs(split.test.std(0) - 1).max() > 1e-3
        elsewhere = dataclasses.replace(SERIES, n_train=1100, n_test=700).trajectory(0)
        wholes = [np.concatenate(parts) for parts in (split, elsewhere)]
        assert np.abs(wholes[0] - wholes[1]).max() > 1e-3  # other means, but one trajectory
        np.testing.assert_allclose(*[(x - x.mean(0)) / x.std(0) for x in wholes], atol=1e-9)
        again, other = SERIES.trajectory(0), SERIES.trajectory(1)
        np.testing.assert_array_equal(again.test, split.test)
        assert np.abs(other.train - split.train).max() > 1

    def test_samples_are_an_interval_apart(self):
        start = jnp.array([1.0, 2.0, 20.0])
        samples = Attractor().integrate(start, 51)
        every_other = Attractor(interval=0.02, substeps=200).integrate(start, 26)
        np.testing.assert_allclose(samples[::2], every_other, atol=1e-5)
        assert np.abs(samples[1:26] - every_other[1:]).max() > 1

    def test_trials(self):
        series = np.arange(800.0)[:, None] * np.ones(3)
        past, future = SERIES.trials(series)
        assert past.shape == (20, 5, 3) and future.shape == (SERIES.n_ahead, 5, 3)
        assert past[0, 0, 0] == 0 and future[-1, -1, 0] == 799
        np.testing.assert_array_equal(future[0], past[-1] + 1)

    def test_errors_and_valid_times(self):
        future = np.zeros((SERIES.n_ahead, 3, 3))
        forecast = future.copy()
        forecast[4:, 0] = [0.0, 0.0, 0.3]  # √(0.09 / 3) = 0.17: valid
        forecast[7:, 1] = [0.6, 0.6, 0.6]
        forecast[9:, 2] = np.inf
        errors = errors_of(forecast, future)
        np.testing.assert_allclose(errors[4, 0], 0.3 / np.sqrt(3))
        assert errors[-1, 2] == np.inf and errors[0].max() == 0
        step = LYAPUNOV_EXPONENT * SERIES.interval
        np.testing.assert_allclose(
            SERIES.valid_times(errors), [SERIES.n_ahead * step, 8 * step, 10 * step]
        )

    def test_a_test_series_too_short_is_refused(self):
        with pytest.raises(ValueError, match=r"n_test = 100 .* give more than 1204"):
            Attractor(n_test=100)


class TestNVAR:
    def test_features_are_those_of_a_loop(self):
        series = np.random.default_rng(0).normal(size=(9, 2))
        found = NVAR(delays=2, stride=3, order=3).features(series)
        expected = []
        for t in range(3, 9):
            linear = [*series[t], *series[t - 3]]
            row = [1.0, *linear]
            row += [linear[i] * linear[j] for i in range(4) for j in range(i, 4)]
            row += [
                linear[i] * linear[j] * linear[k]
                for i in range(4)
                for j in range(i, 4)
                for k in range(j, 4)
            ]
            expected.append(row)
        np.testing.assert_allclose(found, expected, rtol=1e-13)

    def test_numbers_of_features(self):
        """Of the article's Lorenz forecasts (k = 2) and of ours: 1, 3 k, and pairs of these."""
        for delays, n in ((2, 1 + 6 + 21), (4, 1 + 12 + 78)):
            nvar = NVAR(delays=delays)
            assert nvar.features(np.ones((nvar.memory, 3))).shape == (1, n)

    def test_ridge_regression_solves_the_normal_equations(self):
        rng = np.random.default_rng(0)
        features, targets = rng.normal(size=(40, 6)), rng.normal(size=(40, 2))
        found = {a: ridge_regression(features, targets, a) for a in (0.0, 3.0)}
        for a, weights in found.items():
            inverse = np.linalg.inv(features.T @ features + a * np.eye(6))
            np.testing.assert_allclose(weights, inverse @ features.T @ targets, rtol=1e-10)
        assert np.abs(found[0.0]).sum() > 1.02 * np.abs(found[3.0]).sum()

    def test_it_finds_a_quadratic_map(self):
        """Hénon's, which has all that a forecast needs among the features of k = 1."""
        series = [np.array([0.1, 0.1])]
        for _ in range(300):
            x, y = series[-1]
            series.append(np.array([1 - 1.4 * x * x + y, 0.3 * x]))
        series, nvar = np.array(series), NVAR(delays=1, ridge=1e-14)
        weights = nvar.fit(series[:200])
        names = ["1", "x", "y", "xx", "xy", "yy"]
        expected = {"1": (1, 0), "x": (-1, 0.3), "y": (1, -1), "xx": (-1.4, 0)}
        np.testing.assert_allclose(
            weights, [expected.get(name, (0, 0)) for name in names], atol=1e-8
        )
        ahead = nvar.forecast(weights, series[:200, None], 10)
        np.testing.assert_allclose(ahead[:, 0], series[200:210], atol=1e-4)

    def test_a_forecast_goes_on_from_itself(self):
        series, nvar = split_of().train, NVAR(delays=2, stride=3)
        weights, past = nvar.fit(series), np.stack([series[:50], series[200:250]], axis=1)
        ahead = nvar.forecast(weights, past, 6)
        for i in range(6):
            known = np.concatenate([past, ahead[:i]])
            np.testing.assert_allclose(
                ahead[i], known[-1] + nvar.features(known)[-1] @ weights, rtol=1e-12
            )
            alone = nvar.forecast(weights, known[:, 1:], 1)
            np.testing.assert_allclose(ahead[i, 1:], alone[0], rtol=1e-12)

    def test_it_follows_the_attractor(self):
        """For Lyapunov times, which a linear regression does not."""
        split = split_of(n_train=4000)
        series = dataclasses.replace(SERIES, n_test=2500, horizon=6.0, starts=20)
        past, future = series.trials(split.test)

        def valid(nvar):
            made = nvar.forecast(nvar.fit(split.train), past, series.n_ahead)
            return np.median(series.valid_times(errors_of(made, future)))

        assert valid(NVAR(delays=2)) > 3 > 10 * valid(NVAR(delays=2, order=1))

    def test_what_leaves_the_attractor_is_no_error(self):
        past = np.full((1, 1, 3), 2.0)
        nvar = NVAR(delays=1)
        weights = np.ones((10, 3))
        ahead = nvar.forecast(weights, past, 30)
        assert not np.isfinite(ahead[-1]).all()
        assert np.isinf(errors_of(ahead, np.zeros_like(ahead))[-1]).all()

    @pytest.mark.parametrize("changes", [{"delays": 0}, {"order": 0}, {"ridge": -1.0}])
    def test_settings_that_mean_nothing_are_refused(self, changes):
        with pytest.raises(ValueError, match="at least 1, and ridge"):
            NVAR(**changes)

    def test_a_series_too_short_is_refused(self):
        with pytest.raises(ValueError, match=r"4 samples, 5 apart, are 16 in all, .* has 15"):
            NVAR().features(np.ones((15, 3)))


def made(name, seed=0):
    """A configuration, its network before training, and the series."""
    config = dataclasses.replace(SMALL, **LEARNERS[name])
    return config, config.network.make(experiment.key_of(seed, "weights")), split_of(seed)


class TestNetworks:
    @pytest.mark.parametrize("name", ["spiking_random", "lstm_random"])
    def test_a_forecast_is_a_run_on_its_own_predictions(self, name):
        """At once it gives what it gave sample by sample; nothing is dropped."""
        config, network, split = made(name)
        key = jax.random.key(5)  # a readout that has something to say
        network = with_readout(network, jax.random.normal(key, network.w_out.shape))
        past, _ = SERIES.trials(split.test)
        scale = jnp.asarray(split.increment)
        ahead = experiment.forecast(config, network, scale, jnp.asarray(past))
        assert ahead.shape == (SERIES.n_ahead, 5, 3)
        known = jnp.concatenate([past, ahead])
        run = network(experiment.shown(config, known))
        assert all(layer.spikes.any() for layer in run.layers)
        said = scale * experiment.answers(config, run.outputs)[len(past) - 1 : -1]
        np.testing.assert_allclose(known[len(past) :], known[len(past) - 1 : -1] + said, rtol=1e-9)
        assert np.abs(said).max() > 1e-3

    def test_targets_are_the_increments_after_what_is_shown(self):
        config, _, split = made("spiking_random")
        scale = split.increment
        batches = experiment.make_batches(config, jax.random.key(0), split.train, scale=scale)
        inputs, targets = batches(1)
        assert inputs.shape == (30, 4, 3) and targets.shape == (15, 4, 3)
        np.testing.assert_array_equal(inputs[::2], inputs[1::2])
        np.testing.assert_allclose(inputs[2::2], inputs[:-2:2] + scale * targets[:-1], rtol=1e-9)
        ends = inputs[-1] + scale * targets[-1]
        distances = np.abs(split.train[:, None] - np.asarray(ends)[None]).max(-1).min(0)
        assert distances.max() < 1e-9
        assert abs(float(jnp.sqrt((targets**2).mean())) - 1) < 0.7
        assert np.any(batches(2)[0] != inputs) and np.all(batches(1)[0] == inputs)

    @pytest.mark.parametrize("kind", ["spiking", "lstm"])
    def test_the_rule_is_what_differs(self, kind):
        after = {}
        for learner in ("random", "symmetric", "bptt"):
            config, network, split = made(f"{kind}_{learner}")
            batch = experiment.make_batches(config, jax.random.key(0), split.train, scale=0.1)(1)
            b = jax.random.normal(jax.random.key(1), (network.n, 3))
            loss = experiment.make_loss(config)
            gradient = eprop.grad(lambda *x, loss=loss: loss(*x)[0], make_rule(config.learner, b))
            after[learner] = gradient(network, *batch)
        weights = [np.asarray(x.layers[0].below.weights) for x in after.values()]
        assert len({w.tobytes() for w in weights}) == 3
        assert min(np.abs(w).max() for w in weights) > 1e-8
        for found in after.values():  # the gradient of the readout needs no rule
            np.testing.assert_allclose(found.w_out, after["bptt"].w_out, rtol=1e-9, atol=1e-12)

    def test_the_loss(self):
        config = dataclasses.replace(SMALL, settle=1)
        outputs = jnp.zeros((4, 1, 3)).at[3].set(2.0)  # two steps a sample: the last one counts
        spikes = jnp.zeros((4, 1, 15)).at[0, 0, :].set(1.0)  # 250 Hz
        trajectory = eprop.Trajectory(outputs, (eprop.LayerTrajectory(spikes, None),))
        targets = jnp.stack([jnp.full((1, 3), 9.0), jnp.full((1, 3), 0.5)])
        value, info = experiment.make_loss(config)(trajectory, targets)
        assert info["error"] == 1.5 and info["rate_hz"] == 250
        assert value == pytest.approx(1.5**2 + 0.01 * ((250 - 50) / 50) ** 2)

    @pytest.mark.parametrize("name", ["spiking_random", "spiking_bptt", "lstm_symmetric"])
    def test_what_is_learned(self, name, tmp_path):
        config, _, split = made(name)
        changes = {"iterations": 200, "batch_size": 16, "learning_rate": 2e-2, "check_every": 100}
        if isinstance(config.network, experiment.Spiking):
            changes["network"] = experiment.Spiking(n_lif=20, n_alif=20)
        config = dataclasses.replace(config, **changes, results=tmp_path)
        _, rows = experiment.train_network(config, 0, split, progress=False)
        errors = np.array([row["error"] for row in rows])
        assert errors[-20:].mean() < 0.6 * errors[:5].mean()


def with_readout(network, w_out):
    return jax.tree.map(lambda x: w_out if x is network.w_out else x, network)


class TestExperiment:
    @pytest.mark.parametrize("name", ["spiking_random", "spiking_bptt", "lstm_symmetric"])
    def test_a_run_leaves_whole_results(self, results, name):
        folder = results / name
        summary = json.loads((folder / "summary.json").read_text())
        network = name.split("_")[0]
        names = ["persistence", "linear", "nvar", network]
        assert summary["seeds"] == [0, 3] and summary["network"] == network
        assert list(summary["valid_time"]) == list(summary["one_step"]) == names
        assert summary["one_step"]["persistence"] == [1.0, 1.0]
        for nvar, linear in zip(*(summary["one_step"][x] for x in ("nvar", "linear")), strict=True):
            assert nvar < 0.1 * linear < 0.1
        for values in (summary["one_step"][network], summary["valid_time"]["nvar"]):
            assert values[0] != values[1] or values[0] == SERIES.times[-1]
        for seed in SMALL.seeds:
            rows = read_rows(folder / f"seed{seed}" / "metrics.jsonl")
            assert [row["iteration"] for row in rows] == [1, 2, 3, 4, 5]
            assert ["validation_error" in row for row in rows] == [False, True, False, True, False]
            assert all(row["rate_hz"] > 5 for row in rows if network == "spiking")
        trial = trial_of(folder)
        for each in names:
            assert trial[f"error_{each}"].shape == (2, SERIES.n_ahead)
            assert trial[f"forecast_{each}"].shape == trial["future"].shape

    def test_regressions_are_the_same_beside_every_network(self, results):
        trials = [trial_of(results / name) for name in ("spiking_bptt", "lstm_symmetric")]
        np.testing.assert_array_equal(*(trial["error_nvar"] for trial in trials))

    def test_an_interrupted_run_ends_as_if_it_had_not_been(self, results, tmp_path, monkeypatch):
        config, seen = dataclasses.replace(SMALL, results=tmp_path), []

        def interrupt(iteration, state, row):
            seen.append(iteration)
            if len(seen) == 8:  # in the second seed, after the checkpoint of its iteration 2
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(eprop, "fit", functools.partial(eprop.fit, callbacks=[interrupt]))
            with pytest.raises(KeyboardInterrupt):
                experiment.run(config, progress=False)
        assert seen == [1, 2, 3, 4, 5, 1, 2, 3] and not (config.folder / "summary.json").exists()
        experiment.run(config, progress=False)
        jax.tree.map(
            np.testing.assert_array_equal,
            trial_of(config.folder),
            trial_of(results / "spiking_random"),
        )

    def test_a_folder_belongs_to_one_configuration(self, results):
        with pytest.raises(SystemExit, match=r"batch_size = 4 there, 3 here.*--run"):
            experiment.run(
                dataclasses.replace(SMALL, results=results, batch_size=3), progress=False
            )

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"settle": 15}, "settle = 15 must be less than length = 15"),
            ({"length": 99}, "length = 99, and that less than 99"),
            ({"nvar": NVAR(stride=7)}, "see 22 samples back, but warm_up = 20"),
            (
                {"series": dataclasses.replace(SERIES, horizon=0.001)},
                r"horizon = 0\.001 .* give at least 0\.00906",
            ),
        ],
    )
    def test_what_does_not_fit_is_refused_before_training(self, changes, message):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(SMALL, **changes)

    def test_the_presets(self):
        stack = experiment.PRESETS["lstm"].network
        assert (stack.depth, stack.dropout) == (4, 0.2)
        network = stack.make(jax.random.key(0))
        dropouts = [layer.dropout for layer in network.layers]
        assert dropouts[0] is None and [x.rate for x in dropouts[1:]] == [0.2] * 3
        assert all(isinstance(layer.neurons.cells[0], eprop.LSTM) for layer in network.layers)
        nvar = experiment.PRESETS["spiking"].nvar
        assert (nvar.delays, nvar.order, nvar.stride) == (4, 2, 5)
        assert len({config.folder for config in experiment.PRESETS.values()}) == 2


class TestFigure:
    def test_of_several_runs(self, results, monkeypatch, capsys):
        monkeypatch.chdir(results.parents[1])
        figure.main([])
        assert capsys.readouterr().out.strip() == str(RESULTS / "figure.png")
        everything = (results / "figure.png").read_bytes()
        figure.main([str(RESULTS / "spiking_random")])
        assert_drawn(results / "figure.png")
        assert (results / "figure.png").read_bytes() != everything

    def test_a_column_names_its_own_networks(self, results, tmp_path, monkeypatch):
        drawn = []
        monkeypatch.setattr(plotting, "save", lambda figure, path: drawn.append(figure))
        names = ("lstm_symmetric", "spiking_bptt", "spiking_random")
        figure.draw([results / name for name in names], tmp_path / "figure.png")
        others = ["persistence", "linear", "NVAR"]
        labels = [[x.get_text() for x in axes.get_yticklabels()] for axes in drawn[0].axes[-2:]]
        assert labels == [[*others, "e-prop, random", "BPTT"], [*others, "e-prop, symmetric"]]

    def test_refuses_to_compare_what_differs(self, results, tmp_path):
        other = dataclasses.replace(SMALL, results=tmp_path, rule="bptt", nvar=NVAR(delays=1))
        experiment.run(dataclasses.replace(other, iterations=1), progress=False)
        with pytest.raises(ValueError, match=r"random and bptt.*delays = 2 there, 1 here"):
            figure.draw([results / "spiking_random", other.folder], tmp_path / "figure.png")

    def test_says_what_is_missing(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit, match=r"no finished run.*experiments\.lorenz"):
            figure.main([])


def test_help_names_every_option_and_the_presets():
    text = help_of("lorenz")
    options = [field for field in dataclasses.fields(experiment.Config) if field.name != "network"]
    assert_options(text, dataclasses.make_dataclass("Options", [(x.name, x.type) for x in options]))
    for group, kind in (("network", experiment.Spiking), ("series", Attractor), ("nvar", NVAR)):
        for field in dataclasses.fields(kind):
            assert f"--{group}.{field.name.replace('_', '-')}" in text
    assert "lstm" in text and "in ms" in text and "Lyapunov times" in text
