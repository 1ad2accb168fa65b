"""What a network acts in: environments written in JAX, and Gymnasium's."""

from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from . import checks

__all__ = [
    "AbstractEnvironment",
    "GymnasiumEnvironments",
    "Situation",
    "Transition",
    "VectorTransition",
    "reset",
]


class Transition(NamedTuple):
    """What a step of an `AbstractEnvironment` comes to."""

    state: Any
    x: Shaped[Array, "steps n_in"]
    """What the network sees next, at the end of an episode of the state that it ended in."""
    reward: Float[Array, ""]
    terminated: Bool[Array, ""]
    """Whether the episode is over: there is no reward to come."""
    truncated: Bool[Array, ""]
    """Whether it is broken off, as by a limit of time."""


TRANSITION_AXES = Transition._make((0, 1, 0, 0, 0))
"""Where each has the axis of environments, of many side by side."""


class AbstractEnvironment(eqx.Module):
    """An environment written in JAX: one, of which `RewardLearner.rollout` runs many.

    What the network sees until its next decision is `x` `[steps, n_in]`: the environment encodes
    its own observations, as spikes or numbers. `n_actions` is how many choices there are.
    """

    n_actions: eqx.AbstractVar[int]

    @abstractmethod
    def reset(self, key: PRNGKeyArray) -> tuple[Any, Shaped[Array, "steps n_in"]]:
        """The state at the beginning of an episode, any pytree of arrays, and x."""

    @abstractmethod
    def step(self, state: Any, action: Int[Array, ""], key: PRNGKeyArray) -> Transition:
        """What an action, from 0 on, comes to. It need not begin anew after an end."""


class Situation(NamedTuple):
    """Where environments side by side are, before the next decision."""

    state: Any
    """With a leading axis of environments on each array."""
    x: Shaped[Array, "steps batch n_in"]


def reset(environment: AbstractEnvironment, batch: int, key: PRNGKeyArray) -> Situation:
    """`batch` environments, each at the beginning of an episode of its own."""
    checks.instance(
        "environment", environment, AbstractEnvironment, "a subclass of AbstractEnvironment"
    )
    keys = jax.random.split(key, checks.positive_int("batch", batch))
    return Situation(*jax.vmap(environment.reset, out_axes=(0, 1))(keys))


def check_rollout(environment: AbstractEnvironment, situation: Situation, n_actions: int) -> None:
    """`ValueError` or `TypeError` for an environment that is not of these actions or this
    situation, or whose steps are of another kind than its beginnings.
    """
    if environment.n_actions != n_actions:
        raise ValueError(
            f"the environment has n_actions = {environment.n_actions}, but the network "
            f"{n_actions}: give it a readout for each, and one for the value"
        )
    key, batch = jax.random.key(0), situation.x.shape[1]
    action = jax.ShapeDtypeStruct((), np.int32)
    start = jax.eval_shape(environment.reset, key)
    found = jax.eval_shape(environment.step, start[0], action, key)
    checks.instance("what step returns", found, Transition, "Transition(state, x, reward, ...)")
    begun = jax.eval_shape(lambda key: reset(environment, batch, key), key)
    for name, given, needed in [
        ("step of the environment gives state and x", (found.state, found.x), start),
        ("the situation has state and x", (situation.state, situation.x), tuple(begun)),
    ]:
        if _kinds(given) != _kinds(needed):
            raise ValueError(
                f"{name} {_kinds(given)[1]}, but reset gives {_kinds(needed)[1]}, of structure "
                f"{_kinds(needed)[0]}"
            )
    for name, like in [("reward", float), ("terminated", bool), ("truncated", bool)]:
        shape, dtype = _kinds(getattr(found, name))[1][0]
        if shape != () or (dtype == "bool") != (like is bool) or dtype.startswith("complex"):
            raise TypeError(
                f"step of the environment gives a {name} of shape {shape} and dtype {dtype}, but "
                f"one {like.__name__} is needed"
            )


