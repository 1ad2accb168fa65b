"""Neurons: each equation once, in a file of its own."""

from .abstract import AbstractCell, Jacobians, hidden_variables
from .alif import ALIF, ALIFState
from .constants import AbstractConstant, Fixed, Trained, TrainedPositive
from .current_lif import CurrentLIF, CurrentLIFState
from .leaky_tanh import LeakyTanh, LeakyTanhState
from .lif import LIF, LIFState
from .lstm import LSTM, LSTMState
from .populations import Populations, Port

__all__ = [
    "ALIF",
    "LIF",
    "LSTM",
    "ALIFState",
    "AbstractCell",
    "AbstractConstant",
    "CurrentLIF",
    "CurrentLIFState",
    "Fixed",
    "Jacobians",
    "LIFState",
    "LSTMState",
    "LeakyTanh",
    "LeakyTanhState",
    "Populations",
    "Port",
    "Trained",
    "TrainedPositive",
    "hidden_variables",
]
