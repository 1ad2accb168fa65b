"""E-prop for recurrent spiking networks: exact, online, and faster than BPTT."""

from . import checkpoints, losses
from .cells import ALIF, LIF, AbstractCell, ALIFState, Jacobians, LIFState
from .feedback import AbstractFeedback, AdaptiveFeedback, RandomFeedback, SymmetricFeedback
from .learning_signals import LearningSignals, learning_signals, total_derivative
from .network import Network, Trajectory
from .rules import BPTT, AbstractRule, EProp, apply_updates, grad, value_and_grad
from .surrogate import AbstractSurrogate, Arctan, Exponential, FastSigmoid, Triangular
from .traces import EligibilityTraces, eligibility_traces
from .training import TrainState, fit, init_training, training_step

__all__ = [
    "ALIF",
    "BPTT",
    "LIF",
    "ALIFState",
    "AbstractCell",
    "AbstractFeedback",
    "AbstractRule",
    "AbstractSurrogate",
    "AdaptiveFeedback",
    "Arctan",
    "EProp",
    "EligibilityTraces",
    "Exponential",
    "FastSigmoid",
    "Jacobians",
    "LIFState",
    "LearningSignals",
    "Network",
    "RandomFeedback",
    "SymmetricFeedback",
    "TrainState",
    "Trajectory",
    "Triangular",
    "apply_updates",
    "checkpoints",
    "eligibility_traces",
    "fit",
    "grad",
    "init_training",
    "learning_signals",
    "losses",
    "total_derivative",
    "training_step",
    "value_and_grad",
]
