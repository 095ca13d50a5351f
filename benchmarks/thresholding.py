"""Times dynamic thresholding: its exact quantile beside jnp.quantile, which sorts, and its share of a step.

  python benchmarks/thresholding.py
  python benchmarks/thresholding.py --percentile 0.9 --repeats 20

Prints two Markdown tables for batches of the sizes of the three stages. The images are as a guided x_hat is:
normal, with a few saturated pixels. What is compared takes turns, so that other load on the machine slows both.
A step is one guided evaluation of the smallest super-resolution network of the presets (sr64 of quickstart, 1M
parameters, without its self-attention, which no network has at 1024): with any larger one the share is smaller.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable

import numpy as np

from imagen_jax.cli import parsing, program

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
    dynamic = jax.jit(lambda x: thresholding.dynamic(x, options.percentile))
    quantiles, shares = [], []
    for batch, size in BATCHES:
        x = jnp.asarray(magnitudes(batch, size))
        name = f"| {batch} x {size}x{size} |"
        first, second = medians((ours, sorting), x, options.repeats)
        quantiles.append(f"{name} {first:.2f} | {second:.2f} | {second / first:.0f} |")
        network, threshold = medians((guided_evaluation(batch, size), dynamic), x, options.repeats)
        shares.append(
            f"{name} {network:.1f} | {threshold:.2f} | {100 * threshold / (network + threshold):.1f} |"
        )
    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}, median of {options.repeats} runs, in ms.\n")
    print("| images | quantile | jnp.quantile | ratio |\n|---|---:|---:|---:|")
    print("\n".join(quantiles))
    print("\n| images | guided evaluation | dynamic threshold | share % |\n|---|---:|---:|---:|")
    print("\n".join(shares))


def medians(functions: tuple[Callable, ...], x: object, repeats: int) -> list[float]:
    """Milliseconds of each, taking turns, after one run to compile."""
    seconds = [[] for _ in functions]
    for run in range(repeats + 1):
        for function, times in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function(x).block_until_ready()
            if run:
                times.append(time.perf_counter() - start)
    return [1000 * statistics.median(times) for times in seconds]


def guided_evaluation(batch: int, size: int) -> Callable:
    """x_hat -> guided x_hat of the smallest network, at random parameters, as one step computes it."""
    import jax
    import jax.numpy as jnp

    from imagen_jax import stage
    from imagen_jax.config.presets import load_preset
    from imagen_jax.diffusion import guidance
    from imagen_jax.structs import Cond, TextCond

    sr64 = load_preset("quickstart")[1]
    network = dataclasses.replace(
        sr64.network, self_attention=(False,) * 3, cross_attention=(False, False, True)
    )
    sr64 = dataclasses.replace(sr64, image_size=size, low_res_size=size // 4, network=network)
    params = jax.jit(stage.init, static_argnums=0)(sr64, jax.random.key(0))
    model = stage.Stage(params, sr64)
    text = TextCond(
        jnp.ones((batch, sr64.text.length, sr64.text.width)), jnp.ones((batch, sr64.text.length), bool)
    )
    cond = Cond(text, jnp.zeros((batch, size, size, 3)), jnp.zeros(batch))
    null = cond.replace(text=text.drop(jnp.ones(batch, bool)))
    cond, null = jax.jit(model.prepare)(cond), jax.jit(model.prepare)(null)

    @jax.jit
    def evaluate(model, cond, null, z_t):
        guided = guidance.classifier_free(model.denoise, cond, null, 2.0)
        return guided(z_t, jnp.zeros(batch))

    return lambda z_t: evaluate(model, cond, null, z_t)


def magnitudes(batch: int, size: int) -> np.ndarray:
    """|x_hat| [B, H, W, C] of pictures that are a little out of range, one pixel in a hundred saturated."""
    rng = np.random.default_rng(0)
    x_hat = rng.normal(0, 0.7, (batch, size, size, 3))
    is_saturated = rng.random(x_hat.shape) < 0.01
    return np.abs(np.where(is_saturated, 1.3 * np.sign(x_hat), x_hat)).astype(np.float32)


if __name__ == "__main__":
    program.run(main, lambda args: parsing.parse(Options, __doc__, args))
