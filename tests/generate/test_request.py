"""Requests: one check before anything is loaded, and jobs of prompts and seeds."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from imagen_jax import sharding
from imagen_jax.generate import in_turn, prompts, request
from imagen_jax.sampling import plan
from imagen_jax.stage_dir import loading


@pytest.fixture
def cascade(tiny_stages, monkeypatch):
    """`request.Request` of any workdir is for the tiny cascade, of which nothing can be loaded."""

    def load(*_, **__):
        raise AssertionError("loaded")

    without_params = tuple(stage.replace(params=None) for stage in tiny_stages)
    monkeypatch.setattr(loading, "read_cascade", lambda workdir, best: without_params)
    monkeypatch.setattr(loading, "load_cascade", load)
    return Path("anywhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {"steps": 0}}, "steps must be at least 1"),
        ({"options": {"eta": 2.0}}, "eta must be in"),
        ({"options": {"strength": 0.5}}, "strength must be 1 without an image"),
        ({"options": {"resample": 2}}, "resample must be 1 without a mask"),
        ({"inputs": {"image": "photo.png"}}, "strength must be below 1 for an image without a mask"),
        ({"negative": "blue", "options": {"guidance_scale": 1.0}}, "guidance_scale must not be 1 .off. in every stage"),
        ({"options": {"spacing": "rho", "sigma_max": 1e30}}, "sigma_max must be"),
        ({"start": "sr16"}, "low_res must be given to the super-resolution stage sr16"),
        ({"size": (15, 16)}, "size must be .H, W. in multiples of"),
        ({"fsdp": 3}, "--fsdp must be a divisor of the 8 devices; got 3"),
        ({"batch_size": 2**16 + 1}, "--batch-size must be at most 65536"),
        ({"jobs": [("a\0", 0)]}, r"prompts\[0\] must be text without"),
        ({"sampling": {}}, "--workdir must hold the stages"),
    ],
)
def test_all_is_checked_before_anything_is_loaded(cascade, tmp_path, changes, message):
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "photo.png")
    if "inputs" in changes:
        changes = {"inputs": {name: tmp_path / file for name, file in changes["inputs"].items()}}
    with pytest.raises(ValueError, match=f"^{message}"):
        request.prepare(request.Request(**({"workdir": cascade, "jobs": [("a", 0)]} | changes)))


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_a_request_is_checked_once(one_at_a_time, cascade, tiny_stages, tiny_text, monkeypatch):
    checked, asked_for = [], []
    monkeypatch.setattr(prompts, "plan_cascade", lambda *a, **o: checked.append(o) or plan.plan_cascade(*a, **o))
    asked = request.Request(
        workdir=cascade,
        jobs=[("a", 0), ("b", 1)],
        options={"steps": 2},
        text_dtype="int8",
        one_at_a_time=one_at_a_time,
    )
    prepared = request.prepare(asked)
    assert prepared.size == (16, 16) and [s.steps for s in prepared.plan.cascade.sampling] == [2, 2]
    assert prepared.plan.batch_size == sharding.num_batch_shards(sharding.make_mesh())

    class Encoder:
        name, width, fingerprint = "test", tiny_text.embeddings.shape[-1], "0"

        def encode(self, captions):
            return jax.tree.map(lambda leaf: leaf[: len(captions)], tiny_text)

    def run(cascade):
        assert cascade.stages[0].params is not None
        images = tuple(jax.numpy.zeros((len(cascade.keys), *recipe.size, 3)) for recipe in cascade.recipes)
        return images, ()

    steps = {"base": 5, "sr16": 7}
    if one_at_a_time:
        load = {each.config.name: lambda own=each: (own, steps[own.config.name]) for each in tiny_stages}
        monkeypatch.setattr(loading, "stage_loaders", lambda *_: load)
    else:
        monkeypatch.setattr(loading, "load_cascade", lambda *_, **__: (tiny_stages, steps))
    monkeypatch.setattr(request.encoders, "from_config", lambda config: asked_for.append(config.dtype) or Encoder())
    for module in (prompts, in_turn):
        monkeypatch.setattr(module, "run_cascade", run)
        monkeypatch.setattr(module, "raise_if_any_broken", lambda *_: None)
    drawn = list(request.draw(prepared))
    assert [(record.prompt, record.seed, record.row) for record, _ in drawn] == [("a", 0, 0), ("b", 1, 1)]
    assert drawn[0][0].checkpoints == steps and drawn[0][0].sampling["sr16"].steps == 2
    assert drawn[0][1].shape == (16, 16, 3) and len(checked) == 1
    assert asked_for == ["int8"] and drawn[0][0].text_dtype == "int8"


@pytest.mark.parametrize(
    ("prompts", "seed", "num", "expected"),
    [
        (["a", "b"], 5, 2, [("a", 5), ("a", 6), ("b", 5), ("b", 6)]),
        (["a"], 2**32 - 2, 2, [("a", 2**32 - 2), ("a", 2**32 - 1)]),
        (["a"], 2**32 - 2, 3, "--seed must be at most 4294967293"),
        (["a"], 2**32, 1, "--seed must be at most 4294967295"),
        (["a"], -1, 1, "--seed must be at least 0"),
        (["a"], 2**64 + 1, 1, "--seed must be at most"),
        (["a"], 0, 0, "--num must be at least 1"),
        (["a"], 0, -5, "--num must be at least 1"),
        (["a"], 0, 10**23, "--num must be at most 100000"),
        (["a"], 0, 10**9, "--num must be at most 100000"),
        (["a", "b", "c"], 0, 33334, "--num must be at most 33333"),
        (["a"] * 100_001, 0, 1, "prompts must be at most 100000"),
    ],
)
def test_jobs(prompts, seed, num, expected):
    if isinstance(expected, list):
        assert request.jobs(prompts, seed, num) == expected
    else:
        with pytest.raises(ValueError, match=f"^{expected}"):
            request.jobs(prompts, seed, num)
