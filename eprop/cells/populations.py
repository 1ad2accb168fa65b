"""Cells of one or more kinds side by side: the neurons of a layer.

What leads to them is laid out population after population, and in a population current after
current: `[batch, n_post]`, with n_post = Σ n_currents · n. Such a stretch of columns, one current
of one population, is a `Port`.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from .. import checks
from .abstract import AbstractCell, hidden_variables
from .contract import check_cell

EXAMPLES = "LIF(n), and for layers a list, Network([Layer(...)], n_out=2)"
"""What to write in place of something that is no cell."""


class Port(NamedTuple):
    """One current of one population."""

    population: int
    current: int
    """Which of the cell's currents."""
    neurons: slice
    """Of the layer's neurons, those of the population."""
    columns: slice
    """Of what leads to the layer, what leads to these neurons as this current."""


class Populations(eqx.Module):
    """One or more cells as one population of n = Σ n_i neurons; its state is a tuple of theirs."""

    cells: tuple[AbstractCell, ...]

    def __init__(self, cells: AbstractCell | Sequence[AbstractCell]):
        """**Arguments:** `cells`: a cell, or several with the same time step.

        Raises `TypeError` for something else, `ValueError` for different time steps, and for a
        cell that breaks the contract of `AbstractCell` (see `check_cell`).
        """
        given: tuple[Any, ...] = tuple(cells) if isinstance(cells, list | tuple) else (cells,)
        if not given:
            raise ValueError("there is no cell: give one, or several, such as [LIF(50), ALIF(50)]")
        self.cells = tuple(checks.instance("cell", x, AbstractCell, EXAMPLES) for x in given)
        for cell in self.cells:
            check_cell(cell)
        steps = [cell.dt for cell in self.cells]
        if len(set(steps)) != 1:
            raise ValueError(f"the cells of a layer have time steps dt = {steps} ms: give one")

    @property
    def n(self) -> int:
        """Number of neurons."""
        return sum(cell.n for cell in self.cells)

    @property
    def n_post(self) -> int:
        """Number of currents that flow into them."""
        return sum(cell.n_currents * cell.n for cell in self.cells)

    @property
    def dt(self) -> float:
        """Length of a time step in ms."""
        return self.cells[0].dt

    @property
    def spiking(self) -> bool:
        """Whether every output is 0 or 1."""
        return all(cell.spiking for cell in self.cells)

    @property
    def ports(self) -> list[Port]:
        """The stretches of columns of what leads to these neurons, in their order."""
        ports, neuron, column = [], 0, 0
        for population, cell in enumerate(self.cells):
            neurons = slice(neuron, neuron + cell.n)
            for current in range(cell.n_currents):
                ports.append(Port(population, current, neurons, slice(column, column + cell.n)))
                column += cell.n
            neuron += cell.n
        return ports

    @property
    def neuron_of_column(self) -> np.ndarray:
        """The index of the neuron that each column leads to, `[n_post]`."""
        return np.concatenate([np.arange(self.n)[port.neurons] for port in self.ports])

    def init(self, batch: int) -> tuple[Any, ...]:
        """The state before the first step."""
        return tuple(cell.init(batch) for cell in self.cells)

    def step(
        self,
        states: tuple[Any, ...],
        currents: Float[Array, "batch n_post"],
        z_tm1: Float[Array, "batch n"],
    ) -> tuple[tuple[Any, ...], Float[Array, "batch n"]]:
        """The states after one step, and z_t."""
        of_cells = zip(self.cells, states, self.currents_of_cells(currents), strict=True)
        after = tuple(
            cell.step(state, current, z)
            for (cell, state, current), z in zip(of_cells, self.by_neurons(z_tm1), strict=True)
        )
        return after, self.output(after)

    def output(self, states: tuple[Any, ...]) -> Float[Array, "batch n"]:
        """z_t."""
        outputs = [cell.output(state) for cell, state in zip(self.cells, states, strict=True)]
        return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=-1)

    def currents_of_cells(self, currents: Shaped[Array, "batch n_post"]) -> list[Array]:
        """What each cell's `step` takes: `[batch, n]`, or `[n_currents, batch, n]`."""
        if len(self.ports) == 1:
            return [currents]
        of_cells: list[list[Array]] = [[] for _ in self.cells]
        for port in self.ports:
            of_cells[port.population].append(currents[:, port.columns])
        return [x[0] if len(x) == 1 else jnp.stack(x) for x in of_cells]

    def by_neurons(self, x: Shaped[Array, "*more n"]) -> list[Array]:
        """A quantity of all neurons, cut into the populations' shares."""
        if len(self.cells) == 1:
            return [x]
        first_ports = [port for port in self.ports if port.current == 0]
        return [x[..., port.neurons] for port in first_ports]

    def hidden_of(self, population: int, of_variables: list[Any]) -> list[Any]:
        """Of something for each hidden variable of all populations, what belongs to one of them."""
        counts = [len(jax.eval_shape(lambda c=c: hidden_variables(c.init(1)))) for c in self.cells]
        begin = sum(counts[:population])
        return of_variables[begin : begin + counts[population]]

    def over_neurons(
        self, of_variables: list[Shaped[Array, "*more _"]]
    ) -> Shaped[Array, "*more n"]:
        """A sum over each neuron's hidden variables, of something for each of them."""
        of_populations = (self.hidden_of(i, of_variables) for i in range(len(self.cells)))
        sums = [functools.reduce(jnp.add, variables) for variables in of_populations]
        return sums[0] if len(sums) == 1 else jnp.concatenate(sums, axis=-1)
