"""The reference implementation's cases (golden/README.md) as networks of this package."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import eprop
from eprop import losses

FOLDER = Path(__file__).parent / "golden"
NAMES = sorted(path.stem for path in FOLDER.glob("*lif*.npz"))
"""The spiking cells' cases; the LSTM's is that of `tests/test_lstm.py`."""


class Golden(NamedTuple):
    """One case. `record` is as stored, but its sequences are time-major."""

    name: str
    record: dict[str, Any]
    network: eprop.Network
    inputs: np.ndarray
    targets: Any
    loss: Callable
    feedback: eprop.AbstractFeedback


def load(name: str) -> Golden:
    with np.load(FOLDER / f"{name}.npz") as file:
        record = {key: file[key] for key in file.files}
    layout = json.loads(str(record["layout"]))
    weights = {"w_in", "w_rec", "w_out", "B_out"}
    for key, value in record.items():
        if value.ndim >= 2 and key not in weights and not key.startswith("g_"):
            record[key] = np.swapaxes(value, 0, 1)
    build = _light_lif if "pre_*" in layout else _elig_alif
    cell, loss, tau_out = build(record)
    network = eprop.Network(
        cell,
        n_in=int(record["n_in"]),
        n_out=int(record["n_out"]),
        tau_out=float(tau_out),
        w_in=record["w_in"],
        w_rec=record["w_rec"],
        w_out=record["w_out"],
        scale_readout=True,
    )
    random = record.get("feedback") == "random"
    feedback = eprop.RandomFeedback(record["B_out"]) if random else eprop.SymmetricFeedback()
    return Golden(name, record, network, record["inputs"], record["target"], loss, feedback)


def _elig_alif(r):
    cell = eprop.ALIF(
        int(r["n_rec"]),
        tau_v=r["tau_v"],
        v_th=r["thr"],
        n_refractory=r["n_ref"],
        dt=float(r["dt"]),
        tau_a=r["tau_a"],
        beta=r["beta"],
        surrogate=eprop.Triangular(gamma=float(r["gamma"])),
    )
    return (
        cell,
        {"mean": _mean, "half_sum": _half_sum, "cls": _class}[str(r["kind"])](r),
        r["tau_out"],
    )


def _light_lif(r):
    cell = eprop.LIF(
        int(r["n_rec"]),
        tau_v=r["tau"],
        v_th=r["thr"],
        n_refractory=0,
        dt=float(r["dt"]),
        scale_current=True,
        surrogate=eprop.Triangular(gamma=float(r["gamma"])),
    )

    def loss(trajectory, target):
        error = trajectory.outputs - target  # one target for all examples
        rates = losses.firing_rate_penalty(
            trajectory.spikes, float(r["reg_rate_hz"]), dt=float(r["dt"])
        )
        return 0.5 * jnp.sum(jnp.square(error)) + 0.5 * float(r["reg"]) * rates

    return cell, loss, r["tau"]


def _mean(r):
    def loss(trajectory, target):
        return losses.mean_squared_error(trajectory.outputs, target, n_steps=float(r["T"]))

    return loss


def _half_sum(r):
    def loss(trajectory, target):
        return 0.5 * jnp.sum(jnp.square(trajectory.outputs - target))

    return loss


def _class(r):
    mask = np.arange(int(r["T"])) >= int(r["T"]) - int(r["n_last"])

    def loss(trajectory, label):
        error = losses.softmax_cross_entropy(trajectory.outputs, label, mask)
        rates = losses.firing_rate_penalty(
            trajectory.spikes, float(r["reg_rate_hz"]), dt=float(r["dt"])
        )
        return error + float(r["reg_f"]) * rates

    return loss
