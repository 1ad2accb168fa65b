"""The experiments as a user runs them: by their command line, in a folder of their own."""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import numerical_verification
from figures import plotting

pytestmark = pytest.mark.experiment


EVERY_HELP = """
import json, os, runpy, sys, tempfile
import eprop, matplotlib.pyplot, tyro  # what takes long, once

helps = {}
for module in sys.argv[1:]:
    with tempfile.TemporaryFile("w+") as file:
        child = os.fork()
        if child == 0:
            os.dup2(file.fileno(), 1)
            sys.argv[1:] = ["--help"]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            os._exit(1)  # for it should have exited
        assert os.waitpid(child, 0)[1] == 0, module
        file.seek(0)
        helps[module] = file.read()
print(json.dumps(helps))
"""
"""Runs programs with `--help`, each in a fork of a process that has the imports behind it."""

ROOT = Path(__file__).parents[1]


@functools.cache
def every_help():
    """What each program prints, by its module."""
    sources = sorted(ROOT.glob("experiments/**/*.py"))
    programs = [path for path in sources if '__name__ == "__main__"' in path.read_text()]
    done = subprocess.run(
        [
            *(sys.executable, "-c", EVERY_HELP),
            *(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in programs),
        ],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "120", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


def help_of(experiment):
    """What `--help` prints, on a terminal wide enough to break no option."""
    return every_help()[f"experiments.{experiment}"]


def assert_options(text, config):
    """Every field is an option, a flag or a group of options."""
    for field in dataclasses.fields(config):
        name = field.name.replace("_", "-")
        assert re.search(rf"--{name}[ ,.]", text), name


def assert_drawn(path):
    pixels = matplotlib.image.imread(path)
    assert min(pixels.shape[:2]) > 300 and pixels[..., :3].std() > 0.05


@pytest.fixture(scope="module")
def verification(tmp_path_factory):
    """Exit status and folder of a run with the defaults."""
    results = tmp_path_factory.mktemp("results")
    status = numerical_verification.main(["--results", str(results), "--run", "a"])
    return status, results / "a"


class TestNumericalVerification:
    def test_passes(self, verification):
        status, folder = verification
        assert status == 0
        metrics = json.loads((folder / "metrics.json").read_text())
        assert set(metrics["networks"]) == {"LIF", "LIF and ALIF"}
        for network in metrics["networks"].values():
            errors = network["relative_errors"]
            assert network["n_spikes"] > 10
            for check in ("factorisation", "recursion"):
                assert max(errors[check].values()) < 1e-12
            assert min(errors["control"].values()) > 0.1

    def test_writes_the_run(self, verification):
        _, folder = verification
        config = json.loads((folder / "config.json").read_text())
        assert config["tau_a"] == 500.0 and config["precision"] == "float64"
        assert {path.name for path in folder.iterdir()} == {
            "arrays.npz",
            "config.json",
            "figure.png",
            "metrics.json",
        }
        assert_drawn(folder / "figure.png")

    def test_adaptation_matters(self, verification):
        _, folder = verification
        with np.load(folder / "arrays.npz") as arrays:
            name = "comparisons.factorisation.reference.w_in"
            lif, alif = arrays[f"LIF.{name}"], arrays[f"LIF and ALIF.{name}"]
        assert np.abs(lif - alif).max() > 1e-3 * np.abs(lif).max()

    def test_float32(self):
        config = numerical_verification.Config(precision="float32", n_steps=20)
        results = numerical_verification.run(config)
        for found in results.values():
            assert found.traces["w_rec"].dtype == np.float32 and found.spikes.any()
            for check in ("factorisation", "recursion"):
                errors = found.comparisons[check].errors().values()
                assert 0 < max(errors) < 1e-5

    def test_fails_where_nothing_can_be_said(self, tmp_path, capsys):
        """A silent network has no gradient: all ways to it agree, and that is no success."""
        silent = ["--rate-hz", "0", "--n-steps", "5", "--results", str(tmp_path)]
        assert numerical_verification.main(silent) == 1
        assert capsys.readouterr().out.count("FAILED") == 6

    def test_fails_beyond_the_bound(self, verification):
        _, folder = verification
        config = numerical_verification.Config()
        with np.load(folder / "arrays.npz") as arrays:
            name = "LIF.comparisons.recursion.reference.w_in"
            right = {"w_in": arrays[name], "w_rec": arrays[name]}
        wrong = right | {"w_in": right["w_in"] * (1 + 1e-11)}
        pairs = {"factorisation": right, "recursion": wrong, "control": wrong}
        nothing, comparison = np.ones(1), numerical_verification.Comparison
        comparisons = {check: comparison(right, other) for check, other in pairs.items()}
        found = numerical_verification.Findings(nothing, nothing, nothing, nothing, {}, comparisons)
        passed = numerical_verification.summary(config, {"": found})["networks"][""]["passed"]
        assert passed == {"factorisation": True, "recursion": False, "control": False}

    def test_help(self):
        text = help_of("numerical_verification")
        assert "Factorisation" in text and "in ms" in text and "in Hz" in text
        assert_options(text, numerical_verification.Config)


class TestPlotting:
    @staticmethod
    def lightness(colours):
        """L* of CIELAB, from 0 to 100."""
        rgb = matplotlib.colors.to_rgba_array(colours)[:, :3]
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16

    def test_rules_differ_without_colour(self):
        lines = plotting.RULES.values()
        styles = [str(line["linestyle"]) for line in lines]
        assert len(set(styles)) == len(styles)
        rules = ["bptt", "symmetric", "random", "adaptive"]
        levels = self.lightness([plotting.COLOURS[rule] for rule in rules])
        assert np.diff(levels).min() > 12

    def test_signs_differ_without_colour(self):
        levels = self.lightness(plotting.SIGNED(np.linspace(0, 1, 101)))
        assert np.diff(levels).min() > 0

    def test_autapses_are_blank(self):
        weights = np.arange(16.0).reshape(4, 4)
        axes = Figure().subplots()
        image = plotting.weight_image(axes, weights, autapses=False)
        shown = image.get_array()
        assert shown is not None
        np.testing.assert_array_equal(np.ma.getmask(shown), np.eye(4, dtype=bool))
        assert image.get_clim() == (-14, 14)

    def test_blocks(self):
        values = np.array([[0.0, 1.0, 2.0, 3.0, 10.0], [5.0, 5.0, 5.0, 6.0, 6.0]])
        middles, means = plotting.in_blocks(values, 2)
        assert middles.tolist() == [1, 3.5] and means.tolist() == [[1, 6.5], [5, 6]]
        middles, means = plotting.in_blocks(values, 100)
        assert middles.tolist() == [0, 1, 2, 3, 4] and np.array_equal(means, values)

    def test_panels_share_their_time(self):
        """A spike, a line's point and an image's column of one step lie above each other."""
        dt, step, values = 0.5, 7, np.zeros((10, 3))
        values[step, 1] = 1
        raster, image, lines = (Figure().subplots() for _ in range(3))
        plotting.raster(raster, values > 0, dt)
        plotting.colour_map(image, values, dt, "signal")
        plotting.traces(lines, values, dt)
        (spikes,) = [path.vertices for path in raster.collections[1].get_paths()]
        assert np.asarray(spikes)[:, 0].tolist() == [step * dt] * 2
        left, right, *_ = image.images[0].get_extent()
        assert left + (step + 0.5) * (right - left) / 10 == pytest.approx(step * dt)
        assert np.asarray(lines.lines[1].get_xdata())[step] == step * dt
        assert raster.get_xlim() == image.get_xlim() == lines.get_xlim() == (-0.25, 4.75)
