"""Products as exact as their numbers: what a GPU does not do by itself."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

Given = ParamSpec("Given")
Found = TypeVar("Found")


def exact_products(function: Callable[Given, Found]) -> Callable[Given, Found]:
    """`function`, with products of float32 numbers as float32 products.

    By default a GPU rounds their factors to 10 bits (TF32): then currents are wrong from the fourth
    digit on, and spikes are other ones. A processor does nothing else anyway.
    """

    @functools.wraps(function)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return call
