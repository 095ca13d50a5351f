"""The real train step or sampler, compiled for devices that need not be attached."""

import dataclasses
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.sharding import Mesh

from imagen_jax import compilation, sharding
from imagen_jax.config import StageConfig
from imagen_jax.planning import hlo
from imagen_jax.planning.estimate import Kind, sampled_params, sampler
from imagen_jax.planning.targets import Target
from imagen_jax.training import state as states
from imagen_jax.training import teacher
from imagen_jax.training.step import make_train_step
from imagen_jax.training.utilisation import batch_shapes


class DoesNotFit(Exception):
    """The program does not fit the devices' memory; `needed`: bytes of temporaries, None if not known."""

    def __init__(self, message: str, needed: int | None):
        super().__init__(message)
        self.needed = needed


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Memory of a compiled program on each device, in bytes, and the time of its compilation."""

    argument_bytes: int
    temporary_bytes: int
    peak_bytes: int
    code_bytes: int
    collectives: dict[str, tuple[int, int]]  # name -> (number, bytes of their results)
    seconds: float

    @property
    def link_bytes(self) -> int:
        """Bytes that each device sends in collectives; an all-reduce sends its result twice, the others once."""
        return sum(size * (1 + (name == "all-reduce")) for name, (_, size) in self.collectives.items())


def compile_for(config: StageConfig, kind: Kind, target: Target, dtype: str = "float32") -> Compiled:
    """Compile the stage's program for the target, at the compiler's lowest level of optimisation.

    Programs for TPUs then compile in minutes on one core, instead of a quarter of an hour. They hold the same arrays,
    but may run slower.

    Args:
      config: of the stage.
      kind: of program.
      target: the devices.
      dtype: of the parameters that are sampled with; training has float32.

    Raises:
      DoesNotFit: the program's arrays do not fit the devices' memory.
    """
    mesh = sharding.make_mesh(config.run.fsdp, list(target.devices), height=config.run.height)
    held = states.abstract_state(config, mesh) if kind == "train" else sampled_params(config, mesh, dtype)
    step, args = build(config, kind, mesh, held)
    start = time.perf_counter()
    with _quickest():
        program = compile_lowered(step.lower(*args))
    memory = program.memory_analysis()
    return Compiled(
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        peak_bytes=peak_bytes(memory),
        code_bytes=memory.generated_code_size_in_bytes,
        collectives=collectives(program.as_text()),
        seconds=time.perf_counter() - start,
    )


def build(config: StageConfig, kind: Kind, mesh: Mesh, held: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return (the stage's train step or sampler, jitted; the shapes of its arguments).

    Args:
      config: of the stage.
      kind: which of them.
      mesh: of the devices.
      held: shapes of the state, as from `states.abstract_state` or `states.packed_shapes`; of the parameters to sample
        with, as from `sampled_params`.
    """
    rows = config.optim.batch_size
    placed = lambda tree: jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding.batch_sharding(mesh)), tree
    )
    if kind == "train":
        out = (states.shardings(held), None)
        options = compilation.options(mesh.devices.flat[0].platform)
        step = jax.jit(make_train_step(config, mesh), donate_argnums=0, out_shardings=out, compiler_options=options)
        taught_by = teacher.like_the_stage(config, sampled_params(config, mesh, "float32"))
        return step, (held, placed(batch_shapes(config, rows)), taught_by)
    function, inputs = sampler(config, rows)

    def step_fn(params: Any, inputs: Any) -> jax.Array:
        with sharding.use_mesh(mesh):
            return function(params, inputs)

    return jax.jit(step_fn, out_shardings=sharding.batch_sharding(mesh)), (held, placed(inputs))


def compile_lowered(lowered: jax.stages.Lowered, options: dict[str, Any] | None = None) -> jax.stages.Compiled:
    """Compile a program.

    Args:
      lowered: the program.
      options: of the compiler, without --.

    Raises:
      DoesNotFit: its arrays do not fit the devices' memory.
    """
    try:
        return lowered.compile(options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found = re.search(r"temporaries \(([\d.]+)([MG])\)", str(error))
        needed = found and int(float(found[1]) * {"M": 2**20, "G": 2**30}[found[2]])
        raise DoesNotFit(str(error).splitlines()[0], needed) from error


def peak_bytes(memory: Any) -> int:
    """Return the peak memory of a compiled program on each device, from its `memory_analysis`."""
    extra_output = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes + extra_output + memory.temp_size_in_bytes


@contextmanager
def _quickest() -> Iterator[None]:
    names = ("jax_optimization_level", "jax_memory_fitting_level")
    before = {name: getattr(jax.config, name) for name in names}
    for name in names:
        jax.config.update(name, "O0")
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


_ARRAY = re.compile(r"(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]")
_COLLECTIVE = re.compile(r"(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?")


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """Return the collectives in a compiled program's text: name -> (number, bytes of their results).

    Those in a loop count as often as the loop runs, where the compiler knows its trip count. The compiler for TPUs
    writes a reduce-scatter as a fusion of an all-reduce, whose bytes are then counted, and a slice.
    """
    program, totals = hlo.read(text), defaultdict(lambda: [0, 0])
    for operation in program.operations:
        if found := _COLLECTIVE.fullmatch(operation.opcode):
            is_scatter = operation.computation.startswith("all-reduce-scatter")
            name, times = "reduce-scatter" if is_scatter else found[1], program.times.get(operation.computation, 0)
            totals[name][0] += times
            totals[name][1] += times * _result_bytes(operation.type, bool(found[2]))
    return {kind: (count, size) for kind, (count, size) in sorted(totals.items())}


def _result_bytes(text: str, is_start: bool) -> int:
    """Return the bytes of a result; that of an operation which starts a collective also holds operands and counters."""
    sizes = []
    for _, bits, shape in _ARRAY.findall(text):
        size = max(1, int(bits or 8) // 8)
        for side in filter(None, shape.split(",")):
            size *= int(side)
        sizes.append(size)
    return max(sizes, default=0) if is_start else sum(sizes)
