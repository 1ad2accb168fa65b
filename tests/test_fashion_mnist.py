"""The experiments with stacks of convolutional layers on images, reduced, and their figure."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eprop
from eprop.files import read_rows
from experiments import fashion_mnist as experiment
from experiments import fashion_mnist_depth, fashion_mnist_start, images
from figures import fashion_mnist as figure
from figures import finished
from tests.test_experiments import assert_drawn, assert_options, help_of
from tests.test_images import idx

RESULTS = finished.RESULTS / "fashion_mnist"
pytestmark = pytest.mark.experiment

SMALL = experiment.Config(
    channels=(3, 4, 4), n=8, image_ms=4.0, answer_ms=3.0, images=20, validation=10,
    batch_size=5, iterations=5, check_every=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Files of 30 and of 20 images: bars of ten heights on a noisy ground."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for part, n in (("train", 30), ("test", 20)):
        labels = np.arange(n) % 10
        pixels = rng.integers(0, 60, (n, 28, 28))
        for image, label in zip(pixels, labels, strict=True):
            image[2 * label + 3 : 2 * label + 7, 3:25] = 250
        for name, array in zip(images.NAMES[part], (pixels, labels), strict=True):
            (folder / name).write_bytes(idx(array))
    return folder


@pytest.fixture
def small(data, tmp_path):
    def small(folder=tmp_path, **changes):
        return dataclasses.replace(SMALL, data=data, results=folder, **changes)

    return small


class TestCoding:
    PIXELS = jnp.array([[0, 1, 51, 128, 255]], jnp.uint8)

    def test_a_current_flows_all_the_time(self):
        inputs = experiment.encode(experiment.Config(), self.PIXELS)
        assert inputs.shape == (16, 1, 5) and inputs.dtype == float
        np.testing.assert_allclose(
            inputs, np.tile(np.array(self.PIXELS) / 255, (16, 1, 1)), rtol=1e-6
        )

    def test_brighter_pixels_spike_earlier_and_black_ones_never(self):
        spikes = experiment.encode(experiment.Config(encoding="latency"), self.PIXELS)
        assert spikes.shape == (16, 1, 5) and spikes.dtype == bool
        assert np.argwhere(spikes[:, 0]).tolist() == [[0, 4], [4, 3], [7, 2], [9, 1]]


class TestNetwork:
    @pytest.mark.parametrize(
        ("depth", "sizes"),
        [(1, [8]), (2, [432, 8]), (3, [432, 144, 8]), (4, [432, 144, 144, 8])],
    )
    def test_layers(self, depth, sizes):
        network = experiment.make_network(dataclasses.replace(SMALL, depth=depth), 0)
        assert [layer.n for layer in network.layers] == sizes and network.n_in == 784
        assert network.layers[-1].recurrent is not None
        assert all(layer.recurrent is None for layer in network.layers[:-1])
        assert len(network.w_out) == sum(sizes)

    def test_each_layer_is_scaled_to_the_rate(self, small):
        config = small(depth=3, n=40, image_ms=20.0)
        pixels, _ = experiment.as_arrays(experiment.split(config).train)
        inputs = experiment.encode(config, pixels)
        plain = experiment.make_network(config, 0)
        scaled = experiment.scaled(plain, inputs, 60.0)
        np.testing.assert_allclose(experiment.layer_rates(scaled, inputs), 60.0, rtol=0.05)
        assert np.ptp(experiment.layer_rates(plain, inputs)) > 20
        for before, after in zip(plain.layers, scaled.layers, strict=True):
            factors = after.below.weights / before.below.weights
            np.testing.assert_allclose(factors, factors.ravel()[0], rtol=1e-5)

    def test_the_norm_of_a_gradient_is_of_each_layer_and_of_no_scale(self, small):
        config = small(feedback="symmetric")
        pixels, labels = experiment.as_arrays(experiment.split(config).train)
        inputs = experiment.encode(config, pixels)
        network = experiment.scaled(experiment.make_network(config, 0), inputs, 60.0)
        found = experiment.gradient_norms(config, network, eprop.EProp(), (inputs, labels))
        assert found.shape == (3,) and np.all(found > 1e-6)
        silent = jax.tree.map(lambda x: 0 * x, network)
        assert not experiment.gradient_norms(config, silent, eprop.EProp(), (inputs, labels)).any()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"encoding": "latency", "feedback": "symmetric", "depth": 2},
        {"feedback": "adaptive", "depth": 4},
        {"rule": "bptt", "start": "plain", "readout": "last", "depth": 1},
    ],
    ids=["random", "latency", "adaptive", "plain"],
)
def test_every_learner_leaves_whole_results(tmp_path, small, changes):
    config = small(**changes)
    summary = experiment.run(config, progress=False)
    assert summary["learner"] == config.learner and summary["test_images"] == 20
    assert all(0 <= found <= 1 for found in summary["test_accuracy"])
    for name in ("rates_hz", "gradient_norms"):
        assert np.shape(summary[name]) == (1, 2, config.depth)
    rows = read_rows(config.folder / "seed0" / "metrics.jsonl")
    assert ["validation_accuracy" in row for row in rows] == [False, True] * 2 + [False]
    assert all(len(row["rates_hz"]) == config.depth for row in rows)
    assert_drawn(figure.draw([config.folder], tmp_path / "figure.png"))


def test_what_is_learned(small):
    config = small(feedback="symmetric", n=30, iterations=120, learning_rate=1e-2)
    summary = experiment.run(config, progress=False)
    rows = read_rows(config.folder / "seed0" / "metrics.jsonl")
    first, last = (np.mean([row["accuracy"] for row in of]) for of in (rows[:4], rows[-4:]))
    assert first < 0.5 and last > 0.9 and summary["test_accuracy"][0] > 0.7


def test_a_linear_classifier_learns_what_is_linear(small):
    split = experiment.split(small())
    assert experiment.pixels_alone(split, epochs=60, batch_size=20) > 0.9
    wrong = split.train._replace(labels=(split.train.labels + 1) % 10)
    assert experiment.pixels_alone(split._replace(train=wrong), epochs=60, batch_size=20) < 0.1


def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path, small, monkeypatch):
    whole, torn = (small(tmp_path / name, seeds=(0, 3), depth=1) for name in ("whole", "torn"))
    expected = experiment.run(whole, progress=False)

    def interrupted(config, seed, images, make_batches=experiment.make_batches):
        batches = make_batches(config, seed, images)

        def until(iteration):
            if (seed, iteration) == (3, 4):
                raise KeyboardInterrupt
            return batches(iteration)

        return until

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "make_batches", interrupted)
        with pytest.raises(KeyboardInterrupt):
            experiment.run(torn, progress=False)
    assert not (torn.folder / "summary.json").exists()
    found = experiment.run(torn, progress=False)
    timed = ("seconds", "images_per_second")
    assert {k: v for k, v in found.items() if k not in timed} == {
        k: v for k, v in expected.items() if k not in timed
    }


def test_an_epoch_shows_each_image_once(small):
    split = experiment.split(small())
    batches = experiment.make_batches(small(), 0, split.train)
    epochs = [[np.asarray(batches(i)[1]) for i in four] for four in ((1, 2, 3, 4), (5, 6, 7, 8))]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(np.concatenate(epoch)), np.sort(split.train.labels))
    assert not np.array_equal(epochs[0][0], epochs[1][0])
    inputs, labels = batches(1)
    pixels, known = experiment.as_arrays(split.train)
    for example, label in zip(inputs[0], labels, strict=True):
        same = np.all(np.round(255 * np.asarray(example)) == np.asarray(pixels), axis=1)
        assert known[same].tolist() == [label]


class TestErrors:
    @pytest.mark.parametrize("changes", [{"images": 25}, {"batch_size": 6}])
    def test_images_that_do_not_fit(self, small, changes):
        with pytest.raises(ValueError, match=r"must be at most 20, for 10 of the 30 are for valid"):
            experiment.split(small(**changes))

    def test_images_of_another_size(self, small, tmp_path):
        for pixels, labels in images.NAMES.values():
            (tmp_path / pixels).write_bytes(idx(np.zeros((9, 8, 8))))
            (tmp_path / labels).write_bytes(idx(np.arange(9)))
        with pytest.raises(ValueError, match=r"images of shape \(8, 8\) and labels up to 8"):
            experiment.split(dataclasses.replace(small(), data=tmp_path))

    def test_without_data_the_command_says_how_to_get_them(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for module in (experiment, fashion_mnist_depth, fashion_mnist_start):
            with pytest.raises(SystemExit, match="apt install dataset-fashion-mnist"):
                module.main(["--data", str(tmp_path / "nothing")])


def test_what_a_stack_begins_with(small):
    """Every network by every rule, and rates as they are scaled."""
    config = small()
    start = fashion_mnist_start.Config(data=config.data, depth=2, rounds=1)
    rows = fashion_mnist_start.rows_of(start, config)
    assert [(row.start, row.readout, row.learner) for row in rows] == [
        (weights, *of_network)
        for weights in ("plain", "scaled")
        for of_network in (("last", "bptt"), ("all", "bptt"), ("all", "symmetric"))
    ]
    assert all(row.ms > 0 and len(row.gradient_norms) == 2 for row in rows)
    assert rows[4].gradient_norms != rows[5].gradient_norms
    assert rows[3].rates_hz == rows[5].rates_hz != rows[2].rates_hz
    assert fashion_mnist_start.table(rows).count("\n| ") == 6


class TestDepths:
    def test_runs_are_made_once_and_drawn(self, tmp_path, small, monkeypatch, capsys):
        results = tmp_path / RESULTS
        presets = {
            "default": small(results),
            "plain": small(results, rule="bptt", start="plain", readout="last"),
        }
        monkeypatch.setattr(experiment, "PRESETS", presets)
        monkeypatch.setattr(fashion_mnist_depth, "RULES", {"symmetric": {"feedback": "symmetric"}})
        monkeypatch.setattr(fashion_mnist_depth, "CURES", {"readout": {"readout": "all"}})
        data = str(presets["default"].data)
        arguments = ["--data", data, "--results", str(results)]
        arguments += ["--depths", "2", "1", "--seeds", "0"]
        fashion_mnist_depth.main(arguments)
        first = capsys.readouterr().out
        assert first.count("| symmetric | scaled |") == 2 and first.count("| bptt | plain |") == 3
        assert_drawn(results / "current.png")
        monkeypatch.setattr(experiment, "run", None)  # nothing is left to be done
        fashion_mnist_depth.main(arguments)
        again = capsys.readouterr().out
        assert again == first[first.index("| layers |") :]
        monkeypatch.chdir(tmp_path)
        figure.main([])
        assert capsys.readouterr().out.strip() == str(RESULTS / "current.png")

    def test_every_rule_at_every_depth(self):
        config = fashion_mnist_depth.Config()
        runs, cures = fashion_mnist_depth.runs_of(config), fashion_mnist_depth.cures_of(config)
        assert len(runs) == 20 and len({run.folder for run in runs + cures}) == 25


def test_runs_of_other_settings_are_not_drawn_together(tmp_path, small):
    folders = []
    for name, n in (("a", 8), ("b", 9)):
        config = small(run=name, n=n, iterations=1, depth=1)
        experiment.run(config, progress=False)
        folders.append(config.folder)
    with pytest.raises(ValueError, match=r"different settings \(n = 8 there, 9 here\)"):
        figure.draw(folders, tmp_path / "figure.png")


def test_help_names_every_option():
    text = help_of("fashion_mnist")
    assert_options(text, experiment.Config)
    assert "latency" in text and "in ms" in text
    assert_options(help_of("fashion_mnist_depth"), fashion_mnist_depth.Config)
    assert_options(help_of("fashion_mnist_start"), fashion_mnist_start.Config)
