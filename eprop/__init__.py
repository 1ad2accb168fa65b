"""E-prop for recurrent spiking networks: exact, online, and faster than BPTT."""

from . import checkpoints, losses
from .cells import (
    ALIF,
    LIF,
    AbstractCell,
    ALIFState,
    CurrentLIF,
    CurrentLIFState,
    Jacobians,
    LIFState,
)
from .delays import ConcatenatedBuffer, RotatingBuffer
from .feedback import AbstractFeedback, AdaptiveFeedback, RandomFeedback, SymmetricFeedback
from .learning_signals import LearningSignals, learning_signals, total_derivative
from .network import Network, Trajectory
from .online import LearnerState, OnlineLearner
from .rules import BPTT, AbstractRule, EProp, apply_updates, grad, value_and_grad
from .running_rates import RatePenalty
from .streaming import stream_value_and_grad
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
    "ConcatenatedBuffer",
    "CurrentLIF",
    "CurrentLIFState",
    "EProp",
    "EligibilityTraces",
    "Exponential",
    "FastSigmoid",
    "Jacobians",
    "LIFState",
    "LearnerState",
    "LearningSignals",
    "Network",
    "OnlineLearner",
    "RandomFeedback",
    "RatePenalty",
    "RotatingBuffer",
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
    "stream_value_and_grad",
    "total_derivative",
    "training_step",
    "value_and_grad",
]
