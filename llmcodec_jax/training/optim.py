"""One optimiser group per part; every parameter belongs to exactly one (method.md 7)."""

from __future__ import annotations

import collections
import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from llmcodec_jax.errors import UsageError
from llmcodec_jax.ops.fields import fixed
from llmcodec_jax.training.schedules import Schedule


@dataclasses.dataclass(frozen=True)
class Group:
    """How the parameters whose path matches `pattern` are trained."""

    name: str
    # Regular expression, matched against the whole "a/b/c" path.
    pattern: str = fixed()
    optimizer: str = fixed("adamw")  # "sgd", or "muon": orthogonal steps for layers' matrices
    learning_rate: float = 1e-4  # peak, after warm-up
    b1: float = 0.9  # Adam's first decay, or SGD's momentum
    b2: float = 0.99  # Adam's second decay
    weight_decay: float = 0.0  # decoupled for adamw, added to the gradient for sgd
    clip: float = 15.0  # largest gradient norm of the whole group
    start: str = ""  # name of the schedule's start before which it rests: "codec_start"
    warmup: float = 0.0  # fraction of the run
    final: float = 0.0  # learning rate at the end, as a fraction of the peak

    def __post_init__(self):
        if self.optimizer not in ("adamw", "sgd", "muon"):
            raise UsageError(f"optimiser of group {self.name!r} is 'adamw', 'muon' or 'sgd'")

    def rate(self, step, schedule: Schedule):
        """Learning rate at a step."""
        start = schedule.start_of(self.start)
        return schedule.learning_rate(step, self.learning_rate, start, self.warmup, self.final)


def path_name(path) -> str:
    """Key path of a pytree leaf as "a/b/c"."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def assign(params, groups: tuple[Group, ...]):
    """Tree of group names. Raises UsageError naming every parameter claimed by none or by two."""
    patterns = {g.name: re.compile(g.pattern) for g in groups}
    problems, used = [], collections.Counter()

    def owner(path, _):
        name = path_name(path)
        owners = [g for g, p in patterns.items() if p.fullmatch(name)]
        used.update(owners)
        if len(owners) != 1:
            problems.append(f"  {name}: {' and '.join(owners) or 'no group'}")
        return owners[0] if owners else ""

    labels = jax.tree_util.tree_map_with_path(owner, params)
    problems += [f"  group {g!r} claims no parameter" for g in patterns if not used[g]]
    if problems:
        shown = problems[:20] + [f"  ... and {len(problems) - 20} more"] * (len(problems) > 20)
        raise UsageError("optimiser groups must cover every parameter once:\n" + "\n".join(shown))
    return labels


def norms(tree, labels) -> dict[str, jax.Array]:
    """L2 norm of each group's leaves, float32."""
    squares: dict[str, Any] = collections.defaultdict(float)
    for leaf, label in zip(jax.tree.leaves(tree), jax.tree.leaves(labels), strict=True):
        squares[label] += jnp.sum(jnp.square(leaf.astype(jnp.float32)))
    return {label: jnp.sqrt(total) for label, total in squares.items()}


def _from_start(inner, group: Group, schedule: Schedule) -> optax.GradientTransformationExtraArgs:
    """Applies the group's learning rate at `step`; before the group's start nothing moves."""
    begin = schedule.step_of(schedule.start_of(group.start))

    def update(updates, state, params=None, *, step, **_):
        moved, new_state = inner.update(updates, state, params)
        # Scalars shared by all leaves are computed once, not inside every leaf's kernel.
        started, rate = jax.lax.optimization_barrier((step >= begin, group.rate(step, schedule)))
        moved = jax.tree.map(lambda u: jnp.where(started, -rate * u, 0).astype(u.dtype), moved)
        kept = jax.tree.map(lambda new, old: jnp.where(started, new, old), new_state, state)
        return moved, kept

    transform: Any = update  # takes `step` by name, which optax's type does not say
    return optax.GradientTransformationExtraArgs(inner.init, transform)


STACKED = ("layers", "blocks")
"""Names of stacks whose layers `nn.scan` keeps on a leading axis."""


def _matrices(params):
    """Axes that Muon turns; None leaves a leaf to Adam.

    In a layer stack a kernel is one matrix a layer, [L, in, out]; elsewhere a kernel of three axes
    is a convolution's, [taps, in, out]: one matrix from taps and inputs to outputs. First and last
    layers, [in, out], are Adam's.
    """

    def axes(path, leaf):
        *folders, name = path_name(path).split("/")
        if name != "kernel" or leaf.ndim != 3:
            return None
        inputs = 1 if set(STACKED) & set(folders) else (0, 1)
        return optax.contrib.MuonDimensionNumbers(inputs, 2)

    return jax.tree_util.tree_map_with_path(axes, params)


def _direction(group: Group) -> optax.GradientTransformation:
    """Unit-sized steps: Adam's, or Muon's scaled to Adam's size so that one rate serves both."""
    if group.optimizer == "adamw":
        return optax.scale_by_adam(b1=group.b1, b2=group.b2)
    return optax.chain(
        optax.contrib.muon(
            learning_rate=1.0,
            consistent_rms=0.2,
            adam_b1=group.b1,
            adam_b2=group.b2,
            muon_weight_dimension_numbers=_matrices,
        ),
        optax.scale(-1.0),
    )


def _chain(group: Group) -> optax.GradientTransformation:
    if group.optimizer != "sgd":
        return optax.chain(
            optax.clip_by_global_norm(group.clip),
            _direction(group),
            optax.add_decayed_weights(group.weight_decay),
        )
    return optax.chain(
        optax.clip_by_global_norm(group.clip),
        optax.add_decayed_weights(group.weight_decay),
        optax.trace(decay=group.b1),
    )


def optimiser(
    params, groups: tuple[Group, ...], schedule: Schedule
) -> optax.GradientTransformationExtraArgs:
    """optax transformation over all groups; `update` takes the run's step as `step=`.

    The step comes from the train state rather than from optax's own counters, so that skipped
    updates do not shift any schedule.
    """
    labels = assign(params, groups)
    chains: dict[Any, optax.GradientTransformation] = {
        g.name: _from_start(_chain(g), g, schedule) for g in groups
    }
    return optax.multi_transform(chains, labels)
