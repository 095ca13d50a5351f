"""Guidance turns a conditional denoiser into a denoiser: (z_t, logsnr_t) -> x_hat.

Every method pairs x_cond, the estimate that follows the prompt, with x_null, one that does so less, and combines the
two by a `Rule` and a scale: 1 is off, and there only x_cond is computed. The combinations are of x_hat; since their
weights sum to 1, guiding x is the same as guiding eps or v. Rules are dataclasses of their options, one in a file.
"""

from imagen_jax.diffusion.denoisers import DenoiseFn, Denoiser, Estimate, Stateful, then
from imagen_jax.diffusion.guidance.apg import APG
from imagen_jax.diffusion.guidance.cfg import CFG
from imagen_jax.diffusion.guidance.cfg_plus_plus import CFGPlusPlus
from imagen_jax.diffusion.guidance.guided import autoguidance, check_weights, classifier_free
from imagen_jax.diffusion.guidance.rule import RULES, Rescaled, Rule
from imagen_jax.diffusion.guidance.scales import Scale, interval, oscillating

# The names of the rules as functions of their options.
linear, projected, plus_plus, rescaled = CFG, APG, CFGPlusPlus, Rescaled

__all__ = [
    "APG", "CFG", "RULES", "CFGPlusPlus", "DenoiseFn", "Denoiser", "Estimate", "Rescaled", "Rule", "Scale", "Stateful",
    "autoguidance", "check_weights", "classifier_free", "interval", "linear", "oscillating", "plus_plus", "projected",
    "rescaled", "then",
]  # fmt: skip
