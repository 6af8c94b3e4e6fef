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
from jax.interpreters.partial_eval import dce_jaxpr


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
    """Work of a jaxpr, without what no output depends on: no compiler computes that.

    Scans count all their turns; of a conditional the cheapest branch counts, because the step's
    conditionals are for what happens rarely (revivals).
    """
    return _count(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def _count(jaxpr: Jaxpr) -> Work:
    total = Work()
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in ("dot_general", "conv_general_dilated"):
            total += _product(equation)
        elif name == "cond":
            branches = [_count(b.jaxpr) for b in equation.params["branches"]]
            total += min(branches, key=lambda w: w.flops)
        else:
            turns = equation.params["length"] if name == "scan" else 1
            if name == "shard_map":
                turns = equation.params["mesh"].size
            for inner in _inner(equation):
                total += _count(inner).times(turns)
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
_TRUE_FALSE = re.compile(r"(?:true|false)_computation=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_NAME = re.compile(r"%([\w.\-]+)")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_BODY = re.compile(r"body=%?([\w.\-]+)")
_INDEX = re.compile(r" get-tuple-element\(.*\), index=(\d+)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CONSTANT = re.compile(r" = [su]32\[\]\S* constant\((\d+)\)")
_GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]*)\}|\[(\d+),(\d+)\]|mesh\[(.*?)\] \{(.*?)\})")
_AXIS = re.compile(r"'(\w+)'=(\d+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices, in the compiled program of one device."""

    kind: str
    shape: str  # largest array of its result, such as bf16[2560,9728]
    bytes: int  # of its result, per occurrence
    times: int  # occurrences per step
    devices: int  # that take part
    where: str  # the source operation
    rare: bool = False  # inside a conditional: revivals, not every step

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
        members, _, size, axes, used = groups.groups()
        if axes:
            sizes = dict(_AXIS.findall(axes))
            devices = math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", used))
        else:
            devices = len(members.split(",")) if members else int(size)
    name = _OP_NAME.search(line)
    size, shape = sum(s for s, _ in shapes), max(shapes, default=(0, ""))[1]
    return Collective(kind, shape, size, 1, devices, name[1] if name else "")


def collectives(hlo: str, world: int) -> list[Collective]:
    """The exchanges in a compiled module's text, those inside loops times the loops' turns.

    `world` is the number of devices. Equal ones are counted together. Rare ones come last,
    before that those that send most.
    """
    module, entry = _computations(hlo)
    found: dict[str, dict[str, Collective]] = defaultdict(dict)  # channel -> computation -> it
    seen = set()

    def visit(name: str, turns: int, rare: bool) -> None:
        if (name, turns, rare) in seen or name not in module:
            return
        seen.add((name, turns, rare))
        for line in module[name].values():
            if match := _COLLECTIVE.search(line):
                item = _collective(line, match, world)
                channel = _CHANNEL.search(line)
                places = found[channel[1] if channel else line]
                if name not in places or places[name].times < turns:
                    places[name] = dataclasses.replace(item, times=turns, rare=rare)
            n = _turns(line, module) if " while(" in line else 1
            for inner in _CALLED.findall(line):
                visit(inner, turns * n, rare)
            for inner in _branches(line):
                visit(inner, turns, True)

    visit(entry, 1, False)
    # One exchange may stand in several computations: where it starts, and in the loops that it
    # overlaps with, which turn more often than it does.
    times: dict[Collective, int] = defaultdict(int)
    for places in found.values():
        least = min(places.values(), key=lambda c: c.times)
        times[dataclasses.replace(least, times=0)] += least.times
    total = [dataclasses.replace(item, times=n) for item, n in times.items()]
    return sorted(total, key=lambda c: (c.rare, -c.sent))


def _computations(hlo: str) -> tuple[dict[str, dict[str, str]], str]:
    """Module text -> ({computation: {instruction: line}}, entry); the root is also at "ROOT"."""
    module: dict[str, dict[str, str]] = {}
    entry = here = ""
    for line in hlo.splitlines():
        if header := _COMPUTATION.match(line):
            here = header[1]
            module[here] = {}
            entry = here if line.startswith("ENTRY") else entry
        elif instruction := _INSTRUCTION.match(line):
            module[here][instruction[2]] = line
            if instruction[1]:
                module[here]["ROOT"] = line
    return module, entry


def _turns(line: str, module: dict[str, dict[str, str]]) -> int:
    """Turns of a while loop: as stated, or else (on TPUs) from its counter, which starts at 0:
    the condition's bound over the step that the body adds."""
    if stated := _TRIPS.search(line):
        return int(stated[1])
    condition = module.get(_CONDITION.search(line)[1], {}).values()
    bounds = [int(n) for other in condition for n in _CONSTANT.findall(other)]
    index = [int(n) for other in condition for n in _INDEX.findall(other)]
    if not bounds:
        return 1
    body = module.get(_BODY.search(line)[1], {})
    step = _step(body, index[0]) if len(index) == 1 else 1
    return -(-max(bounds) // step)


def _step(body: dict[str, str], index: int) -> int:
    """What a loop's body adds to element `index` of what it carries; 1 where it cannot be seen."""
    arguments = body.get("ROOT", "").partition(" tuple(")[2]
    names = _NAME.findall(arguments.partition("), ")[0])
    line = body.get(names[index], "") if index < len(names) else ""
    if copied := re.search(r" copy\(%([\w.\-]+)\)", line):
        line = body.get(copied[1], "")
    added = _NAME.findall(line.partition(" add(")[2].partition(")")[0])
    steps = [int(n) for name in added for n in _CONSTANT.findall(body.get(name, ""))]
    return max([*steps, 1])


def _branches(line: str) -> list[str]:
    """The computations that a conditional may run."""
    listed = [name for names in _BRANCHES.findall(line) for name in names.split(",")]
    return [name.strip().lstrip("%") for name in listed + _TRUE_FALSE.findall(line)]
