"""Every field of a configuration, with values at and beyond its ends: refused in one line, or a stage that works."""

import dataclasses
import functools
import json
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import checks, stage
from imagen_jax import config as C
from imagen_jax.config.validation import validate, validate_for_training, validate_sampling
from imagen_jax.training.state import new_state

NAN, INF = math.nan, math.inf
WRONG = (None, NAN, INF, -INF, "", "8", b"8", True, 1.0, 1, -1, 0, 2**31, 2**63, 10**5000)
TUPLES = ((), (1,), ("a",), (True,), (0.5,) * 9)
OTHERS = (1e23, -1e23, 1j, [], {}, "\0", "\ud800", object(), C.TextConfig, C.TextConfig(), np.ones(3))
HOSTILE = (*WRONG, *TUPLES, *OTHERS)


def replace(config, path, value):
    head, _, tail = path.partition(".")
    return dataclasses.replace(
        config, **{head: replace(getattr(config, head), tail, value) if tail else value}
    )


def paths(config, prefix=""):
    """(path, type) of every field, also of the parts themselves."""
    if isinstance(config, C.SamplingConfig):
        hints = {name: each.hint | None if each.users else each.hint for name, each in C.flat_options().items()}
    else:
        hints = typing.get_type_hints(type(config))
    for name, hint in hints.items():
        yield f"{prefix}{name}", hint
        if dataclasses.is_dataclass(getattr(config, name)):
            yield from paths(getattr(config, name), f"{prefix}{name}.")


@functools.cache
def small(kind):
    """Configurations of one level, which are traced in a fraction of a second."""
    text = C.TextConfig(width=12, length=5)
    optim = C.OptimConfig(batch_size=8, warmup_steps=2)
    common = {"text": text, "optim": optim, "sampling": C.SamplingConfig(steps=4)}
    if kind == "base":
        network = C.UNetConfig((8,), (1,), (True,), embedding=8, head_dim=8)
        return C.StageConfig(image_size=8, network=network, **common)
    network = C.EfficientUNetConfig(8, (8,), (1,), (True,), (False,), embedding=8, num_heads=2)
    return C.StageConfig("sr16", 16, 8, 8, network=network, **common)


def trace(config):
    """Shapes of the state and of one training loss."""
    state = jax.eval_shape(lambda: new_state(config))
    size, rows = config.train_size, 8
    struct = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
    batch = {
        "x": struct(rows, size, size, config.image_channels),
        "text": struct(rows, config.text.length, config.text.width),
        "text_mask": struct(rows, config.text.length, dtype=bool),
    }
    if config.control_channels:
        batch["control"] = struct(rows, size, size, config.control_channels)
    loss = lambda params, batch: stage.loss(
        params, config, batch, stage.draw(config, jax.random.key(config.seed), rows)
    )
    assert jax.eval_shape(loss, state.params, batch).shape == ()


def is_refused(check, *arguments):
    """Whether a ValueError of one line in the project's form comes up."""
    try:
        check(*arguments)
    except ValueError as error:
        message = str(error)
        assert " must " in message and "; got " in message and "\n" not in message and len(message) < 500, (
            message
        )
        return True
    return False


@pytest.mark.parametrize("kind", ["base", "sr"])
def test_every_field_with_hostile_values(kind):
    """Nothing but a ValueError comes up, and no value of a wrong type passes."""
    config = small(kind)
    validate(config)
    passed = {}
    for path, hint in paths(config):
        for value in HOSTILE:
            changed = replace(config, path, value)
            if not is_refused(validate, changed):
                passed.setdefault(path, []).append(value)
                is_tuple = typing.get_origin(hint) is tuple
                kinds = (hint,) if is_tuple else typing.get_args(hint) or (hint,)
                if value is None:
                    assert type(None) in kinds, path
                if hint is bool:
                    assert isinstance(value, bool), path
                if {int, float} & set(kinds):
                    assert value is None or (
                        isinstance(value, int | float) and not isinstance(value, bool)
                    ), path
                if int in kinds:
                    assert not isinstance(value, float), path
                if isinstance(value, int | float):
                    most = checks.MAX_SEED if path == "seed" else checks.MAX_COUNT
                    assert abs(value) <= most and math.isfinite(value), (path, value)
    assert set(passed["optim.clip_norm"]) == {0, 1}
    assert passed["seed"] == [1, 0, 2**31]  # True is no seed


