"""CPU time and FLOPs of a stage's network by the side of its patches: of the loss's gradient and of the loss alone.

  python benchmarks/patches.py --preset quickstart --image-size 32

Prints a Markdown table. Networks differ in `patch_size` alone. They take turns, so that other load on the machine slows
all of them. CPU time is that of all threads of the process; the optimiser's, which does not depend on patches, is left
out. FLOPs are those of the gradient.
"""

import dataclasses
import statistics
import time

from imagen_jax.cli import parsing, program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    preset: str
    """Name of a file in configs/ without .py, with its variant after a colon, or the path of such a file."""
    stage: str = ""
    """Name of the stage in the preset; the first."""
    patch_sizes: tuple[int, ...] = (1, 2, 4)
    """Sides of patches to compare; ratios are to the first."""
    rounds: int = 9
    """Turns that are timed, after one that is not."""


def main(parsed) -> None:
    options, config = parsed
    import jax

    from imagen_jax import stage
    from imagen_jax.config.validation import validate
    from imagen_jax.training.utilisation import batch_shapes, model_flops_per_image

    if options.rounds < 1:
        raise ValueError(f"--rounds must be at least 1; got {options.rounds}.")
    networks = [dataclasses.replace(config.network, patch_size=p) for p in options.patch_sizes]
    configs = [validate(dataclasses.replace(config, network=network)) for network in networks]
    rows = config.optim.batch_size
    filled = lambda shapes: jax.tree.map(lambda s: jax.numpy.full(s.shape, 0.1, s.dtype), shapes)
    batch = filled(batch_shapes(config, rows))
    runs = []
    for each in configs:
        params = filled(jax.eval_shape(lambda c=each: stage.init(c, jax.random.key(0))))
        draws = stage.draw(each, jax.random.key(0), rows)
        loss = lambda params, batch, c=each, d=draws: stage.loss(params, c, batch, d)
        functions = {"gradient": jax.value_and_grad(loss), "forward": loss}
        runs.append({name: jax.jit(f).lower(params, batch).compile() for name, f in functions.items()} | {"on": params})
    seconds = [{"gradient": [], "forward": []} for _ in runs]
    for i in range(options.rounds + 1):
        for run, spent in zip(runs, seconds, strict=True):
            for name, values in spent.items():
                begin = time.process_time()
                jax.block_until_ready(run[name](run["on"], batch))
                if i:
                    values.append((time.process_time() - begin) / rows)
    print(f"{config.name} of {options.preset}, {config.train_size} pixels, batches of {rows}.\n")
    print("| patch | GFLOP an image | gradient, CPU ms an image | ratio | forward, CPU ms an image | ratio |")
    print("|---:|---:|---:|---:|---:|---:|")
    medians = [{name: 1000 * statistics.median(values) for name, values in spent.items()} for spent in seconds]
    for patch_size, each, median in zip(options.patch_sizes, configs, medians, strict=True):
        columns = [f"{value:.2f} | {medians[0][name] / value:.2f}" for name, value in median.items()]
        print(f"| {patch_size} | {model_flops_per_image(each) / 1e9:.3f} | {' | '.join(columns)} |")


if __name__ == "__main__":
    program.run(main, lambda args: parsing.parse_stage(Options, __doc__, args))
