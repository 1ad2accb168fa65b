"""The paper's tasks, as pure functions of a key: spikes in, what the network should answer out.

Each task is a frozen dataclass of its parameters (times in ms, rates in Hz). Its defaults are the
reference implementation's. `sample` works under `jax.jit` and `jax.vmap`; `plot` shows one example.
"""

from .evidence_accumulation import EvidenceAccumulation, Trials
from .lemniscate import Lemniscate
from .pattern_generation import PatternGeneration, Patterns
from .switching_patterns import SwitchingPatterns

__all__ = [
    "EvidenceAccumulation",
    "Lemniscate",
    "PatternGeneration",
    "Patterns",
    "SwitchingPatterns",
    "Trials",
]