NO_ATTENTION = {"network.attention": (False, False), "network.num_res_blocks": (1, 3)}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("base", {"network.channels": (1,), "network.head_dim": 1, "image_size": 1, "image_channels": 1}),
        ("base", {"network.channels": (8, 18), **NO_ATTENTION}),  # 4 groups of a norm do not divide 18
        ("base", {"network.channels": (2**16,), "image_size": 2**14, "network.dropout": 0.999}),
        ("base", {"image_channels": 1024, "control_channels": 5, "text.width": 1, "text.length": 2**16}),
        ("base", {"network.embedding": 12, "text.length": 1, "process.cond_drop_prob": np.float32(0.5)}),
        ("base", {"process.loss_weight": "min_snr", "process.min_snr_gamma": 1e-9, "optim.warmup_steps": 0}),
        ("base", {"network.patch_size": 8, "network.patch_transform": "haar", "process.loss_weight": "v"}),
        ("sr", {"network.patch_size": 4, "process.times": "logit_normal", "process.loss_weight": "sigmoid"}),
        (
            "base",
            {"process.loss_weight": "sigmoid", "process.sigmoid_bias": -50.0, "optim.decay_steps": 10**9},
        ),
        (
            "base",
            {"optim.eps": 1e-30, "optim.clip_norm": 0.0, "optim.ema_decay": 0.0, "optim.warmup_steps": 10**9},
        ),
        ("base", {"optim.batch_size": np.int64(2**20), "seed": 2**32 - 1, "optim.optimizer": "muon"}),
        (
            "sr",
            {"network.stem_channels": 1, "network.channels": (18,), "seed": np.uint32(7), "crop_size": None},
        ),
        ("sr", {"network.stem_channels": 18, "network.num_heads": 8, "low_res_size": 1, "crop_size": None}),
        ("sr", {"low_res_size": 15, "crop_size": None, "process.max_aug_level": 0.1}),
        ("sr", {"crop_size": 2, "optim.optimizer": "adafactor", "process.prediction": "edm"}),
    ],
)
def test_extreme_values_that_pass_work(kind, changes):
    config = small(kind)
    for path, value in changes.items():
        config = replace(config, path, value)
    trace(validate(config))
    assert C.from_dict(json.loads(json.dumps(C.to_dict(config)))) == config


