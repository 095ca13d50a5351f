"""Prior preservation by a teacher: what a network predicted before fine-tuning, it predicts afterwards."""

from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax import stage
from imagen_jax.config import OBJECTIVES, StageConfig
from imagen_jax.diffusion import process
from imagen_jax.diffusion.denoisers import as_estimate
from imagen_jax.training import prior
from imagen_jax.training.objectives.denoising import Metrics, mean_and_metrics
from imagen_jax.training.objectives.distillation import taught


@OBJECTIVES.register("preservation")
@taught
def preservation(config: StageConfig) -> Any:
    """Return the objective of `denoising` whose target is the teacher's x_hat on pictures of `data.prior_path`.

    Captions are dropped on these pictures alone.

    In prior preservation (DreamBooth, Ruiz et al. 2022, arXiv 2208.12242, section 3.3) the targets are the pictures,
    whose gradient is noisy, and not zero in a network that has not changed. The teacher's estimate of the same z_t and
    the same caption, dropped or not, is what the network began with, so that this gradient begins at zero (learning
    without forgetting, Li & Hoiem 2016, arXiv 1606.09282).

    "preservation" in the metrics is the loss of these pictures alone.
    """

    def objective(
        params: Any, batch: stage.Batch, draws: stage.Draws, teacher: stage.Stage
    ) -> tuple[jax.Array, Metrics]:
        stage.check_batch(config, batch, draws)
        # What is predicted without a caption, by which all pictures are guided, belongs to what is preserved.
        draws = draws.replace(dropped=prior.with_rows(jnp.zeros_like(draws.dropped), prior.rows(draws.dropped)))
        logsnr_t = stage.schedule(config).logsnr(draws.t)
        x, eps, z_t, cond = stage.noised(config, batch, draws, logsnr_t)
        z_prior, logsnr_prior, cond_prior = jax.tree.map(prior.rows, (z_t, logsnr_t, cond))
        x_prior = as_estimate(teacher.denoise(z_prior, logsnr_prior, cond_prior)).x
        x = prior.with_rows(x, x_prior)
        eps = prior.with_rows(eps, process.eps_from(z_prior, x_prior, logsnr_prior, "x"))
        per_image = stage.losses_of(params, config, draws, z_t, logsnr_t, cond, x=x, eps=eps)
        loss, metrics = mean_and_metrics(per_image, logsnr_t, batch.get("weight", 1))
        of_prior = prior.rows(per_image)
        return loss, metrics | {"preservation": (jnp.sum(of_prior), jnp.float32(len(of_prior)))}

    return objective
