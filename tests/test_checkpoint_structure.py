"""A checkpoint knows what it is of: classes, static fields and functions, one changed at a time."""

import copy
import dataclasses
import functools
import subprocess
import sys
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import eprop
from eprop import checkpoints, structure
from eprop.checkpoints import CheckpointError
from tests.errors import assert_raises, check

KEY = jax.random.key(0)


def network(cell=None, **options):
    return eprop.Network(cell or eprop.ALIF(3, v_th=0.3), n_in=2, n_out=2, key=KEY, **options)


def squared(trajectory, targets):
    return jnp.sum((trajectory.outputs - targets) ** 2)


def instances():
    """One or more of every public class that can be in a state."""
    weights = np.ones((2, 3))
    nets = [
        network(eprop.LIF(3, v_th=[0.1, 0.2, 0.3], n_refractory=[1, 2, 3])),
        network(delay_rec=np.array([1, 2, 0]), dropout=eprop.Dropout(0.2), scale_readout=True),
        network(eprop.CurrentLIF(3), delay_line=eprop.ConcatenatedBuffer()),
        network(eprop.LSTM(3)),
        network([eprop.LeakyTanh(2), eprop.LIF(1)]),
        network(eprop.LIF(3, v_th=jnp.ones(3), surrogate=eprop.Exponential())),
        network(w_in=eprop.Sparse(weights.T, np.array([[0, 1]] * 3), n_pre=2)),
        network(eprop.LIF(8), w_in=eprop.Convolution(np.ones((1, 1, 1, 4)), (1, 2)), w_rec=None),
    ]
    learner = eprop.OnlineLearner(
        nets[0], squared, eprop.EProp(), optax.sgd(0.1), rate_penalty=eprop.RatePenalty()
    )
    trajectory = eprop.Trajectory(KEY, (eprop.LayerTrajectory(KEY, eprop.LIFState(KEY, KEY)),))
    return [
        *nets,
        learner,
        learner.init(),
        eprop.RewardLearner(
            nets[1],
            eprop.EProp(),
            optax.sgd(0.1),
            discount=0.9,
            rate_penalty=eprop.RatePenalty(),
        ),
        eprop.init_training(nets[0], eprop.BPTT(), optax.adam(0.1)),
        eprop.EProp(eprop.AdaptiveFeedback(np.ones((3, 2)), 0.1), window=3),
        eprop.EProp(eprop.RandomFeedback(np.ones((3, 2)))),
        eprop.FastSigmoid(),
        eprop.Arctan(),
        trajectory,
    ]


def inside(x):
    """All dataclasses in an object, however deep, with `rebuilt(new)`: the whole with a new one."""
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        yield x, lambda new: new
        for field in dataclasses.fields(x):
            for part, rebuilt in inside(getattr(x, field.name)):
                yield part, functools.partial(_with, x, field.name, rebuilt)
    elif isinstance(x, tuple):
        for i, item in enumerate(x):
            for part, rebuilt in inside(item):
                yield part, functools.partial(_with_item, x, i, rebuilt)


def _with(x, name, rebuilt, new):
    changed = copy.copy(x)
    object.__setattr__(changed, name, rebuilt(new))
    return changed


def _with_item(x, i, rebuilt, new):
    items = [rebuilt(new) if j == i else item for j, item in enumerate(x)]
    return type(x)(*items) if hasattr(x, "_fields") else tuple(items)


