"""Work, memory traffic and peak memory of a traced program, without compiling it.

Memory is that of a simple compiler: operations run in the order in which they were traced; those on single
elements are fused into what reads them and own no memory; matrix products, convolutions and loops read and
write whole arrays, which live until they are last read.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

# Calls whose body is simply part of the program, and where the body is.
_INLINED = {
    "jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "remat": "jaxpr",
    "remat2": "jaxpr", "checkpoint": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}  # fmt: skip
_PRODUCTS = ("dot_general", "conv_general_dilated")
# Read and write whole arrays.
_WHOLE = (*_PRODUCTS, "scan", "while", "cond", "sort", "top_k", "gather", "scatter", "scatter-add", "cumsum")
_REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax")


@dataclasses.dataclass
class Operation:
    """One operation on values, which are numbered over the whole program."""

    name: str
    inputs: list[int]
    outputs: list[int]
    params: dict[str, Any]
    bodies: list["Program"]  # of loops and branches
    shapes: tuple[list[Any], list[Any]]  # abstract inputs and outputs


@dataclasses.dataclass
class Program:
    """Operations in order. Values 0 to num_inputs - 1 are the arguments."""

    operations: list[Operation]
    num_inputs: int
    outputs: list[int]
    avals: list[Any]


def trace(function: Callable[..., Any], *args: Any) -> Program:
    """Return the program of `function` for arguments that are arrays or shapes."""
    return _flatten(jax.make_jaxpr(function)(*args).jaxpr)


def _flatten(jaxpr: Any) -> Program:
    avals, operations = [], []

    def new(aval: Any) -> int:
        avals.append(aval)
        return len(avals) - 1

    def read(env: dict, atom: Any) -> int:
        return -1 if isinstance(atom, jax.extend.core.Literal) else env[atom]

    def walk(jaxpr: Any, env: dict) -> None:
        for var in jaxpr.constvars:
            env.setdefault(var, -1)
        for eqn in jaxpr.eqns:
            name, inputs = eqn.primitive.name, [read(env, atom) for atom in eqn.invars]
            body = eqn.params.get(_INLINED.get(name, ""))
            if body is not None:
                body = getattr(body, "jaxpr", body)
                inner = dict(zip(body.invars, inputs, strict=True))
                walk(body, inner)
                env.update(zip(eqn.outvars, (read(inner, atom) for atom in body.outvars), strict=True))
                continue
            outputs = [new(var.aval) for var in eqn.outvars]
            env.update(zip(eqn.outvars, outputs, strict=True))
            bodies = [_flatten(getattr(each, "jaxpr", each)) for each in _bodies(eqn)]
            shapes = [atom.aval for atom in eqn.invars], [var.aval for var in eqn.outvars]
            operations.append(Operation(name, inputs, outputs, eqn.params, bodies, shapes))

    env = {var: new(var.aval) for var in jaxpr.invars}
    walk(jaxpr, env)
    outputs = [read(env, atom) for atom in jaxpr.outvars]
    used, live = set(outputs), []
    for operation in reversed(operations):  # operations whose results are not used are dropped
        if used.intersection(operation.outputs):
            used.update(operation.inputs)
            live.append(operation)
    operations = live[::-1]
    return Program(operations, len(jaxpr.invars), outputs, avals)


def _bodies(eqn: Any) -> Iterator[Any]:
    if eqn.primitive.name == "scan":
        yield eqn.params["jaxpr"]
    elif eqn.primitive.name == "while":
        yield eqn.params["body_jaxpr"]
    elif eqn.primitive.name == "cond":
        yield eqn.params["branches"][-1]  # of platforms, the last is that of accelerators


# --- work ---------------------------------------------------------------------------------------


def flops(program: Program, trip_count: int = 1) -> int:
    """Return the floating-point operations of matrix products and convolutions; a multiply-add counts as two.

    `trip_count` is that of `while` loops, whose length is not known from a trace.
    """
    total = 0
    for operation in program.operations:
        if operation.name == "dot_general":
            total += _dot_flops(operation)
        elif operation.name == "conv_general_dilated":
            total += _conv_flops(operation)
        else:
            times = {"scan": operation.params.get("length", 1), "while": trip_count}.get(operation.name, 1)
            total += times * sum(flops(body, trip_count) for body in operation.bodies)
    return total


def _dot_flops(operation: Operation) -> int:
    (contracted, _), _ = operation.params["dimension_numbers"]
    (left, _), (out,) = operation.shapes
    return 2 * out.size * math.prod(left.shape[axis] for axis in contracted)


def _conv_flops(operation: Operation) -> int:
    """Return the operations of a convolution, without those on the zeros of a dilated input."""
    (_, kernel), (out,) = operation.shapes
    numbers = operation.params["dimension_numbers"]
    window = math.prod(kernel.shape[axis] for axis in numbers.rhs_spec[1:])  # input features, then space
    return 2 * out.size * window // math.prod(operation.params["lhs_dilation"])


def traffic(program: Program, trip_count: int = 1) -> int:
    """Return the bytes that products, loops and reductions read and write; operations fused into them write nothing."""
    total = 0
    for operation in program.operations:
        if operation.bodies:
            times = {"scan": operation.params.get("length", 1), "while": trip_count}.get(operation.name, 1)
            total += times * max(traffic(body, trip_count) for body in operation.bodies)
        elif operation.name in _WHOLE or operation.name in _REDUCTIONS:
            total += sum(map(size_of, (*operation.shapes[0], *operation.shapes[1])))
    return total


# --- memory -------------------------------------------------------------------------------------


def size_of(aval: Any) -> int:
    """Return the bytes of an array or shape."""
    dtype = getattr(aval, "dtype", None)
    if dtype is None or not hasattr(aval, "shape"):
        return 0
    return math.prod(aval.shape) * (
        8 if jax.dtypes.issubdtype(dtype, jax.dtypes.extended) else dtype.itemsize
    )


def peak_memory(program: Program, split: Mapping[tuple[int, ...], int] | None = None) -> int:
    """Return the largest number of bytes in use at a time, without arguments and results.

    Args:
      program: as from `trace`, with the arrays of one device.
      split: sides of parameters, sorted (gradients come transposed) -> devices that share each; so many share
        their gradients, and a copy for use is made again when it is needed again.
    """
    split = split or {}
    owners: list[frozenset[int]] = [frozenset([i]) for i in range(program.num_inputs)]
    owners += [frozenset()] * (len(program.avals) - program.num_inputs)
    first: dict[int, int] = {}  # value with memory of its own -> where it is made
    last: dict[int, int] = {}  # and last read
    transient: dict[int, int] = {}

    def use(value: int, at: int, whole: bool) -> None:
        if value < 0:
            return
        if whole and value not in first and value >= program.num_inputs:  # a fused value is written out
            for owner in owners[value]:
                last[owner] = at
            owners[value] = frozenset([value])
            first[value] = at
        for owner in owners[value]:
            last[owner] = at

    for at, operation in enumerate(program.operations):
        is_whole = operation.name in _WHOLE
        for value in operation.inputs:
            use(value, at, is_whole)
        if is_whole or operation.name in _REDUCTIONS:
            for value in operation.outputs:
                owners[value], first[value], last[value] = frozenset([value]), at, at
            transient[at] = max((peak_memory(body, split) for body in operation.bodies), default=0)
        else:
            sources = frozenset().union(*(owners[value] for value in operation.inputs if value >= 0))
            for value in operation.outputs:
                owners[value] = sources
    results = set()
    for value in program.outputs:
        if value >= 0:
            for owner in owners[value]:
                last[owner] = len(program.operations)
            results.add(value)

    change = np.zeros(len(program.operations) + 2, np.int64)
    for value, start in first.items():
        if value not in results:
            aval = program.avals[value]
            bytes_ = size_of(aval) // split.get(tuple(sorted(getattr(aval, "shape", ()))), 1)
            change[start] += bytes_
            change[last[value] + 1] -= bytes_
    live = np.cumsum(change)
    for at, bytes_ in transient.items():
        live[at] += bytes_
    return int(live.max(initial=0))
