"""Stricter than a user's session: types are checked, and nothing is promoted silently."""

import jax
import jaxtyping
import matplotlib
import pytest

# Shape and dtype annotations of the engine become assertions; this must come before its import.
# An int may stand for a float, as everywhere in Python's typing.
jaxtyping.install_import_hook(
    "eprop", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)

# The tests compare to rounding, so float64; a test of float32 says so by `jax.enable_x64(False)`.
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def compile_quickly():
    """For modules of many small programs, each run once."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, True)
    yield
    jax.config.update(name, before)


@pytest.fixture
def as_a_user_has_it(monkeypatch):
    """Without the run-time checks of types, which would come before the engine's own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