def _kinds(tree: Any) -> tuple[Any, list[tuple[tuple[int, ...], str]]]:
    """The structure, and shape and dtype of each leaf."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(np.shape(x), str(jax.numpy.result_type(x))) for x in leaves]


class VectorTransition(NamedTuple):
    """What a step of a `GymnasiumEnvironments` comes to, for `RewardLearner.learn`."""

    observations: Any
    """What is to be seen next: of an episode that has ended, the first of the next one."""
    after: Any
    """What came after the decision: of an episode that has ended, its last observation."""
    rewards: Float[np.ndarray, " batch"]
    terminated: Bool[np.ndarray, " batch"]
    truncated: Bool[np.ndarray, " batch"]
    counts: Bool[np.ndarray, " batch"]
    """False where the environment began anew in this step, and took no notice of the action."""


class GymnasiumEnvironments:
    """Vector environments of Gymnasium, whichever way they begin anew (`AutoresetMode`).

        envs = GymnasiumEnvironments(gymnasium.make_vec("CartPole-v1", num_envs=16))
        observations = envs.reset(seed=0)
        while True:
            state, actions = learner.act(state, encode(observations))
            step = envs.step(actions)
            state, info = learner.learn(
                state, step.rewards, step.terminated, step.truncated,
                after=encode(step.after), counts=step.counts,
            )
            observations = step.observations

    A mode of "next step" spends a step on beginning anew, which does not count; "same step" tells
    the last observation beside the first of the next episode; where it is "disabled", environments
    are told to begin anew here.

    Raises `TypeError` for what is no vector environment, or has other actions than a number of
    choices, and `ValueError` for an autoreset mode that is none of these.
    """

    def __init__(self, environments: Any):
        """**Arguments:** `environments`: as from `gymnasium.make_vec(name, num_envs=...)`."""
        try:
            from gymnasium.spaces import Discrete
            from gymnasium.vector import AutoresetMode, VectorEnv
        except ImportError as error:
            raise ImportError("Gymnasium is missing: pip install 'eprop[rl]'") from error
        checks.instance(
            "environments", environments, VectorEnv, 'gymnasium.make_vec("CartPole-v1", num_envs=8)'
        )
        space = environments.single_action_space
        if not isinstance(space, Discrete) or space.start != 0:
            raise TypeError(
                f"the environments' action space is {space}, but Discrete(n), from 0 on, is needed"
            )
        mode = environments.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise ValueError(
                f"the environments' autoreset mode is {mode!r}, so it is not known what they show "
                f"after an episode's end: set environments.metadata['autoreset_mode'] to one of "
                f"{', '.join(map(str, AutoresetMode))}"
            )
        self.environments, self.mode, self._modes = environments, mode, AutoresetMode
        self.batch: int = environments.num_envs
        self.n_actions = int(space.n)
        self._ended = np.zeros(self.batch, bool)

    def reset(self, seed: int | None = None) -> Any:
        """The first observations."""
        self._ended = np.zeros(self.batch, bool)
        return self.environments.reset(seed=seed)[0]

    def step(self, actions: Any) -> VectorTransition:
        """One step of all environments.

        Raises `ValueError` for actions that are none, or not one for each environment.
        """
        actions = np.asarray(actions)
        if actions.shape != (self.batch,) or actions.dtype.kind not in "iu":
            raise ValueError(
                f"actions have shape {actions.shape} and dtype {actions.dtype}, but an integer for "
                f"each of the {self.batch} environments is needed"
            )
        if not ((actions >= 0) & (actions < self.n_actions)).all():
            raise ValueError(f"actions = {actions} must be from 0 to {self.n_actions - 1}")
        began_anew = (
            self._ended if self.mode == self._modes.NEXT_STEP else np.zeros_like(self._ended)
        )
        observations, rewards, terminated, truncated, info = self.environments.step(actions)
        terminated, truncated = np.array(terminated, bool), np.array(truncated, bool)
        self._ended = terminated | truncated
        after = observations = jax.tree.map(np.array, observations)  # they may be written to
        if self._ended.any() and self.mode == self._modes.SAME_STEP:
            after = _with_last(observations, info["final_obs"], self._ended)
        elif self._ended.any() and self.mode == self._modes.DISABLED:
            options = {"reset_mask": self._ended.copy()}
            observations = self.environments.reset(options=options)[0]
            observations = jax.tree.map(np.array, observations)
        rewards = np.asarray(rewards, float)
        return VectorTransition(
            observations, after, rewards, terminated, truncated, counts=~began_anew
        )


def _with_last(observations: Any, last: Any, ended: Bool[np.ndarray, " batch"]) -> Any:
    """The observations, those of episodes that have ended replaced by their last ones."""
    after = jax.tree.map(np.array, observations)
    for i in np.flatnonzero(ended):
        of_one = last[i] if isinstance(last, np.ndarray) else jax.tree.map(lambda x: x[i], last)  # noqa: B023
        jax.tree.map(lambda into, x: into.__setitem__(i, x), after, of_one)  # noqa: B023
    return after