def another(value):
    """As little else as can be."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return float(np.nextafter(value, np.inf))
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, tuple) and value:
        return (*value[:-1], another(value[-1]))
    if callable(value):
        return functools.partial(value)
    return {None: 1.5, (): (1,)}.get(value, "another")


def static_fields(x):
    return [field.name for field in dataclasses.fields(x) if field.metadata.get("static")]


class TestEveryStaticField:
    def test_is_found(self, tmp_path):
        seen, every = set(), instances()
        for x in every:
            before = structure.describe(x)
            checkpoints.save(tmp_path / "a", x)
            for part, rebuilt in inside(x):
                for name in static_fields(part):
                    value = getattr(part, name)
                    changed = rebuilt(_with(part, name, lambda new: new, another(value)))
                    found = structure.first_difference(before, structure.describe(changed))
                    assert name in found and "there" in found, (type(part), name)
                    if (type(part), name) not in seen:  # the message is the checkpoint's
                        with pytest.raises(CheckpointError) as caught:
                            checkpoints.load(tmp_path / "a", changed)
                        assert found in str(caught.value)
                    seen.add((type(part), name))
            checkpoints.load(tmp_path / "a", x)
        classes = {type(part) for x in every for part, _ in inside(x)}
        public = [x for x in vars(eprop).values() if isinstance(x, type)]
        modules = [x for x in public if issubclass(x, eqx.Module) and "Abstract" not in x.__name__]
        assert set(modules) <= classes
        assert len(seen) > 40

    def test_of_one_neuron(self):
        """Of a hundred thousand, in as many characters of the message as it takes."""
        v_th = np.full(100_000, 0.3)
        saved = structure.describe(eprop.LIF(100_000, v_th=v_th))
        v_th[70_000] = np.nextafter(0.3, 1)
        found = structure.first_difference(saved, structure.describe(eprop.LIF(100_000, v_th=v_th)))
        assert found.startswith("v_th.number = (0.3, 0.3") and "SHA-256" in found
        assert len(found) < 500


class Own(eqx.Module):
    w: jax.Array
    constant: object = eqx.field(static=True, default=None)
    function: object = jnp.tanh


def scaled(by):
    return lambda x: by * x


def own(**fields):
    with warnings.catch_warnings():  # of arrays in a static field
        warnings.simplefilter("ignore", UserWarning)
        return Own(jnp.ones(2), **fields)


class TestRefused:
    @check(
        {
            "threshold": (
                (network(), network(eprop.ALIF(3, v_th=9.0, tau_v=1.0))),
                CheckpointError,
                ["layers.0.neurons.cells.0.tau_v.number = 20 there, 1 here"],
            ),
            "cell": (
                (network(), network(eprop.LIF(3, v_th=0.3))),
                CheckpointError,
                [".cells.0 = eprop.cells.alif.ALIF there, eprop.cells.lif.LIF here"],
            ),
            "trained, and of another shape": (
                (network(), network(eprop.ALIF(3, v_th=jnp.ones(())))),
                CheckpointError,
                ["v_th = ", "Fixed there", "TrainedPositive here", "it has layers.0.below.weights"],
            ),
            "function": (
                (own(function=jnp.tanh), own(function=jnp.sin)),
                CheckpointError,
                ["function = ", "tanh there", "sin here"],
            ),
            "what a function closes over": (
                (own(function=scaled(2.0)), own(function=scaled(3.0))),
                CheckpointError,
                ["function.by = 2 there, 3 here"],
            ),
            "array of NumPy": (
                (own(constant=np.zeros(3)), own(constant=np.array([0, 0, 1e-300]))),
                CheckpointError,
                ["constant = float64[3] of SHA-256"],
            ),
            "dtype": (
                (own(constant=np.zeros(2, np.float32)), own(constant=np.zeros(2))),
                CheckpointError,
                ["constant = float32[2]", "float64[2]"],
            ),
            "tuple or list": (
                ([jnp.ones(2)], (jnp.ones(2),)),
                CheckpointError,
                ["its class = list there, tuple here", "Give as `like` all that was saved"],
            ),
            "text": (("a", "b"), CheckpointError, ["'a' there, 'b' here"]),
            "optimiser without leaves": (
                (optax.EmptyState(), optax.MaskedNode()),
                CheckpointError,
                ["EmptyState there", "MaskedNode here"],
            ),
        }
    )
    def test_with_the_name_of_the_field(self, tmp_path, given, error, parts):
        saved, like = given
        checkpoints.save(tmp_path / "a", saved)
        assert_raises(lambda: checkpoints.load(tmp_path / "a", like), error, parts)
        checkpoints.load(tmp_path / "a", saved)


class TestAccepted:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: own(constant={"b": (1, [2.0, None]), "a": {"x", "y"}}),
            lambda: own(constant=float("nan")),
            lambda: own(constant=np.arange(3)),
            lambda: own(function=scaled(jnp.ones(2))),
            lambda: own(function=functools.partial(scaled(2.0), 3)),
            lambda: own(constant=np.float64(2)),
            lambda: own(constant=object()),  # nothing can be told of it but its class
        ],
    )
    def test_what_is_the_same_in_another_process(self, tmp_path, make):
        checkpoints.save(tmp_path / "a", make())
        checkpoints.load(tmp_path / "a", make())

    def test_equal_numbers(self, tmp_path):
        checkpoints.save(tmp_path / "a", own(constant=1))
        checkpoints.load(tmp_path / "a", own(constant=1.0))
        with pytest.raises(CheckpointError, match="constant = 1 there, True here"):
            checkpoints.load(tmp_path / "a", own(constant=True))

    def test_functions_that_call_each_other(self, tmp_path):
        def f(x):
            return g(x)

        def g(x):
            return f(x)

        checkpoints.save(tmp_path / "a", own(function=f))
        checkpoints.load(tmp_path / "a", own(function=f))

    def test_old_format(self, tmp_path):
        checkpoints.save(tmp_path / "a", own())
        content = (tmp_path / "a").read_bytes()
        (tmp_path / "a").write_bytes(content.replace(b"checkpoint 2", b"checkpoint 1", 1))
        with pytest.raises(CheckpointError, match=r"format '1', or .* reads format '2'"):
            checkpoints.load(tmp_path / "a", own())


SCALE = 2.0


def of_global(x):
    return SCALE * x


class TestFunctions:
    """What `fit` compares of a step."""

    def differ(self, f, g):
        return structure.first_difference(
            structure.describe_function("step", f), structure.describe_function("step", g)
        )

    def test_constants_in_the_code(self):
        def make(source):
            return eval(source)

        assert "step.code" in self.differ(make("lambda x: 2 * x"), make("lambda x: 3 * x"))
        assert "step.code" in self.differ(make("lambda x: 2 * x"), make("lambda x: 2 + x"))
        assert self.differ(make("lambda x: 2 * x"), make("lambda x:   2 * x  # as it was")) == ""

    def test_global_numbers(self, monkeypatch):
        before = structure.describe_function("step", of_global)
        monkeypatch.setitem(globals(), "SCALE", 3.0)
        after = structure.describe_function("step", of_global)
        assert structure.first_difference(before, after) == "step.SCALE = 2 there, 3 here"

    def test_through_wrappers(self):
        for wrapper in (jax.jit, eqx.filter_jit, functools.partial, lambda f: lambda x: f(x)):
            assert "by = 2 there, 3 here" in self.differ(wrapper(scaled(2.0)), wrapper(scaled(3.0)))
            assert self.differ(wrapper(scaled(2.0)), wrapper(scaled(2.0))) == ""

    @pytest.mark.parametrize(
        ("make", "part"),
        [
            (optax.adam, "= -0.1 there, -0.2 here"),
            (lambda rate: optax.chain(optax.clip(1.0), optax.sgd(rate)), "-0.1 there, -0.2 here"),
            (
                lambda rate: optax.adam(optax.linear_schedule(rate, 0.0, 10)),
                "= 0.1 there, 0.2 here",
            ),
            (lambda b1: optax.adam(0.1, b1=b1), "b1 = 0.1 there, 0.2 here"),
        ],
    )
    def test_optimizers(self, make, part):
        def step(number):
            return eprop.training_step(squared, make(number))

        assert part in self.differ(step(0.1), step(0.2))
        assert self.differ(step(0.1), step(0.1)) == ""

    def test_another_python_says_nothing(self):
        fields = structure.describe_function("step", scaled(2.0))
        assert [field.path for field in fields] == ["step", "step.code", "step.by"]
        old = [
            f._replace(value="0123 (Python 3.10)") if f.path == "step.code" else f for f in fields
        ]
        assert structure.first_difference(old, fields) == ""
        changed = [f._replace(value=f.value[1:]) if f.path == "step.code" else f for f in fields]
        assert "step.code" in structure.first_difference(changed, fields)


def test_a_cell_of_a_script_is_known_to_who_imports_it(tmp_path):
    """`python train.py` saves it; another script loads it, with the class it has from `train`."""
    (tmp_path / "train_own.py").write_text(
        "import eprop, jax\n"
        "class OwnLIF(eprop.LIF):\n"
        "    pass\n"
        "def build(cell=OwnLIF):\n"
        "    return eprop.Network(cell(3), n_in=2, n_out=1, key=jax.random.key(0))\n"
        "if __name__ == '__main__':\n"
        "    eprop.checkpoints.save('own', build())\n"
    )
    (tmp_path / "use_own.py").write_text(
        "import eprop, train_own\n"
        "eprop.checkpoints.load('own', like=train_own.build())\n"
        "class OwnLIF(eprop.LIF):\n"
        "    pass\n"
        "try:\n"
        "    eprop.checkpoints.load('own', like=train_own.build(OwnLIF))\n"
        "except eprop.checkpoints.CheckpointError as error:\n"
        "    print(error)\n"
    )
    printed = [
        subprocess.run(
            [sys.executable, name], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
        for name in ("train_own.py", "use_own.py")
    ]
    assert "train_own.OwnLIF there, use_own.OwnLIF here" in printed[1]
