"""Times the exact quantile of dynamic thresholding beside jnp.quantile, which sorts each image.

  python scripts/benchmark_quantile.py
  python scripts/benchmark_quantile.py --percentile 0.9 --repeats 20

Prints a Markdown table for batches of the sizes of the three stages. The images are as a guided x_hat is:
normal, with a few saturated pixels. The two take turns, so that other load on the machine slows both.
"""

import dataclasses
import statistics
import time

import numpy as np

from imagen_jax import cli

BATCHES = ((16, 64), (4, 256), (1, 1024))  # images, pixels a side


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    percentile: float = 0.995
    """In (0, 1]; the quantile that is computed of |x_hat|."""
    repeats: int = 5
    """Timed runs of each, after one to compile."""


def main(options: Options) -> None:
    if not 0 < options.percentile <= 1:
        raise ValueError(f"--percentile must be in (0, 1]; got {options.percentile}.")
    if options.repeats < 1:
        raise ValueError(f"--repeats must be at least 1; got {options.repeats}.")
    import jax
    import jax.numpy as jnp

    from imagen_jax.diffusion import thresholding

    ours = jax.jit(lambda x: thresholding.quantile(x, options.percentile))
    sorting = jax.jit(lambda x: jnp.quantile(x, options.percentile, axis=(1, 2, 3)))
    rows = []
    for batch, size in BATCHES:
        x = jnp.asarray(magnitudes(batch, size))
        seconds = {ours: [], sorting: []}
        for run in range(options.repeats + 1):
            for function, times in seconds.items():
                start = time.perf_counter()
                function(x).block_until_ready()
                if run:
                    times.append(time.perf_counter() - start)
        first, second = (1000 * statistics.median(times) for times in seconds.values())
        rows.append(f"| {batch} x {size}x{size} | {first:.2f} | {second:.2f} | {second / first:.0f} |")
    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}, median of {options.repeats} runs, in ms.\n")
    print("| images | quantile | jnp.quantile | ratio |\n|---|---|---|---|")
    print("\n".join(rows))


def magnitudes(batch: int, size: int) -> np.ndarray:
    """|x_hat| [B, H, W, C] of pictures that are a little out of range, one pixel in a hundred saturated."""
    rng = np.random.default_rng(0)
    x_hat = rng.normal(0, 0.7, (batch, size, size, 3))
    is_saturated = rng.random(x_hat.shape) < 0.01
    return np.abs(np.where(is_saturated, 1.3 * np.sign(x_hat), x_hat)).astype(np.float32)


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(Options, __doc__))
