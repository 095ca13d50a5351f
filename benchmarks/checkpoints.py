"""Times saving and restoring a state with and without the checksums of its arrays.

  python benchmarks/checkpoints.py --size-gb 1 --rounds 5

A round saves a state of random arrays until it is on the disk, and restores it; then once more without checksums. Files
are in the page cache when they are read, so that the share of the checksums is the largest that it can be. CPU seconds
are those of all threads; other work on the machine changes them less than the time that passes.
"""

import dataclasses
import shutil
import tempfile
import time
from pathlib import Path

from imagen_jax.cli import parsing, program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    size_gb: float = 1.0
    """Size of the state in GB: parameters, their average and two moments."""
    arrays: int = 64
    """Arrays of the parameters; the state has four times as many."""
    rounds: int = 5
    """How often each is timed."""
    directory: Path | None = None
    """Where to write; by default the directory for temporary files."""


def main(options: Options) -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from imagen_jax import sharding
    from imagen_jax.config import StageConfig
    from imagen_jax.stage_dir import checkpoint, checksums
    from imagen_jax.structs import TrainState

    if options.rounds < 1 or options.arrays < 1 or not options.size_gb > 0:
        raise ValueError("--rounds, --arrays and --size-gb must be positive.")
    rows = max(1, round(options.size_gb * 1e9 / 4 / 4 / options.arrays / 1024))
    whole = sharding.replicated(sharding.make_mesh())

    def new(step):
        def tree(key):
            keys = jax.random.split(key, options.arrays)
            return {f"array_{i}": jax.random.normal(each, (rows, 1024)) for i, each in enumerate(keys)}

        params, average, *moments = map(tree, jax.random.split(jax.random.key(0), 4))
        return TrainState(step, params, average, moments)

    state = jax.jit(new, out_shardings=whole)(jnp.int32(1))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), state)
    of_arrays, times = checksums.of_arrays, {}
    for number in range(options.rounds + 1):  # the first is not counted: it compiles
        for name in ("with", "without"):
            # What is timed is the same but for this function, which saving and restoring both call.
            checksums.of_arrays = of_arrays if name == "with" else lambda tree: {}
            directory = Path(tempfile.mkdtemp(dir=options.directory))
            try:
                begin = clocks()
                with checkpoint.Checkpoints(directory, StageConfig()) as checkpoints:
                    checkpoints.save(state, {"next_index": 1})
                saved = clocks()
                with checkpoint.Checkpoints(directory, StageConfig()) as checkpoints:
                    opened = clocks()
                    jax.block_until_ready(checkpoints.restore(shapes)[0])
                restored = clocks()
            finally:
                shutil.rmtree(directory)
            if number:
                times.setdefault(("save", name), []).append(saved - begin)
                times.setdefault(("restore", name), []).append(restored - opened)
    print(f"{sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e9:.3g} GB in {4 * options.arrays} arrays")
    print("| | with checksums, s | without, s | ratio |\n|---|---:|---:|---:|")
    for what in ("save", "restore"):
        for clock, kind in enumerate(("", ", CPU")):
            one, other = (np.median(times[what, name], axis=0)[clock] for name in ("with", "without"))
            print(f"| {what}{kind} | {one:.2f} | {other:.2f} | {one / other:.2f} |")


def clocks():
    """Seconds that have passed, and those that all threads of this process have computed."""
    import numpy as np

    return np.array([time.perf_counter(), time.process_time()])


if __name__ == "__main__":
    program.run(main, lambda args: parsing.parse(Options, __doc__, args))
