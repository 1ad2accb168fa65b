"""Synapses: operators from presynaptic activity to currents."""

from .abstract import AbstractSynapses
from .convolution import Convolution
from .dense import Dense, Joined
from .sparse import Sparse

__all__ = ["AbstractSynapses", "Convolution", "Dense", "Joined", "Sparse"]
