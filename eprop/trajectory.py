"""What a network does over a sequence, and what it hands on to the next."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from .layer import LayerState
from .sequences import Blocks


class LayerTrajectory(NamedTuple):
    """What a layer did over a sequence."""

    spikes: Float[Array, "time batch n"]
    """z_t."""
    states: Any
    """s_t, the cell's state with a leading time axis on each field; for a layer of several
    populations a tuple of their states."""


class Trajectory(NamedTuple):
    """All that a network did over a sequence; what a loss is a function of."""

    outputs: Float[Array, "time batch n_out"]
    """y_t, the leaky readout."""
    layers: tuple[LayerTrajectory, ...]
    """Spikes and states of each layer."""

    @property
    def spikes(self) -> Float[Array, "time batch n"]:
        """z_t of a network of one layer; else say of which, `trajectory.layers[0].spikes`."""
        return only(self.layers, "layers", "trajectory.layers[0].spikes").spikes

    @property
    def states(self) -> Any:
        """s_t of a network of one layer, the cell's state with a leading time axis; else say of
        which, `trajectory.layers[0].states`.
        """
        return only(self.layers, "layers", "trajectory.layers[0].states").states


class NetworkState(NamedTuple):
    """What one step of a network hands to the next. Every array has a leading axis of examples."""

    layers: tuple[LayerState, ...]
    outputs: Float[Array, "batch n_out"]
    """y_t."""


class Response(NamedTuple):
    """A network's run, and what e-prop needs of it."""

    end: NetworkState
    trajectory: Trajectory
    records: tuple[Blocks, ...]
    """For each layer the blocks of its run."""


def of_one(states: tuple[Any, ...]) -> Any:
    """The states of a layer's populations; that of a single one as it is."""
    return states[0] if len(states) == 1 else states


def only(items: Sequence[Any], what: str, write: str) -> Any:
    """The only one of some items; `AttributeError` that says what to write if there are more."""
    if len(items) != 1:
        raise AttributeError(f"there are {len(items)} {what}: say of which, as in {write}")
    return items[0]
