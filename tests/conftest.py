"""Stricter than a user's session: types are checked, and nothing is promoted silently."""

import os
from unittest import mock

import jax
import jaxtyping
import matplotlib
import pytest

# Shape and dtype annotations of the engine become assertions; this must come before its import.
# An int may stand for a float, as everywhere in Python's typing.
jaxtyping.install_import_hook(
    "eprop", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)

# Nearly all of the time goes into compiling small programs that run once. So they are compiled with
# little optimisation, unless JAX_DISABLE_MOST_OPTIMIZATIONS says otherwise; programs that the tests
# start as processes are as a user has them.
if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    jax.config.update("jax_disable_most_optimizations", True)
    quick = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {quick}"
    with mock.patch.dict(os.environ, XLA_FLAGS=flags):
        jax.devices()  # XLA reads its flags once

# The tests compare to rounding, so float64; a test of float32 says so by `jax.enable_x64(False)`.
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

matplotlib.use("Agg")


@pytest.fixture
def as_a_user_has_it(monkeypatch):
    """Without the run-time checks of types, which would come before the engine's own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="module", autouse=True)
def forgotten_after_the_module():
    """Programs of other tests only take memory, and time when Python looks through it."""
    yield
    jax.clear_caches()
