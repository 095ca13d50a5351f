"""Monitoring of a stage while it trains: validation loss, the effect of captions on it, samples."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from imagen_jax import compilation, processes, resize, sharding, stage
from imagen_jax.config import StageConfig
from imagen_jax.data import pipeline, reader, sources
from imagen_jax.diffusion import losses
from imagen_jax.grid import labelled_grid
from imagen_jax.progress import logger
from imagen_jax.sampling import one_stage
from imagen_jax.structs import TextCond, TrainState
from imagen_jax.text import cache
from imagen_jax.training.inputs import null_caption
from imagen_jax.training.state import network_params
from imagen_jax.training.writer import Writer


class Monitor:
    """Evaluates the averaged parameters, always on the same pictures, captions, times, noise and keys.

    Every process of a run makes one and calls it at the same steps.

    Args:
      config: of the stage.
      mesh: that the state lies on.
      held_out: data set to validate on; None: nothing is validated.
      shown: data set with the captions, and for super-resolution the images, of the samples.
      embeddings: of all captions and prompts.
      alive: called after each program that has run.
    """

    def __init__(
        self,
        config: StageConfig,
        mesh: Mesh,
        held_out: sources.Source | None,
        shown: sources.Source,
        embeddings: cache.EmbeddingCache,
        alive: Callable[[], None] = lambda: None,
    ):
        self._alive = alive
        self._config, self._mesh, self._held_out = config, mesh, held_out
        self._shown = shown
        self._held_out_rows = None if held_out is None else embeddings.rows(held_out)
        self._shown_rows = self._held_out_rows if shown is held_out else embeddings.rows(shown)
        self._prompts = [embeddings[prompt] for prompt in config.run.prompts]
        self._null = null_caption(config, embeddings)
        self._programs: dict[Callable, Any] = {}
        self.cancelled: Callable[[], Any] = lambda: None  # asked while programs are compiled

    def is_due(self, step: int) -> bool:
        """Whether validation or samples are due after this step."""
        return self._validates(step) or self._samples(step)

    def evaluate(self, state: TrainState, writer: Writer) -> dict[str, float]:
        """Return the metrics of what is due at `state.step`, and give samples to the writer.

        Raises:
          compilation.Cancelled: `cancelled` returned something true while a program was compiled, in the only process.
        """
        step = int(state.step)
        begin = time.perf_counter()
        params = network_params(self._config, state, state.ema_params)
        values = self.validate(params) if self._validates(step) else {}
        if self._samples(step):
            try:
                picture = self.sample(params)
            except FloatingPointError as error:  # early in training samples may diverge
                logger.info(f"{self._config.name}: no samples of step {step}: {error}")
            else:
                writer.picture(step, "samples", picture)
        return values | {"evaluation_s": time.perf_counter() - begin}

    def _validates(self, step: int) -> bool:
        every = self._config.run.validate_every
        return self._held_out is not None and every > 0 and step % every == 0

    def _samples(self, step: int) -> bool:
        every = self._config.run.sample_every
        return every > 0 and step % every == 0

    # --- validation -----------------------------------------------------------------------------

    def validate(self, params: Any) -> dict[str, float]:
        """Return the metrics of validation by `params`.

        They are validation_loss, also by log-SNR; validation_loss_shuffled, with the caption of another image for each;
        caption_gap, the difference of the two as a share of the former, near 0 for a network that ignores text; and
        validation_undecodable, the number of records that were replaced. The shuffled loss and the gap are left out for
        batches of one image.
        """
        config = self._config
        batch_size = config.optim.batch_size // config.optim.accumulation
        num_batches = -(-min(config.run.validation_images, len(self._held_out)) // batch_size)
        data = pipeline.make_loader(
            self._held_out,
            self._held_out_rows,
            image_size=config.image_size,
            crop_size=config.crop_size,
            crop_grid=config.low_res_factor if config.crop_size else 1,
            batch_size=batch_size,
            text_length=config.text.length,
            seed=config.seed,
            shuffle=False,
            num_threads=config.run.data_threads,
            rows=sharding.local_batch_indices(self._mesh, batch_size),
        )
        num = min(batch_size, len(self._held_out))
        apart = np.int32(_apart(batch_size, len(self._held_out)) if num > 1 else 0)
        totals, replaced = [], 0
        try:
            for i in range(num_batches):
                batch = next(data)
                replaced += np.count_nonzero(batch.pop("undecodable") >= 0)
                batch = sharding.shard_batch(batch, self._mesh, batch_size)
                totals.append(self._run(_fixed_losses, params, batch, np.int32(i), apart))
        finally:
            data.close()
        sums, counts, shuffled = (
            np.sum(each, axis=0, dtype=np.float64) for each in zip(*totals, strict=True)
        )
        right, wrong = sums.sum() / counts.sum(), shuffled.sum() / counts.sum()
        values = {
            "validation_loss": float(right),
            **_by_logsnr(sums, counts),
            "validation_undecodable": int(processes.all_gather_int(replaced).sum()),
        }
        if num > 1:
            values |= {
                "validation_loss_shuffled": float(wrong),
                "caption_gap": float(wrong / right - 1),
            }
        return values

    def _run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return function(config, mesh, *args), compiled as one program at the first call."""
        if function not in self._programs:
            jitted = jax.jit(partial(function, self._config, self._mesh))
            self._programs[function] = compilation.compile_jitted(jitted, *args, cancelled=self.cancelled)
        found = jax.device_get(self._programs[function](*args))
        self._alive()
        return found

    # --- samples --------------------------------------------------------------------------------

    def sample(self, params: Any) -> Image.Image:
        """Return a labelled grid of run.sample_images samples, or of as many as there are records.

        With run.prompts, they are of the prompts in turn. In super-resolution each follows its low-res image.
        """
        config, num = self._config, self._config.run.sample_images
        size = config.image_size if config.is_super_resolution else 1  # the base needs captions alone
        if config.run.prompts:  # several pictures of each, if there are fewer prompts
            captions, embeddings, pictures = list(config.run.prompts), self._prompts, None
        else:
            records, pictures = reader.usable(self._shown, num, size)
            captions = [record["caption"] for record in records.values()]
            embeddings, num = self._shown_rows([*records]), len(records)
        ways = sharding.num_batch_shards(self._mesh)
        rows = -(-num // ways) * ways  # the same number on every device
        captions, embeddings = ([each[i % len(each)] for i in range(rows)] for each in (captions, embeddings))
        text = reader.pad_text(embeddings, config.text.length)
        low_res = None
        if config.is_super_resolution:
            low_res = resize.area(pictures[np.arange(rows) % num], config.low_res_size)
        mine = sharding.local_batch_indices(self._mesh, rows)
        inputs = jax.tree.map(lambda leaf: leaf[mine], (TextCond(text["text"], text["text_mask"]), low_res))
        images = self._run(_samples, params, *sharding.shard_batch(inputs, self._mesh, rows), self._null)[:num]
        if not np.isfinite(images).all():
            raise FloatingPointError("the network returned NaN or infinity")
        if not config.is_super_resolution:
            return labelled_grid(images, captions[:num], columns=min(num, 8))
        pairs = [image for pair in zip(low_res[:num], images, strict=True) for image in pair]
        labels = [label for caption in captions[:num] for label in ("low-res", caption)]
        return labelled_grid(pairs, labels, columns=min(2 * num, 8))


def _samples(
    config: StageConfig, mesh: Mesh, params: Any, text: TextCond, low_res: jax.Array | None, null: TextCond | None
) -> jax.Array:
    """Return one image per caption, replicated on every device; `null` is the null caption, None where it is zeros."""
    with sharding.use_mesh(mesh):
        keys = stage.image_keys(config.seed, len(text.mask))
        negative = null if config.sampling.is_guided else None
        made = one_stage.sample_stage(stage.Stage(params, config), text, keys, low_res=low_res, negative=negative)
    return jax.lax.with_sharding_constraint(made, sharding.replicated(mesh))


def _by_logsnr(sums: Any, counts: Any) -> dict[str, float]:
    """Return the mean validation loss of each bucket of log-SNR that has images."""
    return {
        f"validation_loss_logsnr/{bucket}": float(total / count)
        for bucket, total, count in zip(losses.BUCKETS, sums, counts, strict=True)
        if count
    }


def _apart(batch_size: int, num: int) -> int:
    """Return how many rows apart an image and the caption that it is shuffled with are, in batches of at least two.

    Half a batch, since records of one image with several captions are neighbours; where `num` records repeat within a
    batch, a nearby number at which no image meets its own caption.
    """

    def badness(rows: int) -> tuple[int, int]:
        meets_itself = (rows % num == 0) + ((batch_size - rows) % num == 0)  # the latter over the batch's end
        return meets_itself, abs(rows - batch_size // 2)

    return min(range(1, batch_size), key=badness)


def _fixed_losses(
    config: StageConfig, mesh: Mesh, params: Any, batch: stage.Batch, index: jax.Array, apart: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return sums of a batch's losses by log-SNR, their counts, and the sums with captions `apart` rows away: [K] each.

    Times are stratified over the batch; all noise depends on the seed and on the batch's index alone.
    """
    key = jax.random.fold_in(stage.named_key(jax.random.key(config.seed), "validation"), index)
    draws = stage.draw(config, key, len(batch["x"]))
    draws = sharding.constrain_batch(draws.replace(dropped=jnp.zeros_like(draws.dropped)), mesh)
    with sharding.use_mesh(mesh):
        right, logsnr_t = stage.image_losses(params, config, batch, draws, train=False)
        others = {name: jnp.roll(batch[name], apart, axis=0) for name in ("text", "text_mask")}
        wrong, _ = stage.image_losses(params, config, batch | others, draws, train=False)
    sums, counts = losses.by_logsnr(right, logsnr_t)
    found = sums, counts, losses.by_logsnr(wrong, logsnr_t)[0]
    return jax.lax.with_sharding_constraint(found, sharding.replicated(mesh))  # every process reads them
