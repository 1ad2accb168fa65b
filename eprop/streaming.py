"""Gradients of sequences too long for memory: a window at a time, from an iterator of chunks."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from . import checks
from .evaluation import NetworkGradients, as_network, zero_gradients
from .jitted import Jitted
from .network import AbstractRule, Network
from .pieces import NO_SUM_OVER_TIME, Progress, evaluate_piece, init_progress, is_sum_over_time
from .rules import EProp, Loss


class Sums(NamedTuple):
    """What has come of a sequence so far."""

    progress: Progress
    value: Array
    gradients: NetworkGradients


def stream_value_and_grad(
    loss: Loss,
    rule: AbstractRule,
    has_aux: bool = False,
    trainable: Any = eqx.is_inexact_array,
) -> Callable[[Network, Iterable[Any]], tuple[Any, Network]]:
    """A function `(network, chunks) -> (value, gradients)`, as `value_and_grad` of the whole.

    `chunks` is an iterable of `(inputs, targets)`: pieces of one long sequence in their order, of
    any lengths, each with a leading time axis. A generator, a list, slices of a memory-mapped
    file: no more than `rule.window` steps of them are ever on the device.

        >>> import eprop, jax, jax.numpy as jnp
        >>> network = eprop.Network(eprop.LIF(9, v_th=0.1), n_in=5, n_out=1, key=jax.random.key(0))
        >>> loss = lambda trajectory, y: jnp.sum((trajectory.outputs - y) ** 2)
        >>> inputs = jax.random.bernoulli(jax.random.key(1), 0.5, (96, 1, 5))  # [time, batch, n_in]
        >>> def chunks():
        ...     for i in range(0, 96, 32):
        ...         yield inputs[i : i + 32], jnp.ones((32, 1, 1))
        >>> evaluate = eprop.stream_value_and_grad(loss, eprop.EProp(window=16))
        >>> value, gradients = evaluate(network, chunks())
        >>> gradients.w_rec.shape
        (9, 9)

    It compiles for itself, once for any length of chunks and sequence, and is not for use within
    `jax.jit`. What is left after the last whole window goes step by step.

    **Arguments:** as for `value_and_grad`; the rule must be e-prop with a window, and the loss a
    sum over time. With `has_aux=True` what the loss returns beside its value gets a leading axis
    of windows; that of the last, shorter window is the sum over its steps, so it has none of time.

    Raises `ValueError` or `TypeError` for chunks that don't fit the network or each other.
    """
    if not isinstance(rule, EProp) or rule.window is None:
        raise TypeError(f"rule = {rule} can't follow a stream: write EProp(window=256)")
    checks.function("loss", loss, "loss(trajectory, targets)")
    checks.switch("has_aux", has_aux)
    checks.trainable(trainable)
    window, several = rule.window, max(2, rule.window)

    def advance(network: Network, now: Any, sums: Sums) -> tuple[Sums, Any]:
        inputs, targets = now
        progress, piece = evaluate_piece(
            loss, rule, network, sums.progress, inputs, targets, sums.gradients, has_aux
        )
        before = sums.value.astype(piece.value.dtype)  # of the loss, which may be a wider one
        aux = jax.tree.map(lambda x: checks.array("aux", x), piece.aux)
        return Sums(progress, before + piece.value, piece.gradients), aux

    def first_steps(network: Network, padded: Any, n_steps: Array, sums: Sums) -> tuple[Sums, Any]:
        def step(t, so_far):
            sums, aux = so_far
            now = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, t, 1), padded)
            sums, here = advance(network, now, sums)
            return sums, jax.tree.map(jnp.add, aux, here)

        one = jax.tree.map(lambda x: x[:1], padded)
        of_one, aux = eqx.filter_eval_shape(advance, network, one, sums)
        aux = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), aux)
        sums = sums._replace(value=sums.value.astype(of_one.value.dtype))
        return jax.lax.fori_loop(0, n_steps, step, (sums, aux))

    def fits(network: Network, progress: Progress, now: Any) -> Array:
        inputs, targets = now
        _, trajectory = network.run(progress.network, inputs)
        return is_sum_over_time(loss, trajectory, targets, has_aux)

    def check_aux(network: Network, sums: Sums, now: Any) -> None:
        kinds = {
            n: eqx.filter_eval_shape(advance, network, _repeated(now, n), sums)[1]
            for n in (1, window)
        }
        if kinds[1] != kinds[window]:
            raise ValueError(
                f"aux of one step is {kinds[1]}, but of a window {kinds[window]}: the last steps "
                f"may fill no window, so it must be of one kind, such as a sum over time"
            )

    def is_trained(network: Network) -> Any:
        part = checks.trained(network, trainable)
        return jax.tree.map(lambda x: x is not None, part, is_leaf=lambda x: x is None)

    whole_window = Jitted(advance, given_away=1)
    last_steps, is_sum = Jitted(first_steps, given_away=1), Jitted(fits)

    def evaluate(network: Network, chunks: Iterable[Any]) -> tuple[Any, Network]:
        sums, seen = None, []
        for now in _recut(chunks, window):
            if sums is None:
                network.checked(now[0])
                batch = now[0].shape[1]
                zero = jnp.zeros((), network.dtype)
                sums = Sums(init_progress(network, batch), zero, zero_gradients(network))
                sums = jax.tree.map(jnp.copy, sums)  # each its own memory, to be given away
                if not is_sum(network, sums.progress, _repeated(now, several)):
                    raise ValueError(NO_SUM_OVER_TIME.format(n=several))
                if has_aux:
                    check_aux(network, sums, now)
            inputs = checks.sequence("inputs", now[0], network.n_in, network.dtype)
            n_steps = len(checks.finite("inputs", inputs))
            if n_steps == window:
                sums, aux = whole_window(network, now, sums)
            else:
                padded = jax.tree.map(lambda x: _pad(x, window), now)
                sums, aux = last_steps(network, padded, jnp.asarray(n_steps), sums)
            seen.append(aux)
        if sums is None:
            raise ValueError("there are no chunks: an iterator can be read only once")
        value = sums.value
        gradients = eqx.filter(as_network(network, sums.gradients), is_trained(network))
        return ((value, jax.tree.map(_stack, *seen)) if has_aux else value), gradients

    return evaluate


def _recut(chunks: Iterable[Any], length: int) -> Iterator[tuple[Any, Any]]:
    """The same sequence in pieces of `length` steps, of which the last may be shorter."""
    pieces, n_steps, first = [], 0, None
    for i, chunk in enumerate(chunks):
        if not isinstance(chunk, tuple) or len(chunk) != 2:
            raise TypeError(f"chunk {i} is a {type(chunk).__name__}: give (inputs, targets)")
        chunk = (np.asarray(chunk[0]), chunk[1])
        n = len(chunk[0])
        remedy = (
            f"broadcast a label with jnp.broadcast_to(label, ({n}, *label.shape)), or find the "
            f"gradient of the whole sequence at once by value_and_grad(loss, EProp())"
        )
        checks.each_step("targets", chunk[1], n, remedy)
        chunk = jax.tree.map(lambda x: x if isinstance(x, np.ndarray) else np.asarray(x), chunk)
        shapes = jax.tree.map(lambda x: x.shape[1:], chunk)
        first = shapes if first is None else first
        if shapes != first:
            raise ValueError(
                f"chunk {i} has shapes {shapes} without time, but those before it {first}"
            )
        begin = 0
        while begin < len(chunk[0]):
            end = min(len(chunk[0]), begin + length - n_steps)
            pieces.append(jax.tree.map(lambda x: x[begin:end], chunk))  # noqa: B023
            n_steps, begin = n_steps + end - begin, end
            if n_steps == length:
                yield jax.tree.map(lambda *xs: np.concatenate(xs), *pieces)
                pieces, n_steps = [], 0
    if pieces:
        yield jax.tree.map(lambda *xs: np.concatenate(xs), *pieces)


def _repeated(now: Any, n_steps: int) -> Any:
    """Some steps over and over until they are so many: whether a loss is a sum, any data tell."""
    return jax.tree.map(lambda x: np.resize(x, (n_steps, *x.shape[1:])), now)


def _pad(x: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([x, np.zeros((length - len(x), *x.shape[1:]), x.dtype)])


def _stack(*arrays: Array) -> np.ndarray:
    return np.stack([np.asarray(x) for x in arrays])
