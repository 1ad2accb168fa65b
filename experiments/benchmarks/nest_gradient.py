"""E-prop's gradient by NEST, of the network that `peers` runs.

NEST changes the weights itself, after a batch of examples one behind the other: each an update
interval, at whose beginning all states are zero, with the loss of its last steps, the learning
window. By gradient descent at a rate of 1 a weight loses its gradient, the mean over the batch.

To know of NEST 3.10:

- Each connection takes a step, also from the generators to what plays the inputs, to the readouts,
  and from one readout to the other for their softmax: targets are to come as much later.
- Its filter of eligibility traces is (1 - κ) times the paper's, which is divided out.
- Input spikes in the first two steps of an example count otherwise, so that there may be none.
- A synapse learns of the last example when its presynaptic neuron spikes next. So all of them are
  made to spike at the end.
"""

from typing import Any

import numpy as np

import eprop

from .gradient_cost import BETA, DT, GAMMA, N_REFRACTORY, TAU_A, TAU_OUT, TAU_V, V_TH, Workload

SYNAPSE = "eprop_synapse_bsshslm_2020"
DELAYS = 4 * DT
"""From an input's spike to a loss that it changes, in ms, beyond those of the equations."""


def gradients(
    nest: Any,
    workload: Workload,
    network: eprop.Network,
    inputs: np.ndarray,
    labels: np.ndarray,
    threads: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of W_in, W_rec and W_out, by symmetric feedback; NEST computes in float64.

    Args:
        nest: The package.
        inputs: Booleans `[n_steps, batch, n_in]`, none in the first two steps.
        labels: `[batch]`, 0 or 1.
        threads: That NEST shares the neurons among.
    """
    example = workload.n_steps * DT
    nest.ResetKernel()
    nest.verbosity = nest.VerbosityLevel.ERROR
    nest.set(
        resolution=DT,
        local_num_threads=threads,
        eprop_update_interval=example,
        eprop_learning_window=workload.n_recall * DT,
        eprop_reset_neurons_on_update=True,
    )
    sources = nest.Create("spike_generator", workload.n_in)
    players = nest.Create("parrot_neuron", workload.n_in)
    neurons = _neurons(nest, workload)
    readouts = nest.Create(
        "eprop_readout_bsshslm_2020", 2, {**MEMBRANE, "tau_m": TAU_OUT, "loss": "cross_entropy"}
    )
    answers = nest.Create("step_rate_generator", 2)
    finally_ = nest.Create("spike_generator")

    def connect(pre: Any, post: Any, model: str, how: str = "all_to_all", **of_synapse: Any):
        rule = {"rule": how, "allow_autapses": False}
        nest.Connect(pre, post, rule, {"synapse_model": model, "delay": DT, **of_synapse})

    descent = {"type": "gradient_descent", "eta": 1.0, "batch_size": workload.batch}
    bounds = {"Wmin": -1e9, "Wmax": 1e9}
    nest.SetDefaults(SYNAPSE, {"optimizer": {**descent, **bounds}, "average_gradient": True})
    w_rec = np.where(np.eye(workload.n, dtype=bool), 0.0, network.w_rec)
    w_in, w_rec, w_out = (np.asarray(w, float) for w in (network.w_in, w_rec, network.w_out))
    learned = ((players, neurons, w_in), (neurons, neurons, w_rec), (neurons, readouts, w_out))
    for pre, post, w in learned:
        connect(pre, post, SYNAPSE, weight=w.T, tau_m_readout=TAU_OUT)
    connect(readouts, neurons, "eprop_learning_signal_connection_bsshslm_2020", weight=w_out)
    connect(readouts, readouts, "rate_connection_delayed", receptor_type=1, weight=1.0)
    connect(answers, readouts, "rate_connection_delayed", "one_to_one", receptor_type=2)
    connect(sources, players, "static_synapse", "one_to_one")
    connect(finally_, players + neurons, "static_synapse", weight=1000.0)

    one_by_one = inputs.swapaxes(0, 1).reshape(-1, workload.n_in)
    times = DT * np.arange(1, 1 + len(one_by_one))  # a generator's first step is 1
    sources.set([{"spike_times": times[of_one]} for of_one in one_by_one.T])
    begins = DELAYS + example * np.arange(workload.batch)
    answers.set(
        [{"amplitude_times": begins, "amplitude_values": 1.0 * (labels == k)} for k in range(2)]
    )
    end = DELAYS + example * workload.batch
    finally_.set({"spike_times": [end + 2 * DT]})
    nest.Simulate(end + 5 * DT)

    of_in, of_rec, of_out = (w - _weights(nest, pre, post, w) for pre, post, w in learned)
    filtered = 1 - np.exp(-DT / TAU_OUT)
    return of_in / filtered, of_rec / filtered, of_out


MEMBRANE = {"C_m": 1.0, "E_L": 0.0, "V_m": 0.0, "I_e": 0.0, "regular_spike_arrival": True}


def _neurons(nest: Any, workload: Workload) -> Any:
    """Half of them LIF, half ALIF."""
    lif = {
        **MEMBRANE,
        "tau_m": TAU_V,
        "V_th": V_TH,
        "t_ref": N_REFRACTORY * DT,
        "c_reg": 0.0,
        "surrogate_gradient_function": "piecewise_linear",
        "surrogate_gradient_height": GAMMA / V_TH,
        "surrogate_gradient_width": V_TH,
        "flush_event_send_interval": workload.n_steps * DT,
    }
    n_lif = workload.n // 2
    return nest.Create("eprop_iaf_bsshslm_2020", n_lif, lif) + nest.Create(
        "eprop_iaf_adapt_bsshslm_2020",
        workload.n - n_lif,
        {**lif, "adapt_tau": TAU_A, "adapt_beta": BETA, "adaptation": 0.0},
    )


def _weights(nest: Any, pre: Any, post: Any, before: np.ndarray) -> np.ndarray:
    """`[pre, post]` as they are now; those that are no synapses as `before`."""
    found = nest.GetConnections(pre, post, SYNAPSE).get(["source", "target", "weight"])
    i = np.array(found["source"]) - pre.tolist()[0]
    j = np.array(found["target"]) - post.tolist()[0]
    after = before.copy()
    after[i, j] = found["weight"]
    return after
