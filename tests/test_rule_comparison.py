"""The comparison of rules, on a pattern of a few steps."""

import dataclasses
import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest

import eprop
from eprop.files import read_rows
from experiments import patterns
from experiments import rule_comparison as experiment
from figures import rule_comparison as figure
from tests.test_experiments import assert_drawn, assert_options, help_of
from tests.test_pattern_generation import SETTING

pytestmark = pytest.mark.experiment

SMALL = experiment.Config(setting=SETTING, seeds=(3,), compare_every=2)


def metrics_of(config):
    """All rows, without the time that each took."""
    paths = sorted(config.folder.glob("*/*/metrics.jsonl"))
    return {
        path.parent.relative_to(config.folder): [
            {name: x for name, x in row.items() if name != "seconds"} for row in read_rows(path)
        ]
        for path in paths
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The configuration and the summary of a run."""
    config = dataclasses.replace(SMALL, results=tmp_path_factory.mktemp("results"))
    return config, experiment.run(config, progress=False)


@pytest.mark.parametrize("degrees", [0.0, 1e-9, 1.0, 90.0, 179.0, 180.0])
def test_angle(degrees):
    a = 7.0 * jnp.array([[1.0], [0.0]])
    b = jnp.array([[math.cos(math.radians(degrees))], [math.sin(math.radians(degrees))]])
    assert float(experiment.angle(a, b)) == pytest.approx(degrees, rel=1e-6)


def test_every_rule_is_compared_with_bptt(whole):
    config, summary = whole
    assert set(summary["learners"]) == set(patterns.LEARNERS)
    for learner, found in summary["learners"].items():
        for when in ("angle_before", "angle_median"):
            values = np.array([found[when][w] for w in experiment.WEIGHTS])
            assert values.shape == (2, 1)
            assert (values == 0).all() if learner == "bptt" else (values > 1).all()
    rows = metrics_of(config)
    assert len(rows) == 5
    for of_run in rows.values():
        assert ["angle.w_in" in row for row in of_run] == [False, True, False, True, False]
        assert all(row["rate_hz"] > 10 for row in of_run)


def test_angles_during_training_are_those_of_its_iterations(whole):
    """The one from before it is not among them."""
    config, summary = whole
    for folder, rows in metrics_of(config).items():
        found = summary["learners"][folder.parts[0]]["angle_median"]
        for w in experiment.WEIGHTS:
            angles = [row[f"angle.{w}"] for row in rows if f"angle.{w}" in row]
            assert len(angles) == 2 and found[w] == [np.median(angles)]


@pytest.mark.parametrize("compare_every", [0, 6])
def test_gradients_are_compared_during_training(compare_every):
    """Or there would be nothing to draw of it, after all the training."""
    with pytest.raises(ValueError, match=f"compare_every = {compare_every} .* iterations = 5"):
        dataclasses.replace(SMALL, compare_every=compare_every)


def test_all_rules_start_from_the_same_weights(whole):
    _, summary = whole
    errors = [found["squared_error"] for found in summary["learners"].values()]
    assert all(error["1"] == errors[0]["1"] for error in errors)
    assert errors[0]["5"] not in [error["5"] for error in errors[1:]]


def test_the_control(whole):
    """Symmetric e-prop is e-prop by autodiff, and random feedback is not."""
    _, summary = whole
    assert max(found["control_largest"] for found in summary["learners"].values()) < 1e-9
    data, loss = patterns.make_data(SETTING, 0), patterns.make_loss(SETTING)

    def gradient(learner):
        rule = patterns.make_rule(SETTING, learner, 0)
        return eprop.grad(loss, rule, has_aux=True)(patterns.make_network(SETTING, 0), *data)[0]

    found = experiment.angles("angle", gradient("random"), gradient("bptt_stop_z"))
    assert min(found.values()) > 1


def test_an_interrupted_run_ends_as_if_it_had_not_been(whole, tmp_path, monkeypatch):
    config, summary = whole
    torn, seen = dataclasses.replace(config, results=tmp_path), []
    monkeypatch.setattr(experiment, "LEARNERS", ("random",))

    def interrupt(iteration, state, row):
        seen.append(iteration)
        if len(seen) == 3:  # after the checkpoint of iteration 2
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(eprop, "fit", functools.partial(eprop.fit, callbacks=[interrupt]))
        with pytest.raises(KeyboardInterrupt):
            experiment.run(torn, progress=False)
    assert not (torn.folder / "summary.json").exists()
    found, expected = (
        x["learners"]["random"] for x in (experiment.run(torn, progress=False), summary)
    )
    ((folder, rows),) = metrics_of(torn).items()
    assert rows == metrics_of(config)[folder] and len(rows) == 5
    assert all(found[name] == expected[name] for name in expected if name != "seconds")


def test_figure(whole):
    config, _ = whole
    assert_drawn(figure.draw(config.folder))


def test_help_names_every_option():
    text = help_of("rule_comparison")
    assert_options(text, patterns.Setting)
    assert all(option in text for option in ("--seeds", "--compare-every", "--results", "--run"))