@pytest.mark.parametrize(
    ("kind", "path", "value", "message"),
    [
        ("base", "seed", -1, "seed must be at least 0; got -1"),
        ("base", "seed", 2**32, "seed must be at most 4294967295; got 4294967296"),
        ("base", "seed", True, "seed must be a whole number from 0 to 4294967295; got True"),
        ("base", "network.embedding", 4, "network.embedding must be at least 8; got 4"),
        ("base", "network.head_dim", 0, "network.head_dim must be at least 1; got 0"),
        ("base", "network.dropout", 1.0, r"network.dropout must be in \[0, 1\); got 1.0"),
        ("base", "network.channels", (), r"network.channels must have at least one level; got \(\)"),
        ("base", "network.channels", (8.0,), r"network.channels\[0\] must be a whole number from 1 to 65536; got 8.0"),
        ("base", "network.attention", (1,), r"network.attention\[0\] must be True or False; got 1"),
        ("base", "network", None, "network must be a NetworkConfig; got None"),
        ("sr", "network.num_heads", 0, "network.num_heads must be at least 1; got 0"),
        ("base", "name", "a" * 300, "name must have at most 100 characters"),
        ("base", "optim", {}, r"optim must be an OptimConfig; got \{\}"),
        ("base", "optim.learning_rate", NAN, "optim.learning_rate must be a finite number; got nan"),
        ("base", "optim.learning_rate", 1e23, r"optim.learning_rate must be in \(0, 1000\]; got 1e\+23"),
        ("base", "optim.b2", 1.0, r"optim.b2 must be in \[0, 1\); got 1.0"),
        ("base", "optim.eps", 0.0, r"optim.eps must be in \(0, 1\]; got 0.0"),
        ("base", "optim.warmup_steps", -1, "optim.warmup_steps must be at least 0; got -1"),
        ("base", "optim.warmup_steps", 10**23, "optim.warmup_steps must be at most 1000000000; got 1"),
        ("base", "run.stall_timeout", 10**23, "run.stall_timeout must be at most 31536000; got 1"),
        ("base", "run.num_steps", 1e3, "run.num_steps must be a whole number from 1 to 1000000000; got 1000.0"),
        ("base", "run.data_threads", 10**6, "run.data_threads must be at most 256; got 1000000"),
        ("base", "run.prompts", "a red star", "run.prompts must be a tuple; got 'a red star'"),
        ("base", "run.prompts", ("a", 5), r"run.prompts\[1\] must be a str; got 5"),
        ("base", "data.path", "", "data.path must not be empty; got ''"),
        ("base", "data.split", "train\0", "data.split must be text without null characters"),
        ("base", "data.flip", 1, "data.flip must be True or False; got 1"),
        ("base", "process.schedule", "quadratic", "process.schedule must be one of cosine, "),
        ("base", "process.prediction", None, "process.prediction must be one of x, eps, v, edm; got None"),
        ("base", "process.min_snr_gamma", 0.0, "process.min_snr_gamma must be in "),
        ("base", "text.encoder", " ", "text.encoder must not be empty; got ' '"),
        ("base", "text.length", 10**400, r"text.length must be at most 65536; got 10{79} \.\.\. \(401 characters\)"),
        ("base", "optim.prior_weight", 0.5, "optim.prior_weight must be 1.0 without data.prior_path; got 0.5"),
        ("base", "data.prior_split", "test", "data.prior_split must be train without data.prior_path; got 'test'"),
        ("base", "data.prior_path", "gs://b/c", "data.prior_path must be a path of this machine; got 'gs://b/c'"),
        ("base", "lora.rank", -1, "lora.rank must be at least 0; got -1"),
        ("base", "lora.scale", 2.0, "lora.scale must be 1.0 with lora.rank 0, which has no adapters; got 2.0"),
        ("base", "lora.targets", "all", "lora.targets must be attention with lora.rank 0, .*; got 'all'"),
        ("base", "lora.targets", "text", "lora.targets must be one of attention, all; got 'text'"),
        ("base", "sampling.steps", 10**9, "sampling.steps must be at most 10000; got 1000000000"),
        ("base", "sampling.guidance_scale", 1e39, r"sampling.guidance_scale must be in \[-1000, 1000\]; got 1e\+39"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(kind, path, value, message):
    with pytest.raises(ValueError, match=message):
        validate(replace(small(kind), path, value))


@pytest.mark.parametrize("value", [None, 5, "base", (), [small("base")], C.StageConfig])
def test_only_configurations_are_validated(value):
    with pytest.raises(ValueError, match="config must be a StageConfig; got"):
        validate(value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_channels": 1},
            "image_channels must be 3 to train on a data set, whose pictures are RGB; got 1: tra",
        ),
        ({"image_channels": 4}, "image_channels must be 3 .* got 4: train with stage.loss"),
        ({"image_channels": 2}, "image_channels must be 3 .* got 2"),
        ({"control_channels": 1}, 'control_channels must be 0 .* got 1: train with .* "control"'),
    ],
)
def test_what_no_data_set_holds_is_refused_for_training(changes, message):
    config = dataclasses.replace(small("base"), **changes)
    validate(config)  # it can be trained with a batch of one's own
    with pytest.raises(ValueError, match=message):
        validate_for_training(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"spacing": "trailing", "strength": 4e-4},
            "strength must be at least 0.001 with spacing 'trailing'",
        ),
        (
            {"spacing": "trailing", "strength": 1e-300},
            "strength must be at least 0.001 with spacing 'trailing'",
        ),
        ({"spacing": "trailing", "steps": 1001}, "steps must be at most 1000 with spacing 'trailing'"),
        ({"steps": 10_000, "resample": 11}, "resample must be at most 10 with 10000 steps; got 11"),
        ({"strength": 0}, r"strength must be in \(0, 1\]; got 0"),
        ({"strength": NAN}, "strength must be a finite number; got nan"),
    ],
)
def test_the_shortest_and_longest_ways(options, message):
    config = small("base")
    with pytest.raises(ValueError, match=message):
        validate_sampling(config, dataclasses.replace(config.sampling, **options))
