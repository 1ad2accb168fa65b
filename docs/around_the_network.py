"""The code of around_the_network.md. Run it: it asserts what the page says."""

# --8<-- [start:model]
import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from eprop import ALIF, BPTT, Dropout, EProp, Layer, Network, RandomFeedback

rule = EProp(RandomFeedback(jax.random.normal(jax.random.key(0), (60, 8))))


class Model(eqx.Module):
    encoder: eqx.nn.Linear
    network: Network
    decoder: eqx.nn.MLP

    def __call__(self, x):  # [time, batch, feature], as everywhere
        drive = jnp.tanh(jax.vmap(jax.vmap(self.encoder))(x))
        return jax.vmap(jax.vmap(self.decoder))(self.network(drive, rule).outputs)


@eqx.filter_jit
def step(model, state, x, y):
    gradients = eqx.filter_grad(lambda model: jnp.mean((model(x) - y) ** 2))(model)
    updates, state = optimizer.update(gradients, state)
    return eqx.apply_updates(model, updates), state


# --8<-- [end:model]
# --8<-- [start:train]
keys = jax.random.split(jax.random.key(1), 5)
model = Model(
    encoder=eqx.nn.Linear(2, 16, key=keys[0]),
    network=Network(ALIF(60, v_th=0.1), n_in=16, n_out=8, scale_readout=True, key=keys[1]),
    decoder=eqx.nn.MLP(8, 1, width_size=32, depth=1, key=keys[2]),
)
phase = jnp.arange(100)[:, None, None] / 15 + 6 * jax.random.uniform(keys[3], (8, 2))
x = jnp.sin(phase)  # two sines in each of eight examples ...
y = x.prod(-1, keepdims=True)  # ... and their product, to be found
optimizer = optax.adam(3e-3)
state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
for _ in range(300):
    model, state = step(model, state, x, y)
assert jnp.mean((model(x) - y) ** 2) < 0.3 * y.var()
# --8<-- [end:train]
network, drive = model.network, jnp.tanh(jax.vmap(jax.vmap(model.encoder))(x))


# --8<-- [start:reach]
def largest(gradients):
    return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradients))


def of_outputs(network, drive):
    return jnp.sum(network(drive, deaf).outputs ** 2)


def of_spikes(network, drive):
    return jnp.sum(network(drive, deaf).spikes ** 2)


deaf = EProp(RandomFeedback(jnp.zeros((60, 8))))  # no neuron hears of the readout's error
of_network, of_drive = jax.grad(of_outputs, argnums=(0, 1))(network, drive)
assert largest(of_network.w_out) > 0  # the readout learns all the same
assert largest(of_network.w_in) == 0 == largest(of_drive)  # neurons don't, nor what is before them
of_network, of_drive = jax.grad(of_spikes, argnums=(0, 1))(network, drive)
assert largest(of_network.w_in) > 0 < largest(of_drive)
# --8<-- [end:reach]


# --8<-- [start:heads]
def loss(network, drive, y, rate):
    run = network(drive, rule)
    drawn = jnp.mean((run.outputs[..., :1] - y) ** 2)  # a head on the first readout,
    smooth = jnp.mean(jnp.diff(run.outputs[..., 1:], axis=0) ** 2)  # one on the others,
    busy = jnp.mean((1000 * run.spikes.mean((0, 1)) - rate) ** 2)  # one on the spikes,
    charged = jnp.mean(run.states.v**2)  # and one on the states
    return drawn + 10 * smooth + 1e-4 * busy + 0.1 * charged


gradients = jax.grad(loss)(network, drive, y, rate=20.0)
# --8<-- [end:heads]
assert largest(gradients.w_in) > 0

# --8<-- [start:networks]
lower = Network(ALIF(50, v_th=0.1), n_in=16, n_out=1, key=keys[3])
upper = Network(ALIF(50, v_th=0.1), n_in=50, n_out=1, key=keys[4])


def of_two(networks):
    lower, upper = networks
    hidden = lower(drive, EProp())
    return jnp.mean((upper(hidden.spikes, EProp()).outputs - y) ** 2)


of_lower, of_upper = jax.grad(of_two)((lower, upper))
assert largest(of_lower.w_in) > 0  # the error came down
# --8<-- [end:networks]
# --8<-- [start:layers]
layers = [
    Layer(ALIF(50, v_th=0.1), n_in=n_in, key=key) for n_in, key in ((16, keys[3]), (50, keys[4]))
]
both = Network(layers, n_out=1, key=keys[4])


def of_layers(network, rule):
    return jnp.mean((network(drive, rule).outputs - y) ** 2)


b = jax.random.normal(jax.random.key(2), (100, 1))  # a row for each neuron of all layers
for_upper_only = b.at[:50].set(0)
of_lower, of_upper = jax.grad(of_layers)(both, EProp(RandomFeedback(b))).layers
assert largest(of_lower.below) > 0  # by its own rows of b
of_lower, of_upper_again = jax.grad(of_layers)(both, EProp(RandomFeedback(for_upper_only))).layers
assert largest(of_lower.below) == 0  # nothing came down
assert jnp.array_equal(of_upper.below.weights, of_upper_again.below.weights)
# --8<-- [end:layers]


# --8<-- [start:chunks]
def of_chunks(network, handed_on):
    state, first = network.run(network.init(batch=8), drive[:30], rule)
    _, rest = network.run(handed_on(state), drive[30:], rule)
    return jnp.mean(jnp.concatenate([first.outputs, rest.outputs]) ** 2)


def of_all(network):
    return jnp.mean(network(drive, rule).outputs ** 2)


def difference(g, h):
    return largest(g.w_in - h.w_in) / largest(h.w_in)


whole = jax.grad(of_all)(network)
assert difference(jax.grad(of_chunks)(network, lambda state: state), whole) < 1e-5
assert difference(jax.grad(of_chunks)(network, jax.lax.stop_gradient), whole) > 1e-2
# --8<-- [end:chunks]


# --8<-- [start:stream]
@eqx.filter_jit
def answer(network, state, x_t):
    state, run = network.run(state, x_t[None])
    return state, run.outputs[0]


state, answers = network.init(batch=8), []
for x_t in drive:  # one step as it comes
    state, y_t = answer(network, state, x_t)
    answers.append(y_t)
assert jnp.allclose(jnp.stack(answers), network(drive).outputs, atol=1e-5)
# --8<-- [end:stream]
assert largest(network(drive).outputs) > 0.1

# --8<-- [start:dropout]
forgetful = Network(ALIF(60, v_th=0.1), n_in=16, n_out=8, dropout=Dropout(0.2), key=keys[1])
one, other = (forgetful(drive, rule, key=key).outputs for key in (keys[2], keys[3]))
assert jnp.abs(one - other).max() > 0.1
assert jnp.array_equal(forgetful(drive).outputs, forgetful(drive, rule).outputs)  # no key: none
# --8<-- [end:dropout]

# The gradient with respect to the inputs is r_t W_inᵀ: that of autodiff with stopped spikes.
by_rules = [
    jax.grad(lambda drive, rule=rule: jnp.sum(network(drive, rule).outputs ** 2))(drive)
    for rule in (EProp(), BPTT(stop_z_gradients=True), BPTT())
]
assert jnp.abs(by_rules[0] - by_rules[1]).max() < 1e-4 * jnp.abs(by_rules[1]).max()
assert jnp.abs(by_rules[0] - by_rules[2]).max() > 1e-2 * jnp.abs(by_rules[2]).max()
