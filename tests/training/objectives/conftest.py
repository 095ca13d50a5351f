"""Gaussian pictures whose mean follows caption and low-res image: their denoiser is known, and a table can learn it."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import config as C
from imagen_jax import image_keys, sample_stage, stage
from imagen_jax.config import distilled
from imagen_jax.diffusion import schedules
from imagen_jax.models.network import NetworkConfig
from imagen_jax.structs import Cond, TextCond

VAR = 0.1
NUM, SIZE, WIDTH = 16, 4, 3


def parts_of_mean(z_t, cond: Cond) -> tuple[jax.Array, jax.Array]:
    """A number of each caption, 0 for the null caption, and the low-res image: both like z_t."""
    caption = jnp.broadcast_to(cond.text.embeddings[:, 0, 0, None, None, None], z_t.shape)
    return caption, jnp.zeros_like(z_t) if cond.low_res_noised is None else cond.low_res_noised


class Exact(nn.Module):
    """E[x | z_t] for x ~ N(0.3 caption + 0.2 low_res, VAR), of which v follows."""

    @nn.compact
    def __call__(self, z_t: jax.Array, logsnr_t: jax.Array, cond: Cond, train: bool = False) -> jax.Array:
        self.param("unused", nn.initializers.zeros, (1,))
        alpha, sigma = (a[:, None, None, None] for a in schedules.alpha_sigma(logsnr_t))
        caption, low_res = parts_of_mean(z_t, cond)
        mean = 0.3 * caption + 0.2 * low_res
        x = mean + alpha * VAR * (z_t - alpha * mean) / (alpha**2 * VAR + sigma**2)
        return (alpha * z_t - x) / sigma


class Table(nn.Module):
    """Linear in z_t, caption, low-res image and 1, with a row of factors for each of some levels."""

    levels: tuple[float, ...]

    @nn.compact
    def __call__(self, z_t: jax.Array, logsnr_t: jax.Array, cond: Cond, train: bool = False) -> jax.Array:
        table = self.param("table", nn.initializers.normal(), (len(self.levels), 4))
        row = jnp.argmin(jnp.abs(logsnr_t[:, None] - jnp.asarray(self.levels)[None]), axis=1)
        caption, low_res = parts_of_mean(z_t, cond)
        return jnp.einsum("kbhwc,bk->bhwc", jnp.stack([z_t, caption, low_res, jnp.ones_like(z_t)]), table[row])


@dataclasses.dataclass(frozen=True)
class Linear(NetworkConfig):
    """`Table` of some levels; `Exact` without any."""

    levels: tuple[float, ...] = ()

    def build(self, **_: Any) -> nn.Module:
        return Table(self.levels) if self.levels else Exact()


@pytest.fixture(scope="module", params=["base", "super-resolution"])
def teacher(request) -> stage.Stage:
    """An exact stage, sampled with guidance 2 and no threshold."""
    config = C.StageConfig(
        image_size=SIZE,
        low_res_size=None if request.param == "base" else SIZE // 2,
        network=Linear(),
        process=C.ProcessConfig(prediction="v", max_aug_level=0.5),
        sampling=C.SamplingConfig(sampler="heun", steps=9, guidance_scale=2.0, threshold="none"),
        text=C.TextConfig(encoder="test", width=WIDTH, length=2),
        optim=C.OptimConfig(batch_size=NUM, warmup_steps=0, learning_rate=0.02, weight_decay=0.0),
    )
    return stage.Stage({"unused": jnp.zeros(1)}, config)


@pytest.fixture(scope="module")
def student_of(teacher):
    """student_of(steps, substeps) -> configuration of a student with a row for each level that it learns at."""

    def student(objective: str, steps: int, substeps: int) -> C.StageConfig:
        grid = schedules.grid(schedules.make("cosine"), steps * substeps)
        return distilled.with_sampling(
            dataclasses.replace(
                teacher.config,
                network=Linear(tuple(np.asarray(grid[:-1], float))),
                process=dataclasses.replace(teacher.config.process, prediction="x"),
                distilled=C.DistilledConfig(steps, substeps, guidance_scale=2.0),
                optim=dataclasses.replace(teacher.config.optim, objective=objective, teacher="elsewhere"),
            )
        )

    return student


@pytest.fixture(scope="module")
def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x": np.clip(rng.normal(0, 0.4, (NUM, SIZE, SIZE, 3)), -1, 1).astype("float32"),
        "text": rng.normal(size=(NUM, 2, WIDTH)).astype("float32"),
        "text_mask": np.ones((NUM, 2), bool),
    }


@pytest.fixture(scope="module")
def sampled(batch):
    """sampled(stage) -> images of the captions of `batch`, of as many small images for super-resolution."""
    text, low_res = TextCond(jnp.asarray(batch["text"]), jnp.asarray(batch["text_mask"])), None
    low_res = jnp.asarray(batch["x"][:, ::2, ::2])

    def sample(made: stage.Stage, **options: Any) -> jax.Array:
        sampling = C.override(made.config.sampling, options)
        given = low_res if made.config.is_super_resolution else None
        return sample_stage(made, text, image_keys(5, NUM), low_res=given, sampling=sampling)

    return sample
