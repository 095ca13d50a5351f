"""Training objectives by name: `optim.objective` of a configuration chooses one.

An objective is a function `objective(params, batch, draws) -> (loss, metrics)`:

    params: parameters of the network, as from `stage.init`; the train step differentiates `loss` with respect to them.
    batch: see `stage.image_losses`.
    draws: the batch's random choices, as from `stage.draw`.
    loss: a float32 scalar, the mean over the images of the batch.
    metrics: name -> (sum, count), two scalars. Sums and counts are added over the parts of a batch and over steps; the
        quotient is logged under the name.

What is registered is a function from a `StageConfig` to such an objective:

    @OBJECTIVES.register("mine")
    def mine(config):
        def objective(params, batch, draws):
            ...
            return loss, {}

        return objective

With `@distillation.taught` below the registration, the objective learns from the stage that `optim.teacher` names, and
is called as `objective(params, batch, draws, teacher)` with that `stage.Stage`. `@distillation.distils` says the same,
and that what it trains is sampled in `distilled.steps` steps; see `distillation`. With `@distillation.with_auxiliary`
the parameters of a second network like the stage's own, which begins as a copy of it and is trained as well, are one
more argument, the last; the train step differentiates `loss` with respect to both.
"""

from imagen_jax.config import OBJECTIVES
from imagen_jax.training.objectives import consistency, denoising, moment_matching, preservation, progressive

__all__ = ["OBJECTIVES", "consistency", "denoising", "moment_matching", "preservation", "progressive"]
