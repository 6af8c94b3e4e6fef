"""Work in a traced function and traffic in a compiled one, loops counted as often as they run.

XLA's own cost analysis counts a loop's body once; the language model is a loop over layers.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


@dataclasses.dataclass(frozen=True)
class Work:
    """Matrix products and convolutions: FLOPs, and bytes of their operands and results."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def times(self, n: float) -> Work:
        return Work(n * self.flops, n * self.bytes)


def _size(aval) -> int:
    return math.prod(aval.shape) * aval.dtype.itemsize


def _product(equation) -> Work:
    """Work of one dot_general or conv_general_dilated."""
    left, right = (v.aval for v in equation.invars[:2])
    out = equation.outvars[0].aval
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        inner = math.prod(left.shape[axis] for axis in contracted)
    else:
        numbers = equation.params["dimension_numbers"]
        inner = math.prod(right.shape) // right.shape[numbers.rhs_spec[0]]
        # Gradients of strided convolutions slide over zeros that no device multiplies.
        inner /= math.prod(equation.params["lhs_dilation"])
    return Work(2.0 * math.prod(out.shape) * inner, sum(map(_size, (left, right, out))))


def _inner(equation) -> Iterator[Jaxpr]:
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def work(jaxpr: Jaxpr) -> Work:
    """Work of a jaxpr. Scans count all their turns; of a conditional the cheapest branch counts,
    because the step's conditionals are for what happens rarely (the R1 penalty, revivals)."""
    total = Work()
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in ("dot_general", "conv_general_dilated"):
            total += _product(equation)
        elif name == "cond":
            branches = [work(b.jaxpr) for b in equation.params["branches"]]
            total += min(branches, key=lambda w: w.flops)
        else:
            turns = equation.params["length"] if name == "scan" else 1
            if name == "shard_map":
                turns = equation.params["mesh"].size
            for inner in _inner(equation):
                total += work(inner).times(turns)
    return total


def traced_work(function, *args) -> Work:
    """Work of `function(*args)`; arrays or shapes, nothing is run."""
    return work(jax.make_jaxpr(function)(*args).jaxpr)


KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_ITEM_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_SHAPE = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]*)\}|\[(\d+),(\d+)\])")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass
class Collective:
    """One exchange between devices, in the compiled program of one device."""

    kind: str
    shape: str  # largest array of its result, such as bf16[2560,9728]
    bytes: int  # of its result, per occurrence
    times: int  # occurrences per step
    devices: int  # that take part
    where: str  # the source operation

    @property
    def sent(self) -> float:
        """Bytes a device sends in a step, by the ring algorithms."""
        n = max(self.devices, 1)
        share = (n - 1) / n
        factor = {"all-reduce": 2 * share, "reduce-scatter": n - 1, "collective-permute": 1}
        return self.times * self.bytes * factor.get(self.kind, share)


def _shapes(text: str) -> list[tuple[int, str]]:
    found = []
    for kind, sizes in _SHAPE.findall(text):
        bits = _ITEM_BITS.get(kind) or int(re.sub(r"\D", "", kind) or 8)
        count = math.prod(int(n) for n in sizes.split(",") if n)
        found.append((count * bits // 8, f"{kind}[{sizes}]"))
    return found


def _collective(line: str, match, world: int) -> Collective:
    result, kind, started = match.groups()
    shapes = _shapes(result)
    if started and kind != "all-reduce":  # (operand, result, ...)
        shapes = shapes[1:2] if len(shapes) > 1 else shapes
    groups = _GROUPS.search(line)
    devices = world
    if groups:
        devices = len(groups[1].split(",")) if groups[1] else int(groups[3])
    name = _OP_NAME.search(line)
    size, shape = sum(s for s, _ in shapes), max(shapes, default=(0, ""))[1]
    return Collective(kind, shape, size, 1, devices, name[1] if name else "")


def collectives(hlo: str, world: int) -> list[Collective]:
    """The exchanges in a compiled module's text, those inside loops times the loops' turns.

    `world` is the number of devices. Loops whose turns the compiler does not state count once.
    """
    calls, found, seen = defaultdict(list), defaultdict(dict), set()
    entry = here = ""
    for line in hlo.splitlines():
        if header := _COMPUTATION.match(line):
            here = header[1]
            entry = here if line.startswith("ENTRY") else entry
            continue
        trips = _TRIPS.search(line) if " while(" in line else None
        turns = int(trips[1]) if trips else 1
        called = _CALLED.findall(line)
        for branches in _BRANCHES.findall(line):
            called += [name.strip().lstrip("%") for name in branches.split(",")]
        calls[here] += [(name, turns) for name in called]
        if match := _COLLECTIVE.search(line):
            channel = _CHANNEL.search(line)
            # A start, what overlaps with it and its end may repeat one exchange.
            found[here][channel[1] if channel else line] = _collective(line, match, world)
    total: dict[str, Collective] = {}

    def visit(name: str, turns: int) -> None:
        for channel, item in found[name].items():
            known = total.get(channel)
            if known is None or known.times < turns:
                total[channel] = dataclasses.replace(item, times=turns)
        for inner, n in calls[name]:
            if (inner, turns * n) not in seen:
                seen.add((inner, turns * n))
                visit(inner, turns * n)

    visit(entry, 1)
    return sorted(total.values(), key=lambda c: -c.sent)
