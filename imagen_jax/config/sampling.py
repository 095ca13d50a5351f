"""How a stage is sampled, and how options override it."""

import dataclasses
from typing import Any, Literal

from imagen_jax.checks import plain


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How a stage is sampled. Every field can be overridden at sampling time.

    None is the method's own default. An option that the chosen method does not use must stay None.
    """

    sampler: Literal["ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "heun", "unipc"] = "ddim"
    """Method that goes from noise to image."""
    steps: int = 64
    """Steps of the sampler from noise to image."""
    ddpm_gamma: float | None = None
    """ddpm: interpolates the log-variance between its bounds, 0 lower and 1 upper; None: 0.2."""
    eta: float | None = None
    """ddim and dpmpp_2m_sde: share of fresh noise in each step, 0 none and 1 ancestral; None: 0 for ddim, 1 for
    dpmpp_2m_sde."""
    order: int | None = None
    """unipc: order, 1 to 3; None: 2."""
    churn: float | None = None
    """heun: noise added over the whole run; None: 0."""
    churn_min: float | None = None
    """heun: lowest sigma / alpha at which churn adds noise; None: 0.05."""
    churn_max: float | None = None
    """heun: highest sigma / alpha at which churn adds noise; None: 50."""
    churn_noise: float | None = None
    """heun: standard deviation of the noise that churn adds; None: 1.003."""

    schedule: str | None = None
    """Noise schedule; None: the one of training."""
    spacing: Literal["t", "logsnr", "rho", "trailing"] = "t"
    """Spacing of the noise levels: equal steps of time or of log-SNR, EDM's, or trailing on the thousand times of a
    discretely trained network."""
    sigma_min: float | None = None
    """Spacing logsnr and rho: lowest sigma / alpha; None: 0.002."""
    sigma_max: float | None = None
    """Spacing logsnr and rho: highest sigma / alpha; None: 80."""
    rho: float | None = None
    """Spacing rho: EDM's exponent; None: 7."""

    guidance: Literal["cfg", "apg", "cfg++"] = "cfg"
    """Guidance rule: classifier-free, adaptive projected, or CFG++ (with sampler ddim)."""
    guidance_scale: float = 5.0
    """Weight of the caption; 1 is off. For cfg++ in (0, 1], never off."""
    guidance_min_logsnr: float | None = None
    """Guide only at this log-SNR and above; elsewhere the scale is 1. None: no bound."""
    guidance_max_logsnr: float | None = None
    """Guide only at this log-SNR and below; elsewhere the scale is 1. None: no bound."""
    guidance_low: float | None = None
    """Scale of every other step; None: every step has guidance_scale."""
    guidance_low_start: int | None = None
    """Steps before guidance_low begins; None: 0."""
    guidance_rescale: float | None = None
    """Share of the guided estimate brought back to the contrast of the conditional one, in [0, 1]; None: 0."""
    apg_parallel: float | None = None
    """apg: share of the part along the conditional estimate; None: 0."""
    apg_norm: float | None = None
    """apg: largest root-mean-square of the difference; None: no bound."""
    apg_momentum: float | None = None
    """apg: weight of earlier differences, in (-1, 1), usually negative; None: 0."""

    threshold: Literal["dynamic", "static", "none"] = "dynamic"
    """How estimates are kept in range: scaled by a percentile of each image, clipped to [-1, 1], or not at all."""
    threshold_at: Literal["after", "before", "both"] = "after"
    """Threshold after guidance combines the estimates, before it, or both."""
    percentile: float | None = None
    """dynamic: share of the absolute values below the threshold, in (0, 1]; None: 0.995."""
    floor: float | None = None
    """dynamic: lower bound of the threshold; None: 1."""
    cap: float | None = None
    """dynamic: upper bound of the threshold; None: no bound."""

    aug_level: float = 0.1
    """Super-resolution only: sigma of the noise added to the low-res image, from 0 to process.max_aug_level."""
    strength: float = 1.0
    """With an image: the time to start from, in (0, 1]; 1 starts from noise alone."""
    resample: int = 1
    """With a mask: how many times each group of `jump` steps is run, so that the painted part fits the rest."""
    jump: int = 1
    """With a mask: steps in a group that `resample` repeats."""

    @property
    def is_guided(self) -> bool:
        return self.guidance_scale != 1 or self.guidance == "cfg++"


# option -> (the field that decides, its values that use the option)
USED_BY = {
    "ddpm_gamma": ("sampler", ("ddpm",)),
    "eta": ("sampler", ("ddim", "dpmpp_2m_sde")),
    "order": ("sampler", ("unipc",)),
    **dict.fromkeys(("churn", "churn_min", "churn_max", "churn_noise"), ("sampler", ("heun",))),
    **dict.fromkeys(("sigma_min", "sigma_max"), ("spacing", ("logsnr", "rho"))),
    "rho": ("spacing", ("rho",)),
    **dict.fromkeys(("apg_parallel", "apg_norm", "apg_momentum"), ("guidance", ("apg",))),
    **dict.fromkeys(("percentile", "floor", "cap"), ("threshold", ("dynamic",))),
}


NEED_CHURN = ("churn_min", "churn_max", "churn_noise")


NEED_GUIDANCE = (
    "guidance_min_logsnr", "guidance_max_logsnr", "guidance_low", "guidance_low_start", "guidance_rescale",
    "apg_parallel", "apg_norm", "apg_momentum",
)  # fmt: skip


def override(sampling: SamplingConfig, options: dict[str, Any]) -> SamplingConfig:
    """`sampling` with `options` put over it; what only its former method used goes with that method."""
    options = {name: plain(value) for name, value in options.items()}
    changed = dataclasses.replace(sampling, **options)
    stale = {
        name: None
        for name, (field, values) in USED_BY.items()
        if name not in options and field in options and getattr(changed, field) not in values
    }
    turned_off = "guidance_scale" in options and not changed.is_guided
    if turned_off or options.get("guidance") == "cfg++":
        stale |= dict.fromkeys(NEED_GUIDANCE)
    if turned_off or options.get("threshold") == "none":
        stale["threshold_at"] = "after"
    if turned_off:
        stale["guidance"] = "cfg"
    if options.get("resample") == 1:
        stale["jump"] = 1
    if options.get("churn") == 0:
        stale |= dict.fromkeys(NEED_CHURN)
    stale = {name: value for name, value in stale.items() if name not in options}
    return dataclasses.replace(changed, **stale)
