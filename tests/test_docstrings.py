"""The examples in docstrings: what they show is what comes out."""

import doctest
import importlib

import jax
import pytest

from tests.test_layers import PATHS

CALLED_MOST = {
    "checkpoints.load",
    "checkpoints.save",
    "compiled.programs",
    "diagnostics.eligibility_traces",
    "layer.Layer",
    "losses.firing_rate_penalty",
    "losses.mean_squared_error",
    "losses.softmax_cross_entropy",
    "network.BPTT",
    "network.Network",
    "online.OnlineLearner",
    "padding.pad",
    "rewiring.rewire",
    "rules.EProp",
    "rules.value_and_grad",
    "streaming.stream_value_and_grad",
    "synapses.dense.Dense",
    "synapses.sparse.Sparse",
    "training.fit",
}


def examples():
    """By the name of what has them."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for path in PATHS:
        module = importlib.import_module(f"eprop.{path}" if path else "eprop")
        for test in finder.find(module, extraglobs={"__name__": "__main__"}):
            if test.examples:
                yield test.name.removeprefix("eprop."), test


EXAMPLES = dict(examples())


def run(test):
    """How many of its examples fail, and what they print."""
    said = []
    runner = doctest.DocTestRunner(verbose=False)
    with jax.enable_x64(False):
        failed, tried = runner.run(test, out=said.append)
    return failed, tried, "".join(said)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_example(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, tried, said = run(EXAMPLES[name])
    assert tried > 1 and not failed, said


def test_what_is_called_most_has_an_example():
    assert set(EXAMPLES) >= CALLED_MOST


def test_an_example_that_is_wrong_is_found():
    wrong = doctest.DocTestParser().get_doctest(
        ">>> import eprop\n>>> eprop.LIF(3).n\n4\n", {}, "wrong", None, None
    )
    failed, tried, said = run(wrong)
    assert (failed, tried) == (1, 2) and "Expected:\n    4\nGot:\n    3" in said
