"""E-prop for recurrent spiking networks: exact, online, and faster than BPTT.

From what a neuron is to how a network learns, each room built on those before:
`cells` and `synapses` make a `layer`, layers and a `readout` a `network`; `traces` follow what
each synapse did; `recursion`, `windowed` and `reverse` make gradients of them, and `adjoint` a
derivative of the network's run; `rules` choose it; `online`, `streaming`,
`rewards` and `training` use it.
"""

from . import checkpoints, compiled, environments, losses
from .cells import (
    ALIF,
    LIF,
    LSTM,
    AbstractCell,
    ALIFState,
    CurrentLIF,
    CurrentLIFState,
    Jacobians,
    LeakyTanh,
    LeakyTanhState,
    LIFState,
    LSTMState,
)
from .delays import AbstractDelayLine, ConcatenatedBuffer, RotatingBuffer
from .diagnostics import (
    EligibilityTraces,
    LearningSignals,
    eligibility_traces,
    learning_signals,
    total_derivative,
)
from .dropout import Dropout
from .feedback import AbstractFeedback, AdaptiveFeedback, RandomFeedback, SymmetricFeedback
from .layer import Layer, LayerState
from .network import BPTT, AbstractRule, Network
from .online import Info, LearnerState, OnlineLearner
from .padding import pad
from .readout import Readout
from .rewards import Played, RewardInfo, RewardLearner, RewardState
from .rewiring import rewire
from .rules import EProp, apply_updates, grad, value_and_grad
from .running_rates import RatePenalty
from .streaming import stream_value_and_grad
from .surrogate import AbstractSurrogate, Arctan, Exponential, FastSigmoid, Triangular
from .synapses import AbstractSynapses, Convolution, Dense, Sparse
from .training import TrainState, fit, init_training, training_step
from .trajectory import LayerTrajectory, NetworkState, Trajectory
from .version import __version__ as __version__

__all__ = [
    "ALIF",
    "BPTT",
    "LIF",
    "LSTM",
    "ALIFState",
    "AbstractCell",
    "AbstractDelayLine",
    "AbstractFeedback",
    "AbstractRule",
    "AbstractSurrogate",
    "AbstractSynapses",
    "AdaptiveFeedback",
    "Arctan",
    "ConcatenatedBuffer",
    "Convolution",
    "CurrentLIF",
    "CurrentLIFState",
    "Dense",
    "Dropout",
    "EProp",
    "EligibilityTraces",
    "Exponential",
    "FastSigmoid",
    "Info",
    "Jacobians",
    "LIFState",
    "LSTMState",
    "Layer",
    "LayerState",
    "LayerTrajectory",
    "LeakyTanh",
    "LeakyTanhState",
    "LearnerState",
    "LearningSignals",
    "Network",
    "NetworkState",
    "OnlineLearner",
    "Played",
    "RandomFeedback",
    "RatePenalty",
    "Readout",
    "RewardInfo",
    "RewardLearner",
    "RewardState",
    "RotatingBuffer",
    "Sparse",
    "SymmetricFeedback",
    "TrainState",
    "Trajectory",
    "Triangular",
    "apply_updates",
    "checkpoints",
    "compiled",
    "eligibility_traces",
    "environments",
    "fit",
    "grad",
    "init_training",
    "learning_signals",
    "losses",
    "pad",
    "rewire",
    "stream_value_and_grad",
    "total_derivative",
    "training_step",
    "value_and_grad",
]
