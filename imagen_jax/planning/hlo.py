"""A compiled program's text: its operations, how often they run, what kind of work they do, and their FLOPs."""

import dataclasses
import functools
import math
import re
from collections import Counter, defaultdict

from imagen_jax.models import winograd

CONTROL = ("while", "call", "conditional")  # their time is that of the operations inside
KINDS = (
    "convolution, forward", "convolution, input gradient", "convolution, kernel gradient", "attention",
    "other products", "norms and activations", "thresholding", "optimiser", "random numbers", "communication", "copies",
    "other",
)  # fmt: skip
FORWARD, INPUT_GRADIENT, KERNEL_GRADIENT = KINDS[:3]
THRESHOLDING, OPTIMISER = "thresholding", "optimiser"
_SCOPES = {THRESHOLDING: THRESHOLDING, OPTIMISER: OPTIMISER, winograd.SCOPE: FORWARD}  # by jax.named_scope

_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{\s*$")
_CALL = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=\{?%?([\w.-]+(?:, ?%[\w.-]+)*)")
_TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')
_PATH = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_SIDES = re.compile(r"\[([\d,]*)\]")
_LABELS = re.compile(r"dim_labels=\w+_(\w+)->(\w+)")
_COLLECTIVE = re.compile(r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start|-done)?")
_RANDOM = re.compile(r"_normal|_uniform|_?threefry|random_|_truncated|erf_inv")
_NORM = re.compile(r"(\w+_)?norm(_\w+)?|silu|gelu|swish|relu")
_ATTENTION = re.compile(r"(\w+_)?attention(_\w+)?|text_pool|dot_product_attention")
# Operations that move or name arrays; they say nothing about what a fusion computes.
_MOVES = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "broadcast", "copy", "transpose", "slice")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One instruction.

    Attributes:
      name: in the program, and in traces of it.
      computation: that holds it.
      type: of the result, as text.
      opcode: such as "dot".
      rest: operands and attributes, as text.
    """

    name: str
    computation: str
    type: str
    opcode: str
    rest: str

    @functools.cached_property
    def path(self) -> str:
        """Where it comes from in the traced functions, such as "jit(step)/jvp(UNet)/norm_1/mul"; "" if unknown."""
        found = _PATH.search(self.rest)
        return found[1] if found else ""

    @functools.cached_property
    def target(self) -> str:
        """Name of the library function that a custom call runs, "" for other operations."""
        found = _TARGET.search(self.rest)
        return found[1] if found else ""

    @property
    def sides(self) -> tuple[int, ...]:
        """Shape of the (first) result."""
        found = _SIDES.search(self.type)
        return tuple(map(int, filter(None, found[1].split(",")))) if found else ()

    @property
    def is_convolution(self) -> bool:
        return self.opcode == "convolution" or "conv" in self.target

    @property
    def is_product(self) -> bool:
        return self.opcode == "dot" or any(word in self.target for word in ("gemm", "matmul", "fmha"))


@dataclasses.dataclass(frozen=True)
class Program:
    """Operations by the name of their computation, and how often each computation runs.

    Those in a loop count as often as the loop runs, where the compiler knows its trip count.
    """

    computations: dict[str, list[Operation]]
    times: dict[str, int]

    @property
    def operations(self) -> list[Operation]:
        return [each for members in self.computations.values() for each in members]

    def kinds(self) -> dict[str, str]:
        """Return the kind, one of KINDS, of each operation that runs by itself, by name; those of CONTROL do not."""
        fused = {name for each in self.operations if each.opcode not in CONTROL for name in _called(each.rest)}
        members = (each for name, members in self.computations.items() if name not in fused for each in members)
        return {each.name: self._kind(each) for each in members if each.opcode not in CONTROL}

    def flops_by_kind(self) -> dict[str, int]:
        """Return the FLOPs of the program's convolutions and matrix products, without those in libraries' calls."""
        found = Counter()
        for members in self.computations.values():
            shapes = {each.name: each.sides for each in members}
            for each in members:
                if each.opcode in ("convolution", "dot"):
                    found[self._kind(each)] += self.times.get(each.computation, 0) * _flops(each, shapes)
        return dict(found)

    def flops_repeated(self) -> int:
        """Return the FLOPs of convolutions and matrix products in loops, but for the first turn of each loop."""
        found = 0
        for name, members in self.computations.items():
            shapes = {each.name: each.sides for each in members}
            products = (each for each in members if each.opcode in ("convolution", "dot"))
            found += max(0, self.times.get(name, 0) - 1) * sum(_flops(each, shapes) for each in products)
        return found

    def _kind(self, operation: Operation) -> str:
        inside = [operation]
        if operation.opcode == "fusion":
            for name in _called(operation.rest):
                inside += self.computations.get(name, [])
        if any(_COLLECTIVE.fullmatch(each.opcode) for each in inside):
            return "communication"
        convolution = next((each for each in inside if each.is_convolution), None)
        if convolution is not None:
            return _kind_of_convolution(convolution)
        product = next((each for each in inside if each.is_product), None)
        if product is not None:
            return _kind_of_path(product.path or operation.path, "other products")
        votes = Counter(_kind_of_path(each.path, "other") for each in inside if each.path and each.opcode not in _MOVES)
        if votes:
            return votes.most_common(1)[0][0]
        is_move = all(each.opcode in (*_MOVES, "fusion") for each in inside)
        return _kind_of_path(operation.path, "copies" if is_move and not operation.path else "other")


def read(text: str) -> Program:
    """Return the program whose text `jax.stages.Compiled.as_text` returns."""
    computations: dict[str, list[Operation]] = defaultdict(list)
    calls: dict[str, list[tuple[str, int]]] = defaultdict(list)
    times: dict[str, int] = defaultdict(int)
    entry = name = ""
    for line in text.splitlines():
        if line and not line.startswith(" ") and (header := _COMPUTATION.match(line)):
            name = header[1]
            entry = name if line.startswith("ENTRY") else entry
        elif found := _INSTRUCTION.match(line):
            operation = Operation(found[1], name, *found.groups()[1:])
            computations[name].append(operation)
            trips = _TRIPS.search(line) if operation.opcode == "while" else None
            calls[name] += [(each, int(trips[1]) if trips else 1) for each in _called(operation.rest)]

    def add(computation: str, runs: int) -> None:
        times[computation] += runs
        for called, trips in calls[computation]:
            add(called, runs * trips)

    add(entry, 1)
    return Program(dict(computations), dict(times))


def _called(rest: str) -> list[str]:
    return [name.strip(" %") for names in _CALL.findall(rest) for name in names.split(",")]


@functools.lru_cache(maxsize=2**16)
def _kind_of_path(path: str, default: str) -> str:
    parts = re.split(r"[/()]", path)
    for scope, kind in _SCOPES.items():
        if scope in parts:
            return kind
    for pattern, kind in ((_RANDOM, "random numbers"), (_NORM, "norms and activations"), (_ATTENTION, "attention")):
        if any(pattern.match(part) if pattern is _RANDOM else pattern.fullmatch(part) for part in parts):
            return kind
    return default


def _kind_of_convolution(operation: Operation) -> str:
    """Return the kind of a convolution.

    The window of a kernel gradient is as large as the image, and its result as small as the kernel. Compilers keep
    this, but not always the path. At images smaller than the kernel it takes input gradients for kernel gradients.
    """
    for word, kind in (("Filter", KERNEL_GRADIENT), ("Input", INPUT_GRADIENT), ("convForward", FORWARD)):
        if word in operation.target:
            return kind
    path = operation.path
    if path and ("transpose(" not in path or "rematted_computation" in path):
        return FORWARD
    labels, window = _LABELS.search(operation.rest), _window(operation)
    if labels:
        spatial = [side for label, side in zip(labels[2], operation.sides, strict=False) if label.isdigit()]
        if any(side > result for side, result in zip(window, spatial, strict=False)):
            return KERNEL_GRADIENT
    return INPUT_GRADIENT


def _window(operation: Operation) -> list[int]:
    found = re.search(r"window=\{size=([\dx]+)", operation.rest)
    return [int(side) for side in found[1].split("x")] if found else []


def _flops(operation: Operation, shapes: dict[str, tuple[int, ...]]) -> int:
    """Return the FLOPs of a dot or convolution, without those on the zeros of a dilated input."""
    operands = re.findall(r"%?([\w.-]+)", operation.rest.partition(")")[0])
    left, right = ([*(shapes.get(name, ()) for name in operands[:2]), (), ()])[:2]
    if operation.opcode == "dot":
        found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", operation.rest)
        axes = [int(axis) for axis in filter(None, found[1].split(","))] if found else []
        terms = math.prod(left[axis] for axis in axes if axis < len(left))
    else:
        labels = _LABELS.search(operation.rest)
        features = right[labels[1].index("i")] if labels and len(right) == len(labels[1]) else 0
        dilation = re.search(r"lhs_dilate=([\dx]+)", operation.rest)
        zeros = math.prod(map(int, dilation[1].split("x"))) if dilation else 1
        return 2 * math.prod(operation.sides) * math.prod(_window(operation)) * features // zeros
    return 2 * math.prod(operation.sides) * terms
