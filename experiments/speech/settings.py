"""What phoneme recognition is trained with: every option, and the presets of the experiment."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

from .features import Kind

Task = Literal["framewise", "ctc"]
Cell = Literal["lsnn", "lstm"]


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train, and how."""

    task: Task = "framewise"
    """Each frame's phoneme, or the sequence of phonemes."""
    cell: Cell = "lsnn"
    """LIF and adaptive LIF neurons side by side, or LSTM units."""
    rule: Literal["eprop", "bptt"] = "eprop"
    """Learning rule."""
    feedback: Literal["random", "symmetric", "adaptive"] = "random"
    """How the readout's error reaches the neurons (e-prop only)."""
    frozen: bool = False
    """A baseline: only the readout learns, the recurrent networks stay as they were drawn."""
    seeds: tuple[int, ...] = (0,)
    """Of the weights, the feedback and the batches: a training for each."""
    data: str = "synthetic"
    """Speech by eSpeak NG, "synthetic", or the folder of TIMIT."""
    features: Kind = "filterbank"
    """What a network sees of a frame: 123 numbers, or 39."""
    stack: int = 1
    """Frames of 10 ms, one after the other, that it sees as one."""

    layers: int = 1
    """Layers, all of which the readout sees."""
    bidirectional: bool = True
    """Whether each layer has neurons that hear the sentence backwards, too."""
    through_layers: bool = False
    """E-prop only: whether errors pass from layer to layer as well (by BPTT they do)."""
    n_lif: int = 100
    """Neurons without adaptation, of each layer and direction."""
    n_alif: int = 100
    """Neurons with an adaptive threshold, likewise."""
    n_lstm: int = 100
    """LSTM units, likewise."""
    repeats: int = 5
    """Time steps of 1 ms that each frame is shown for."""
    tau_readout: float | None = 3.0
    """Time constant of the readout in frames; None for no leak."""
    tau_v: float = 20.0
    """Membrane time constant in ms."""
    tau_a: float = 200.0
    """Time constant of the threshold adaptation in ms."""
    v_th: float = 4.0
    """Threshold, in units of the membrane potential."""
    beta: float = 3.6
    """By how much a spike raises an adaptive threshold, in units of the membrane potential."""
    gamma: float = 0.3
    """Height of the pseudo-derivative (dimensionless)."""
    n_refractory: int = 2
    """Length of the refractory period in steps, the spike's included."""
    delay_rec: int = 0
    """Longest delay of the recurrent synapses in ms, on top of the step that each spike takes: from
    neuron to neuron 0, 1, ... up to it, and again."""
    dropout: float = 0.3
    """Fraction of what each layer receives that is dropped."""

    batch_size: int = 4
    """Sentences per iteration."""
    n_lengths: int = 4
    """Lengths that batches are padded to: as many programs are compiled."""
    epochs: int = 24
    """Times that each sentence is learnt from."""
    learning_rate: float = 1e-2
    """Adam's, at the beginning."""
    schedule: Literal["cosine", "steps"] = "cosine"
    """How the learning rate goes on: to zero along a cosine, or times 0.3 again and again."""
    ramp: int = 0
    """Iterations in which it rises to what it is at the beginning."""
    step_every: int | None = None
    """Iterations from one reduction to the next (steps only); None for no reduction."""
    adam_epsilon: float = 1e-5
    """Adam's ε."""
    clip: float | None = None
    """Largest norm of the gradient; None for no clipping."""
    l2: float = 1e-5
    """Weight of half the sum of all squared weights."""
    rate_target_hz: float = 10.0
    """Firing rate that the penalty draws each neuron to, in Hz, for which a step takes 1 ms (lsnn
    only)."""
    rate_penalty: float = 5.0
    """Weight of the firing-rate penalty, of squared rates in (spikes/ms)²."""
    feedback_decay: float = 1e-3
    """Adaptive feedback: the fraction of B and of W_out lost at each iteration."""
    check_every: int = 1
    """Epochs between looks at the development sentences, and between checkpoints."""
    beam: int = 20
    """Transcriptions that the beam search keeps (ctc only)."""

    results: Path = Path("results/phonemes")
    """Folder of the results."""
    run: str = "{task}_{cell}_{learner}"
    """Name of this run's own folder in it."""

    @property
    def learner(self) -> str:
        """The rule in one word."""
        if self.frozen:
            return "frozen"
        return "bptt" if self.rule == "bptt" else self.feedback

    @property
    def folder(self) -> Path:
        return self.results / self.run.format(task=self.task, cell=self.cell, learner=self.learner)


OF_LSTM = {"repeats": 1, "tau_readout": None, "rate_penalty": 0.0}
OF_CTC = {
    "stack": 3,
    "tau_readout": None,
    "feedback_decay": 1e-4,
    "clip": 1.0,
    "l2": 0.0,
    "batch_size": 8,
    "epochs": 32,
    "learning_rate": 3e-3,
}
OF_REFERENCE_LSNN = {"v_th": 0.205, "beta": 0.184, "rate_penalty": 50.0}
REFERENCE_CTC = {
    **OF_CTC,
    "stack": 1,
    "rate_penalty": 0.0,
    "layers": 3,
    "batch_size": 8,
    "epochs": 60,
    "learning_rate": 1e-3,
    "schedule": "steps",
    "step_every": 6930,  # 15 epochs of TIMIT's 3696 sentences
}
PRESETS: dict[str, dict[tuple[Task, Cell], dict[str, Any]]] = {
    "default": {
        ("framewise", "lsnn"): {
            "n_lif": 300,
            "repeats": 2,
            "tau_v": 5.0,
            "tau_a": 80.0,
            "v_th": 2.1,
            "beta": 1.9,
            "delay_rec": 6,
            "dropout": 0.5,
            "rate_target_hz": 30.0,
        },
        ("framewise", "lstm"): OF_LSTM,
        ("ctc", "lsnn"): {
            **OF_CTC,
            "n_lif": 300,
            "tau_v": 5.0,  # a phoneme takes some 15 steps of 6 ms
            "v_th": 2.1,
            "beta": 1.9,
            "dropout": 0.5,
            "epochs": 24,
        },
        ("ctc", "lstm"): {**OF_LSTM, **OF_CTC},
    },
    "reference": {
        ("framewise", "lsnn"): {
            "n_lif": 300,
            "n_alif": 100,
            "dropout": 0.0,
            "batch_size": 32,
            "epochs": 80,
            "learning_rate": 1e-2,
            "ramp": 100,
            "schedule": "steps",
            "feedback_decay": 1e-2,
            **OF_REFERENCE_LSNN,
        },
        ("framewise", "lstm"): {
            **OF_LSTM,
            "n_lstm": 200,
            "dropout": 0.0,
            "batch_size": 32,
            "epochs": 30,
            "learning_rate": 1e-2,
            "schedule": "steps",
            "step_every": 500,
        },
        ("ctc", "lsnn"): {
            **OF_REFERENCE_LSNN, **REFERENCE_CTC,
            "n_lif": 80, "n_alif": 720, "tau_a": 500.0, "beta": 0.0737,
        },
        ("ctc", "lstm"): {**OF_LSTM, **REFERENCE_CTC, "n_lstm": 250},
    },
}  # fmt: skip
"""What differs from `Config`'s own defaults, by task and cell."""


def preset(name: str, task: Task, cell: Cell) -> Config:
    changes = dict(PRESETS[name][task, cell])
    if name != "default":
        changes["run"] = name + "_{task}_{cell}_{learner}"
    return Config(task=task, cell=cell, **changes)
