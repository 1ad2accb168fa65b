"""Bad input to learning rules: the error names what was met, and says what to write instead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eprop
from tests.cases import make_case
from tests.errors import assert_raises, check

pytestmark = pytest.mark.usefixtures("as_a_user_has_it")

NETWORK, INPUTS, TARGETS, LOSS, B = make_case("ALIF")
RULES = [eprop.EProp(), eprop.EProp(window=4), eprop.BPTT()]


def gradient(rule=RULES[0], loss=LOSS, targets=TARGETS, network=NETWORK, **options):
    """Traced is enough: what is wrong here shows before anything is computed."""
    return lambda: jax.jit(eprop.value_and_grad(loss, rule, **options))(network, INPUTS, targets)


class TestLoss:
    @pytest.mark.parametrize("rule", RULES, ids=str)
    @check(
        {
            "no scalar": (lambda y: y.sum((0, 1)), TypeError, ["scalar", "shape (2,)", "sum or"]),
            "one entry": (lambda y: y.sum()[None], TypeError, ["scalar", "shape (1,)"]),
            "whole number": (lambda y: (y > 0).sum(), TypeError, ["floating-point", "int64"]),
            "pair": (lambda y: (y.sum(), y), TypeError, ["tuple", "has_aux=True"]),
            "nothing": (lambda y: None, TypeError, ["None", "return"]),
        }
    )
    def test_is_no_number(self, rule, given, error, parts):
        def loss(trajectory, targets):
            return given(trajectory.outputs)

        assert_raises(gradient(rule, loss), error, parts)

    @pytest.mark.parametrize("rule", RULES, ids=str)
    @check(
        {
            "no pair": (lambda y: y.sum(), TypeError, ["has_aux=True", "(scalar, aux)"]),
            "three": (lambda y: (y.sum(), 1, 2), TypeError, ["(scalar, aux)", "3 values"]),
            "no scalar": (lambda y: (y.sum((0, 1)), 1), TypeError, ["scalar", "shape (2,)"]),
        }
    )
    def test_with_aux(self, rule, given, error, parts):
        def loss(trajectory, targets):
            return given(trajectory.outputs)

        assert_raises(gradient(rule, loss, has_aux=True), error, parts)

    @pytest.mark.parametrize("call", [eprop.total_derivative, eprop.learning_signals])
    def test_of_learning_signals(self, call):
        def loss(trajectory, targets):
            return trajectory.outputs

        parts = ["scalar", "shape (15, 3, 2)"]
        assert_raises(lambda: call(NETWORK, INPUTS, TARGETS, loss), TypeError, parts)


class TestRules:
    @check(
        {
            "0": (lambda: eprop.EProp(window=0), ValueError, ["window = 0", "at least 1"]),
            "negative": (lambda: eprop.EProp(window=-3), ValueError, ["window = -3"]),
            "fraction": (lambda: eprop.EProp(window=1.5), ValueError, ["window = 1.5", "whole"]),
            "switch": (lambda: eprop.EProp(window=True), ValueError, ["window = True", "whole"]),
            "text": (lambda: eprop.EProp(window="all"), ValueError, ["window = 'all'", "whole"]),
        }
    )
    def test_window(self, given, error, parts):
        assert_raises(given, error, parts)

    @check(
        {
            "class": (gradient(eprop.EProp), TypeError, ["rule", "write EProp()"]),
            "None": (gradient(None), TypeError, ["rule = None", "BPTT()"]),
            "feedback": (
                lambda: eprop.EProp(jnp.asarray(B)),
                TypeError,
                ["feedback", "RandomFeedback(b)"],
            ),
            "class of feedback": (
                lambda: eprop.EProp(eprop.SymmetricFeedback),
                TypeError,
                ["feedback", "SymmetricFeedback()"],
            ),
        }
    )
    def test_kind(self, given, error, parts):
        assert_raises(given, error, parts)

    @pytest.mark.parametrize("window", [None, 1, 4])
    @pytest.mark.parametrize("feedback", [eprop.RandomFeedback, eprop.AdaptiveFeedback])
    def test_shape_of_b(self, feedback, window):
        parts = ["feedback matrix", "(2, 6)", "[n, n_out] = (6, 2)"]
        assert_raises(gradient(eprop.EProp(feedback(B.T), window)), ValueError, parts)

    def test_shape_of_b_for_learning_signals(self):
        def function():
            return eprop.learning_signals(NETWORK, INPUTS, TARGETS, LOSS, eprop.RandomFeedback(B.T))

        assert_raises(function, ValueError, ["(2, 6)", "[n, n_out] = (6, 2)"])

    @pytest.mark.parametrize("feedback", [eprop.RandomFeedback, eprop.AdaptiveFeedback])
    @check(
        {
            "vector": (B[:, 0], ValueError, ["b has shape (6,)", "[n, n_out]"]),
            "integers": (B.astype(int), TypeError, ["b has dtype int64", "b.astype(jnp.float32)"]),
            "NaN": (np.full_like(B, np.nan), ValueError, ["b of shape (6, 2)", "NaN"]),
        }
    )
    def test_feedback_matrix(self, feedback, given, error, parts):
        assert_raises(lambda: feedback(given), error, parts)

    @pytest.mark.parametrize(
        ("decay", "needed"), [(1.0, "less than 1"), (-0.1, "at least 0"), (np.nan, "finite")]
    )
    def test_decay(self, decay, needed):
        def function():
            return eprop.AdaptiveFeedback(B, decay=decay)

        assert_raises(function, ValueError, [f"decay = {decay}", needed])
