"""Wrong arguments of the public functions: one line in the project's form, before anything is traced or written."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagen_jax import (
    Cond,
    Stage,
    TextCond,
    TextEncoder,
    image_keys,
    load_cascade,
    load_stage,
    resize,
    sample_cascade,
    sharding,
    stage,
)
from imagen_jax.config.presets import load_preset
from imagen_jax.diffusion import (
    augmentation,
    editing,
    guidance,
    losses,
    process,
    samplers,
    schedules,
    spacings,
    thresholding,
)
from imagen_jax.diffusion.denoisers import Estimate
from imagen_jax.diffusion.guidance.cfg_plus_plus import CFGPlusPlus
from imagen_jax.generate import compiled, pmapped
from imagen_jax.generate import prompts as generate
from imagen_jax.models import lora
from imagen_jax.sampling import one_stage
from tests.conftest import WIDTH

CALLS = int(os.environ.get("IMAGEN_JAX_CALLS", "300"))  # of the property test; 1000 take about a minute
KEYS = image_keys(3, 7)
COSINE = schedules.make("cosine")
NAN, INF = np.nan, np.inf


def text(rows=7, length=5, width=WIDTH, **parts):
    whole = {"embeddings": jnp.zeros((rows, length, width)), "mask": jnp.ones((rows, length), bool)}
    return TextCond(**(whole | parts))


class Sampled(Exception):
    """A request passed all checks."""


@pytest.fixture
def checked_only(monkeypatch):
    """Stages are not sampled: their first call raises Sampled."""

    def sample(*_, **__):
        raise Sampled

    monkeypatch.setattr(one_stage, "_sample", sample)


def picture(value=0.0, size=16, dtype=np.float32):
    return np.full((7, size, size, 3), value, dtype)


def with_pixel(value, dtype=np.float32):
    image = picture(dtype=dtype)
    image[3, 2, 1, 0] = value
    return image


# --- pictures -------------------------------------------------------------------------------------

MASK = {"mask": np.ones((7, 16, 16), bool)}
NAMED = {
    "image": {"mask": np.ones((7, 16, 16))},
    "low_res": {"start": "sr16"},
    "z_1": {"stop": "base"},
}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (with_pixel(255.0), r"must be in \[-1, 1\]; got values from 0 to 255: x / 127.5 - 1 of 0..255"),
        (with_pixel(1.02), r"must be in \[-1, 1\]; got values from 0 to 1.02"),
        (with_pixel(-1.5), r"must be in \[-1, 1\]; got values from -1.5 to 0"),
        (with_pixel(NAN), r"must hold finite numbers \(a picture .*; got 1 of 5376 .* the first in row 3"),
        (with_pixel(-INF), "must hold finite numbers"),
        (with_pixel(NAN, np.float16), "must hold finite numbers"),
        (jnp.asarray(with_pixel(2.0), jnp.bfloat16), r"must be in \[-1, 1\]; got values from 0 to 2"),
        (jnp.asarray(with_pixel(NAN), jnp.bfloat16), "must hold finite numbers"),
        (
            picture(200, dtype=np.uint8),
            r"must be float in \[-1, 1\]; got uint8 of shape .*: x / 127.5 - 1 of 0..255",
        ),
        (picture(0, dtype=np.int64), r"must be float in \[-1, 1\]; got int64"),
        (picture(True, dtype=bool), r"must be float in \[-1, 1\]; got bool"),
        (picture(0, dtype=np.complex64), r"must be float in \[-1, 1\]; got complex64"),
        ("photo.png", r"must be an array of floats in \[-1, 1\]; got 'photo.png'"),
        (picture().tolist(), r"must be an array of floats in \[-1, 1\]; got \["),
        (5, r"must be an array of floats in \[-1, 1\]; got 5"),
        (np.array("a"), r"must be float in \[-1, 1\]; got <U1"),
    ],
)
def test_pictures_out_of_range_are_refused_by_name(tiny_stages, tiny_text, value, message, checked_only):
    for name in ("image", "low_res"):
        given = (
            value[:, :8, :8] if name == "low_res" and hasattr(value, "shape") and np.ndim(value) else value
        )
        whole = message.replace("5376", "1344") if name == "low_res" else message
        with pytest.raises(ValueError, match=f"^{name} {whole}"):
            sample_cascade(tiny_stages, tiny_text, KEYS, **{name: given}, **NAMED[name])
    with pytest.raises(ValueError, match=f"^low_res {message.replace('5376', '1344')}"):
        one_stage.sample_stage(tiny_stages[1], tiny_text, KEYS, low_res=given)
    with pytest.raises(ValueError, match=f"^image {message}"):
        pmapped.pmap_sample_cascade(tiny_stages, tiny_text, KEYS, image=value, **MASK)


@pytest.mark.parametrize(
    "value", [with_pixel(1.004), with_pixel(-1.0), jnp.asarray(with_pixel(1), jnp.bfloat16)]
)
def test_rounding_is_no_fault(tiny_stages, tiny_text, value, checked_only):
    with pytest.raises(Sampled):
        sample_cascade(tiny_stages, tiny_text, KEYS, image=value, **MASK)


def test_pictures_from_0_to_1_are_warned_of(tiny_stages, tiny_text, checked_only):
    image = np.linspace(0, 1, 7 * 16 * 16 * 3, dtype=np.float32).reshape(7, 16, 16, 3)
    with pytest.warns(UserWarning, match="image has no value below 0"), pytest.raises(Sampled):
        sample_cascade(tiny_stages, tiny_text, KEYS, image=image, **MASK)


def test_values_are_not_looked_at_inside_jit(tiny_stages, tiny_text, monkeypatch):
    """They are not known there, and nothing is added to the program."""
    monkeypatch.setattr(
        one_stage, "_sample", lambda *_, recipe: (jnp.zeros((7, *recipe.size, 3)), None)
    )
    monkeypatch.setattr("imagen_jax.sampling.cascade.raise_if_any_broken", lambda *_: None)
    run = jax.jit(lambda image: sample_cascade(tiny_stages, tiny_text, KEYS, image=image, **MASK))
    assert run(with_pixel(NAN)).shape == (7, 16, 16, 3)
    assert "isfinite" not in str(jax.make_jaxpr(run)(with_pixel(0.0)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": with_pixel(255.0)[:, :8, :8]}, r'batch\["x"\] must be in \[-1, 1\]'),
        ({"x": np.full((7, 8, 8, 3), NAN)}, r'batch\["x"\] must hold finite numbers'),
        ({"x": np.zeros((7, 8, 8, 3), np.uint8)}, r'batch\["x"\] must be float in \[-1, 1\]; got uint8'),
        ({"x": np.zeros((7, 8, 4, 3))}, r'batch\["x"\] must be \[7, 8, 8, 3\]; got \(7, 8, 4, 3\)'),
        ({"text": None}, r"must have embeddings \[B, L, D\] of floats"),
        ({"text": jax.ShapeDtypeStruct((7, 5, WIDTH), jnp.float32)}, "must hold arrays, one row for each image"),
        ({"text": np.full((7, 5, WIDTH), NAN)}, r'batch\["text"\].embeddings must hold finite numbers'),
        ({"text_mask": np.zeros((7, 5), bool)}, r'batch\["text"\].mask must have a True in every row'),
        ({"text": np.zeros((7, 5, 3), np.float32)}, r'batch\["text"\] must have embeddings of width 12, .*; got 3'),
        ({"control": np.zeros((7, 8, 8, 1))}, "batch must have control in a stage with control_channels alone"),
        ({"null": np.zeros((1, 5, 12))}, "null must be a TextCond; got"),
        ({"null": text(1, 4)}, r"null must have embeddings \[1, 5, 12\]; got \(1, 4, 12\)"),
    ],
)
def test_batches_are_checked_outside_jit(tiny_stages, tiny_text, changes, message):
    base = tiny_stages[0]
    batch = {"x": np.zeros((7, 8, 8, 3)), "text": tiny_text.embeddings, "text_mask": tiny_text.mask}
    with pytest.raises(ValueError, match=message):
        stage.loss(base.params, base.config, batch | changes, stage.draw(base.config, jax.random.key(0), 7))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keys": None}, "draws.keys must be"),
        ({"keys": KEYS[:2]}, "draws.keys must have 7 rows; got 2"),
        ({"dropped": None}, "draws.dropped must be an array"),
        ({"dropped": jnp.zeros(3, bool)}, "draws.dropped must have 7 rows; got 3"),
        ({"aug_level": "0"}, "draws.aug_level must be an array of floats with 1 axis; got '0'"),
        ({"aug_level": jnp.full(7, 1.5)}, r"draws.aug_level must be in \[0, 1\]; got values from 1.5"),
        ({"t": jnp.zeros(3)}, "draws.t must have 7 rows; got 3"),
        ({"t": jnp.full(7, 500.0)}, r"draws.t must be in \[0, 1\]; got values from 500"),
        ({"t": jnp.full(7, NAN)}, r"draws.t must be in \[0, 1\]; got values from nan"),
        ({"t": 0.5}, "draws.t must be an array of floats with 1 axis; got 0.5"),
        ({"dropped": jnp.full(7, 0.1)}, "draws.dropped must be an array of bool"),
    ],
)
def test_draws_are_checked(tiny_stages, tiny_text, changes, message):
    base = tiny_stages[0]
    batch = {"x": np.zeros((7, 8, 8, 3)), "text": tiny_text.embeddings, "text_mask": tiny_text.mask}
    draws = stage.draw(base.config, jax.random.key(0), 7).replace(**changes)
    with pytest.raises(ValueError, match=f"^{message}"):
        stage.loss(base.params, base.config, batch, draws)
    with pytest.raises(ValueError, match="^batch must be a dict of x, text, text_mask"):
        stage.loss(base.params, base.config, {1: 2, "a": 3}, draws)


def test_grids_of_numpy_are_sampled_on():
    made = samplers.sample(lambda z_t, logsnr_t: 0 * z_t, np.zeros((2, 4)), np.array([-5, 0, 20]))
    assert made.shape == (2, 4)


# --- seeds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seed",
    [-1, 2**32, 2**32 + 1, 2**63, 2**64, 10**5000, 1e23, 1.0, NAN, True, np.bool_(True), np.float32(1), "1", None, [1],
     np.arange(2), b"1", 1j, (), object()],
    ids=lambda seed: f"{type(seed).__name__}{'' if isinstance(seed, int) else seed!s:.8}",
)  # fmt: skip
def test_what_is_no_seed(seed):
    with pytest.raises(ValueError, match=r"^seed must be (a whole number from 0 to|at least 0|at most) ?\d*"):
        image_keys(seed, 1)


@pytest.mark.parametrize("seed", [0, 3, np.int64(3), np.uint32(2**32 - 1), np.array(5), jnp.int32(7), 2**31])
def test_seeds_give_the_keys_that_they_gave(seed):
    expected = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(int(seed)), i))(jnp.arange(3))
    np.testing.assert_array_equal(jax.random.key_data(image_keys(seed, 3)), jax.random.key_data(expected))


@pytest.mark.parametrize("num", [0, -1, 1.0, True, None, "2", 10**23])
def test_numbers_of_keys(num):
    with pytest.raises(ValueError, match="^num must be"):
        image_keys(0, num)


# --- requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": ()}, r"stages must be a tuple of at least one Stage.*; got \(\)"),
        ({"stages": "runs/quickstart"}, "stages must be a tuple of at least one Stage.*; got 'runs/quickstart'"),
        ({"stages": None}, "stages must be a tuple"),
        ({"stages": {}}, "stages must be a tuple"),
        ({"stages": ("base",)}, r"stages\[0\] must be a Stage, as from load_stage; got 'base'"),
        ({"stages": (Stage(params={}, config=None),)}, r"stages\[0\].config must be a StageConfig; got None"),
        ({"text": jax.eval_shape(text)}, "text must hold arrays, as from TextEncoder.encode; got jax.ShapeDtypeStruct"),
        ({"keys": jax.eval_shape(lambda: KEYS)}, "keys must hold arrays, as from image_keys; got jax.ShapeDtypeStruct"),
        ({"negative": jax.eval_shape(text)}, "negative must hold arrays"),
        ({"text": text(embeddings=np.full((7, 5, WIDTH), 1e300))}, "text.embeddings must hold finite numbers"),
        ({"text": "a red star"}, "text must be a TextCond.*; got 'a red star': encode captions"),
        ({"text": ["a red star"] * 7}, "text must be a TextCond"),
        ({"text": np.zeros((7, 5, WIDTH))}, "text must be a TextCond.*; got float64 of shape"),
        ({"text": ()}, r"text must be a TextCond.*; got \(\)"),
        ({"text": None}, "text must be a TextCond"),
        ({"text": text(rows=0)}, "text must have embeddings"),
        ({"text": text(length=0)}, "text must have embeddings"),
        ({"text": text(mask=jnp.ones((7, 5)))}, "text must have embeddings .* bool mask .*; got float32 .* float32"),
        ({"text": text(mask=None)}, "text must have embeddings .* NoneType"),
        ({"text": text(embeddings=[[1.0]])}, "text must have embeddings .* got  ?list"),
        ({"text": text(embeddings=jnp.zeros((7, 5, WIDTH), int))}, "text must have embeddings .* got int32"),
        ({"text": text(embeddings=jnp.full((7, 5, WIDTH), NAN))}, "text.embeddings must hold finite numbers"),
        ({"text": text(mask=jnp.zeros((7, 5), bool))}, "text.mask must have a True in every row"),
        ({"text": text(width=99)}, "text must have the width 12"),
        ({"keys": None}, "keys must be .* as from image_keys; got None"),
        ({"keys": 5}, "keys must be .* as from image_keys; got 5"),
        ({"keys": list(KEYS)}, "keys must be .* as from image_keys; got "),
        ({"keys": jnp.zeros(7)}, "keys must be .*; got float32"),
        ({"keys": jnp.zeros((7, 3), jnp.uint32)}, r"keys must be .*; got uint32 of shape \(7, 3\)"),
        ({"keys": KEYS[:0]}, "keys must be"),
        ({"keys": jax.random.key(0)}, "keys must be"),
        ({"mask": "mask.png", "image": picture()}, "mask must be an array of numbers; got 'mask.png': 1 is paint"),
        ({"mask": [[1]], "image": picture()}, "mask must be an array"),
        ({"mask": np.full((7, 16, 16), 255, np.uint8), "image": picture()}, "mask must hold 1 .* from 255 to 255"),
        ({"mask": np.full((7, 16, 16), NAN), "image": picture()}, "mask must hold 1"),
        ({"mask": np.full((7, 16, 16), "1"), "image": picture()}, "mask must be an array of numbers; got <U1"),
        ({"mask": np.ones((7, 16, 16))}, "mask must have the image's size"),
        ({"negative": "blue"}, "negative must be a TextCond; got 'blue'"),
        ({"negative": text(embeddings=None)}, "negative must have embeddings"),
        ({"control": 5}, "control must be an array of floats"),
        ({"control": None, "cond_image": None}, "cond_image must be left out beside control, whose former name it is"),
        ({"z_1": "noise"}, "z_1 must be"),
        ({"z_1": picture(NAN, 8)}, r"z_1 must hold finite numbers \(standard normal noise\)"),
        ({"z_1": picture(200.0, 8)}, "z_1 must be standard normal noise; got values from 200 to 200"),
        ({"z_1": (None, picture(INF))}, r"z_1\[1\] must hold finite numbers"),
        ({"weak": 5, "stop": "base"}, "weak must be a Stage"),
        ({"weak": ("a", None)}, "weak must be a Stage"),
        ({"weights": 5}, "weights must be a list or tuple of numbers; got 5"),
        ({"weights": "1"}, "weights must be a list or tuple of numbers"),
        ({"weights": (0.5, 0.5)}, "weights must be one for each text .* for 1"),
        ({"text": (text(), text()), "weights": (1, 1)}, r"weights must be .* sum to 1 .*got \(1, 1\) for 2"),
        ({"text": (text(), text()), "weights": (NAN, 1)}, "weights must be .* finite, and sum to 1"),
        ({"text": (text(), text()), "weights": (INF, -INF)}, "weights must be .* finite"),
        ({"text": (text(), text()), "weights": ("1", 0)}, "weights must be .* finite"),
        ({"text": (text(), text()), "weights": np.array([0.5, 0.6])}, "weights must be .* sum to 1"),
        ({"size": 16}, r"size must be \(H, W\), two positive whole numbers of pixels; got 16"),
        ({"size": (16.0, 16.0)}, r"size must be \(H, W\)"),
        ({"size": "16"}, r"size must be \(H, W\)"),
        ({"size": (0, 16)}, r"size must be \(H, W\)"),
        ({"size": (10**23, 16)}, r"size must be \(H, W\)"),
        ({"start": 0}, "start must be a stage, one of base, sr16; got 0"),
        ({"stop": ["base"]}, "stop must be a stage"),
        ({"return_all": "yes"}, "return_all must be True or False; got 'yes'"),
        ({"steps": np.zeros((2, 2))}, "steps must be one value or one for each of the 2 stages"),
        ({"steps": 1e9}, "steps must be a whole number from 1 to 10000; got 1000000000.0"),
        ({"sampler": b"ddim"}, "sampler must be one value"),
        ({"guidance_scale": [2.0]}, "guidance_scale must be one value or one for each of the 2 stages; got 1 values"),
        ({"guidance_scale": {}}, "guidance_scale must be one value"),
    ],
)  # fmt: skip
def test_wrong_requests(tiny_stages, tiny_text, changes, message, checked_only):
    good = {"stages": tiny_stages, "text": tiny_text, "keys": KEYS}
    with pytest.raises(ValueError, match=message):
        sample_cascade(**(good | changes))


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda base, other: (base, base), "stages must have distinct names; got base, base"),
        (lambda base, other: (other, base), r"stages\[1\] must enlarge the images of stage sr16"),
        (
            lambda base, other: (
                base, other.replace(config=dataclasses.replace(other.config, low_res_size=4)),
            ),
            r"stages\[1\] must enlarge the images of stage base, which have 8 pixels .*; got .* low_res_size 4",
        ),
        (lambda base, other: (base.replace(params=None), other), r"stages\[0\].params must be a dict .*; got None"),
        (lambda base, other: (base, other.replace(params={"a": "b"})), r"stages\[1\].params must hold .*; got 'b'"),
        (lambda base, other: jax.eval_shape(lambda: (base, other)), r"stages\[0\].params must hold arrays"),
    ],
)  # fmt: skip
def test_stages_that_make_no_cascade(tiny_stages, tiny_text, choose, message, checked_only):
    stages = choose(*tiny_stages)
    with pytest.raises(ValueError, match=message):
        sample_cascade(stages, tiny_text, KEYS)
    if "params" in message:
        with pytest.raises(ValueError, match="^stage.params must"):
            broken = next(each for each, good in zip(stages, tiny_stages, strict=True) if each is not good)
            one_stage.sample_stage(broken, tiny_text, KEYS)


def test_results_are_in_range_where_an_image_is_a_little_beyond(tiny_stages, tiny_text):
    image, keep = picture(1.004, 8), np.zeros((7, 8, 8))
    made = one_stage.sample_stage(tiny_stages[0], tiny_text, KEYS, image=image, mask=keep, return_info=np.bool_(False))
    assert float(made.max()) == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": None}, "stages must be a tuple of at least one Stage"),
        ({"batch_size": "8"}, "batch_size must be a whole number from 1"),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"batch_size": 7}, "batch_size must be a positive multiple of the 8 devices; got 7"),
        ({"fsdp": None}, "fsdp must be a whole number of at least 1; got None"),
        ({"fsdp": 2.0}, "fsdp must be a whole number"),
        ({"fsdp": 3}, "fsdp must divide the number of devices 8; got 3"),
        ({"return_all": 1}, "return_all must be True or False; got 1"),
        ({"start": "sr16"}, "start must be the base stage in a compiled cascade; got 'sr16'"),
        ({"z_1": np.zeros((8, 8, 8, 3))}, "z_1 must be left out of a compiled cascade"),
        ({"negative": text()}, "negative must be left out of a compiled cascade"),
        ({"keys": KEYS}, "keys must be left out of a compiled cascade"),
        ({"steps": 1e9}, "steps must be a whole number from 1 to 10000"),
        ({"stepz": 3}, "sampling options must be among .*; got stepz"),
        ({"weights": (0.5, 0.5)}, "weights must be one for each text"),
    ],
)
def test_wrong_arguments_of_compile_cascade(tiny_stages, changes, message, checked_only):
    good = {"stages": tiny_stages, "batch_size": np.int64(8), "negative": None}
    with pytest.raises(ValueError, match=f"^(run.)?{message}"):
        compiled.compile_cascade(**(good | changes))


def test_compile_cascade_takes_shapes(tiny_stages, checked_only):
    shapes = jax.eval_shape(lambda: tiny_stages)
    with pytest.raises(Sampled):
        compiled.compile_cascade(shapes, np.int64(8), fsdp=np.int64(2), negative=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": ()}, "stages must be a tuple of at least one Stage"),
        ({"encoder": "tiny_bert"}, "encoder must be a TextEncoder, or have .* encode; got 'tiny_bert'"),
        ({"prompts": "red"}, "prompts must be a list of at least one str; got 'red'"),
        ({"prompts": np.array(["red"] * 2)}, "prompts must be a list"),
        ({"prompts": ["red", None]}, r"prompts\[1\] must be a str; got None"),
        ({"prompts": ["red", "\ud800"]}, r"prompts\[1\] must be text without"),
        ({"seeds": None}, "seeds must be a sequence of whole numbers"),
        ({"seeds": "01"}, "seeds must be a sequence of whole numbers"),
        ({"seeds": (0, 2**32)}, r"seeds\[1\] must be at most 4294967295"),
        ({"seeds": (0, 1.0)}, r"seeds\[1\] must be a whole number"),
        ({"batch_size": 2.0}, "batch_size must be a whole number"),
        ({"fsdp": "2"}, "fsdp must be a whole number"),
        ({"fsdp": 0}, "fsdp must be a whole number of at least 1; got 0"),
        ({"negative": ["blue"]}, r"negative must be a str; got \['blue'\]"),
        ({"images": [1]}, "images must be a dict of arrays"),
        ({"images": {"photo": picture()}}, "images must be a dict of arrays with keys among low_res, image"),
        ({"images": {"image": "a.png"}}, "image must be an array of one row for each prompt; got 'a.png'"),
        ({"images": {"z_1": picture(99.0, 8)[:2]}}, "z_1 must be standard normal noise; got values from 99 to 99"),
        ({"z_1": picture(0.0, 8)[:2]}, "z_1 must be given in images, with one row for each prompt"),
        ({"keys": KEYS}, "keys must be left out: it is made from prompts and seeds"),
        ({"may_be_shapes": False}, "may_be_shapes must be left out"),
        ({"stepz": 3}, "sampling options must be among"),
        ({"weak": 5}, "weak must be a Stage"),
    ],
)  # fmt: skip
def test_wrong_arguments_of_generate(generated, changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        generate.generate(**(generated | changes))


@pytest.fixture(scope="module")
def generated(tiny_stages):
    """Right arguments of `generate`."""
    tiny_encoder = TextEncoder.from_pretrained(Path(__file__).parent / "goldens/tiny_bert")
    good = {"encoder": tiny_encoder, "prompts": ["red", "red"], "seeds": range(2), "batch_size": np.int64(2)}
    base = tiny_stages[0]
    options = {"encoder": "tiny", "width": tiny_encoder.width, "length": 8}
    config = dataclasses.replace(base.config, text=dataclasses.replace(base.config.text, **options))
    good["stages"] = (base.replace(config=config),)
    generate.generate(**good)
    return good


def test_negative_weights_steer_away(tiny_stages, tiny_text, checked_only):
    with pytest.raises(Sampled):
        sample_cascade(tiny_stages, (tiny_text, tiny_text), KEYS, weights=(1.5, -0.5))


def test_parameters_of_another_network_are_named(tiny_stages, tiny_text):
    for params in ({}, tiny_stages[1].params):
        with pytest.raises(
            ValueError, match="params must be the parameters of the network of stage base; got others"
        ):
            one_stage.sample_stage(tiny_stages[0].replace(params=params), tiny_text, KEYS)


@pytest.mark.parametrize("value", [None, 5, 1.5, b"x", "", "\0", [5], object()], ids=lambda value: repr(value)[:12])
def test_places_of_stages(value):
    for load in (load_stage, load_cascade):
        with pytest.raises(ValueError, match="must (be a path|not be empty|be text)"):
            load(value)


# --- functions ------------------------------------------------------------------------------------

X = jnp.zeros((2, 4, 4, 3))
LEVELS = jnp.zeros(2)
GRID = schedules.grid(COSINE, 4)
KERNEL = {"conv": {"kernel": jnp.zeros((3, 3, 3, 8))}}
ADAPTER = {"conv": {"a": jnp.zeros((27, 2)), "b": jnp.zeros((2, 8))}}
ALONE = lambda z_t, logsnr_t: 0 * z_t
NOISE_TOO = lambda z_t, logsnr_t: Estimate(0 * z_t, noise_x=0 * z_t)
WITH_COND = lambda z_t, logsnr_t, cond: 0 * z_t
NETWORK_INPUTS = {"z_t": jnp.zeros((7, 8, 8, 3)), "logsnr_t": jnp.zeros(7), "cond": Cond(text())}

# name -> (function, its right arguments)
FUNCTIONS = {
    "schedules.make": (schedules.make, {"name": "shifted_cosine", "size": 64}),
    "schedules.grid": (
        schedules.grid,
        {
            "schedule": COSINE,
            "steps": 4,
            "spacing": "rho",
            "sigma_min": 0.01,
            "sigma_max": 9.0,
            "rho": 7.0,
            "start": 0.5,
        },
    ),
    "schedules.grid, trailing": (
        schedules.grid,
        {"schedule": COSINE, "steps": 4, "spacing": "trailing", "start": 0.5},
    ),
    "schedules.grid, of linear": (
        schedules.grid,
        {"schedule": schedules.make("linear"), "steps": 4, "spacing": "rho"},
    ),
    "resize.area": (resize.area, {"x": np.zeros((4, 4, 3)), "size": 2}),
    "pad_batch": (sharding.pad_batch, {"tree": jnp.zeros((3, 2)), "size": 8, "mesh": sharding.make_mesh()}),
    "shard_batch": (sharding.shard_batch, {"batch": np.zeros((8, 2)), "mesh": sharding.make_mesh()}),
    "TextCond.drop": (text(2, 3).drop, {"dropped": jnp.zeros(2, bool), "null": text(1, 3)}),
    "lora.init": (lora.init, {"key": jax.random.key(0), "params": KERNEL, "rank": 2, "targets": "all"}),
    "lora.merge": (lora.merge, {"params": KERNEL, "adapters": ADAPTER, "weight": 1.0}),
    "schedules.from_table": (schedules.from_table, {"logsnr": np.linspace(9, -9, 10)}),
    "schedules.from_function": (schedules.from_function, {"logsnr": lambda t: 9 - 18 * t}),
    "schedules.zero_terminal": (schedules.zero_terminal, {"schedule": COSINE}),
    "schedules.alpha_sigma": (schedules.alpha_sigma, {"logsnr": LEVELS}),
    **{f"schedules.{f.__name__}": (f, {"t": LEVELS + 0.5}) for f in (schedules.cosine, schedules.linear)},
    "schedules.shifted_cosine": (schedules.shifted_cosine, {"t": LEVELS, "size": 256}),
    "schedules.interpolated_cosine": (
        schedules.interpolated_cosine,
        {"t": LEVELS, "size": 256, "low": 32, "high": 256},
    ),
    "schedules.interpolated_cosine_inverse": (
        schedules.interpolated_cosine_inverse,
        {"logsnr": LEVELS, "size": 256},
    ),
    "schedules.sigmoid": (schedules.sigmoid, {"t": LEVELS, "start": -3.0, "end": 3.0, "tau": 1.0}),
    "schedules.sigmoid_inverse": (
        schedules.sigmoid_inverse,
        {"logsnr": LEVELS, "start": -3.0, "end": 3.0, "tau": 1.0},
    ),
    "schedules.edm": (schedules.edm, {"t": LEVELS, "sigma_min": 0.01, "sigma_max": 80.0, "rho": 7.0}),
    "schedules.lognormal": (schedules.lognormal, {"t": LEVELS, "mean": -1.2, "std": 1.2}),
    "schedules.lognormal_inverse": (
        schedules.lognormal_inverse,
        {"logsnr": LEVELS, "mean": -1.2, "std": 1.2},
    ),
    "process.diffuse": (process.diffuse, {"x": X, "eps": X, "logsnr_t": LEVELS}),
    **{
        f"process.{f.__name__}": (f, {"z_t": X, "out": X, "logsnr_t": LEVELS, "prediction": "v"})
        for f in (process.x_from, process.eps_from, process.v_from)
    },
    "process.target": (process.target, {"x": X, "eps": X, "logsnr_t": LEVELS, "prediction": "edm"}),
    "process.network_scale": (process.network_scale, {"logsnr_t": LEVELS, "prediction": "edm"}),
    "process.renoise": (process.renoise, {"z_s": X, "eps": X, "logsnr_s": LEVELS, "logsnr_t": LEVELS - 1}),
    "process.posterior": (process.posterior, {"z_t": X, "x": X, "logsnr_t": LEVELS, "logsnr_s": LEVELS + 1}),
    "process.expand": (process.expand, {"value": LEVELS, "like": X}),
    "thresholding.static": (thresholding.static, {"x_hat": X}),
    "thresholding.dynamic": (thresholding.dynamic, {"x_hat": X, "percentile": 0.9, "cap": 2.0, "floor": 1.0}),
    "thresholding.quantile": (thresholding.quantile, {"x": X, "q": 0.5}),
    "augmentation.augment": (augmentation.augment, {"low_res": X, "aug_level": LEVELS, "eps": X}),
    "augmentation.level_to_logsnr": (augmentation.level_to_logsnr, {"aug_level": LEVELS}),
    "editing.outpainting": (editing.outpainting, {"image": X, "top": 1, "bottom": 0, "left": 0, "right": 2}),
    "editing.merge": (editing.merge, {"x": X, "image": X, "mask": X[..., :1]}),
    "editing.inpainting": (editing.inpainting, {"denoise": ALONE, "image": X, "mask": X[..., :1]}),
    "guidance.interval": (guidance.interval, {"guidance_scale": 2.0, "low": -1.0, "high": 1.0}),
    "guidance.oscillating": (
        guidance.oscillating,
        {"guidance_scale": 2.0, "low": 1.0, "start": 1, "logsnr_grid": GRID},
    ),
    "guidance.projected": (guidance.projected, {"parallel": 0.0, "norm": 1.0, "momentum": -0.5}),
    "guidance.rescaled": (guidance.rescaled, {"rule": guidance.linear(), "share": 0.7}),
    "guidance.classifier_free": (
        guidance.classifier_free,
        {
            "denoise": WITH_COND,
            "cond": (X, X),
            "null": X,
            "guidance_scale": 2.0,
            "weights": (0.5, 0.5),
            "rule": guidance.linear(),
            "threshold": thresholding.static,
        },
    ),
    "guidance.autoguidance": (
        guidance.autoguidance,
        {
            "denoise": WITH_COND,
            "weak": WITH_COND,
            "cond": X,
            "weak_cond": X,
            "guidance_scale": 2.0,
            "rule": None,
            "threshold": None,
        },
    ),
    "guidance.then": (guidance.then, {"denoise": ALONE, "function": thresholding.static}),
    "samplers.sample": (
        samplers.sample,
        {
            "denoise": ALONE,
            "z_1": X,
            "logsnr_grid": GRID,
            "sampler": "ddim",
            "keys": KEYS[:2],
            "resample": 1,
            "jump": 1,
            "return_info": True,
            "trajectory": False,
            "callback": None,
        },
    ),
    "samplers.sample, noisy": (
        samplers.sample,
        {"denoise": ALONE, "z_1": X, "logsnr_grid": GRID, "sampler": "ddpm", "keys": KEYS[:2]},
    ),
    "samplers.make": (samplers.make, {"name": "unipc", "order": 2}),
    "samplers.check_grid": (samplers.check_grid, {"logsnr_grid": GRID}),
    "samplers.normal": (samplers.normal, {"keys": KEYS[:2], "shape": (2, 3)}),
    "samplers.DDPM": (samplers.DDPM, {"gamma": 0.2}),
    "samplers.DDIM": (samplers.DDIM, {"eta": 0.2}),
    "samplers.DPMpp2MSDE": (samplers.DPMpp2MSDE, {"eta": 0.2}),
    "samplers.Heun": (samplers.Heun, {"churn": 1.0, "churn_min": 0.1, "churn_max": 9.0, "churn_noise": 1.0}),
    "samplers.UniPC": (samplers.UniPC, {"order": 2}),
    "losses.plain": (losses.plain, {"logsnr_t": LEVELS}),
    "losses.min_snr": (losses.min_snr, {"logsnr_t": LEVELS, "prediction": "v", "gamma": 5.0, "floor": 1.0}),
    "losses.sigmoid": (
        losses.sigmoid,
        {"logsnr_t": LEVELS, "prediction": "v", "rate_t": LEVELS, "bias": 2.0},
    ),
    "losses.v": (losses.v, {"logsnr_t": LEVELS, "prediction": "x", "cap": 400.0}),
    "losses.logit_normal": (losses.logit_normal, {"u": LEVELS + 0.5, "mean": 0.8, "std": 0.8}),
    "losses.logit_normal_density": (losses.logit_normal_density, {"t": LEVELS + 0.5, "mean": 0.8, "std": 0.8}),
    "losses.stratified_times": (losses.stratified_times, {"key": jax.random.key(0), "num": 4}),
    "losses.rate": (losses.rate, {"schedule": COSINE, "t": LEVELS + 0.5}),
    "losses.denoising_loss": (
        losses.denoising_loss,
        {"out": X, "x": X, "eps": X, "logsnr_t": LEVELS, "prediction": "v", "weight": LEVELS},
    ),
    "losses.by_logsnr": (losses.by_logsnr, {"per_image": LEVELS, "logsnr_t": LEVELS}),
    "image_keys": (image_keys, {"seed": 0, "num": 2}),
    "load_stage": (load_stage, {"directory": "nowhere/base", "step": 1}),
    "load_cascade": (load_cascade, {"workdir": "nowhere"}),
    "load_preset": (load_preset, {"name_or_path": "quickstart"}),
}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "schedules.grid",
            {"schedule": "cosine"},
            "schedule must be a Schedule; got 'cosine': make one with",
        ),
        ("schedules.grid", {"schedule": (1, 2)}, "schedule must be a Schedule"),
        ("schedules.grid", {"steps": 4.0}, "steps must be a whole number"),
        ("schedules.grid", {"steps": 10**9}, "steps must be at most 10000; got 1000000000"),
        ("losses.stratified_times", {"key": jnp.zeros(5, jnp.uint32)}, "key must be one random key"),
        (
            "schedules.grid, trailing",
            {"start": 4e-4},
            "start must be at least 0.001 with spacing 'trailing'",
        ),
        (
            "schedules.grid, trailing",
            {"start": 0.0126, "steps": 14},
            "steps must be at most 13 with spac",
        ),
        ("schedules.grid", {"spacing": "t"}, "options of t must be among none; got rho, sigma_max, sigma_min"),
        ("schedules.from_table", {"logsnr": np.linspace(-9, 9, 10)}, "logsnr must be at least 2 finite levels that"),
        ("schedules.grid", {"rho": 0.0}, r"rho must be in \[0.1, 1000\]; got 0.0"),
        ("schedules.shifted_cosine", {"size": 0}, "size must be positive; got 0"),
        ("schedules.interpolated_cosine", {"low": -1}, "low must be positive; got -1"),
        ("schedules.sigmoid", {"tau": 0.0}, r"tau must be in \[0.1, 100\]; got 0.0"),
        ("schedules.sigmoid", {"end": -3.0}, r"end must be in \(-3, 50\]; got -3.0"),
        ("schedules.from_function", {"logsnr": lambda t: "a"}, r"logsnr\(t\) must be a number or an array"),
        ("schedules.grid", {"spacing": spacings.Rho()}, "options must be given with the name of a spacing; got Rho"),
        (
            "schedules.grid, of linear",
            {"sigma_min": 1e5, "sigma_max": 1e6},
            "a grid of 4 steps must have levels that differ in float32; got some that are equal: take fewer",
        ),
        ("schedules.grid, of linear", {"start": 1e-9}, "a grid of 4 steps must have levels that differ"),
        ("resize.area", {"x": [[[1.0]]]}, r"pictures for area\(\) must be an array \[..., H, W, C\]; got"),
        ("resize.area", {"size": 2.0}, r"size must be a whole number of pixels, or \(h, w\); got 2.0"),
        ("resize.area", {"size": (2, 2, 3)}, r"size must be a whole number of pixels, or \(h, w\); got \(2, 2, 3\)"),
        ("pad_batch", {"size": 1}, "a batch must divide evenly over 8 devices; got 1 rows: pad it"),
        ("pad_batch", {"tree": jnp.zeros((9, 2))}, "size must be at least the number of rows, 9; got 8"),
        ("pad_batch", {"mesh": None}, "mesh must be a mesh, as from make_mesh; got NoneType"),
        ("shard_batch", {"batch": np.zeros((9, 2))}, "a batch must divide evenly over 8 devices; got 9 rows"),
        ("TextCond.drop", {"dropped": jnp.zeros((2, 1), bool)}, r"dropped must be .* 2 captions; got bool \(2, 1\)"),
        ("TextCond.drop", {"dropped": jnp.full(2, 0.1)}, r"dropped must be a bool array .*; got float32 \(2,\)"),
        ("TextCond.drop", {"dropped": [True, False]}, "dropped must be a bool array .*; got list"),
        ("TextCond.drop", {"null": "a"}, "null must be a TextCond; got 'a'"),
        ("lora.init", {"rank": 0}, "rank must be at least 1; got 0"),
        ("lora.init", {"targets": "attn"}, "targets must be one of attention, all; got 'attn'"),
        (
            "lora.merge",
            {"adapters": {"conv": {"a": jnp.zeros((8, 2)), "b": jnp.zeros((2, 27))}}},
            r"the adapter of conv must have a \[27, r\] and b \[r, 8\]; got \[8, 2\] and \[2, 27\]",
        ),
        ("lora.merge", {"adapters": {"other": ADAPTER["conv"]}}, "the adapter of other must be of a kernel"),
        ("process.renoise", {"logsnr_t": LEVELS + 1}, "logsnr_t must be at most logsnr_s"),
        ("process.posterior", {"logsnr_s": -1.0}, "logsnr_t must be at most logsnr_s"),
        ("thresholding.dynamic", {"x_hat": jnp.arange(12).reshape(2, 6)}, "x_hat must be an array of floats"),
        ("losses.sigmoid", {"rate_t": jnp.zeros((2, 1))}, "rate_t must have the shape of logsnr_t"),
        ("editing.merge", {"image": X.astype(jnp.uint8)}, "image must be float in"),
        ("editing.merge", {"mask": X[..., :1] + 0.5}, r"mask must hold 1 \(paint here\) and 0"),
        ("editing.inpainting", {"mask": X[..., :1] + NAN}, r"mask must hold 1 \(paint here\) and 0"),
        ("guidance.interval", {"low": 5, "high": -5}, "low must be at most high, -5; got 5"),
        ("guidance.interval", {"low": NAN}, "low must be at most high"),
        ("guidance.oscillating", {"guidance_scale": lambda level: level}, "guidance_scale must be a number"),
        ("guidance.autoguidance", {"rule": CFGPlusPlus()}, r"guidance_scale must be in \(0, 1\]; got 2.0"),
        (
            "guidance.classifier_free",
            {"cond": (X, X[:1])},
            r"cond\[1\] must have the shapes of the first condition, here \[2, 4, 4, 3\]; got \[1, 4, 4, 3\]",
        ),
        ("guidance.classifier_free", {"weights": (0.5, 0.3, 0.2)}, "weights must be one for .* for 2.$"),
        ("samplers.sample", {"sampler": "unipc", "denoise": NOISE_TOO}, "sampler must be one that reads noise_x"),
        ("schedules.cosine", {"t": [0.5]}, r"t must be a number or an array of numbers; got \[0.5\]"),
        ("schedules.alpha_sigma", {"logsnr": None}, "logsnr must be a number or an array"),
        (
            "samplers.sample",
            {"logsnr_grid": None},
            "logsnr_grid must be an array of numbers; got None: make it with",
        ),
        (
            "samplers.sample",
            {"logsnr_grid": [1.0, 2.0]},
            r"logsnr_grid must be an array of numbers; got \[1.0, 2.0\]",
        ),
        ("samplers.sample", {"logsnr_grid": jnp.float32(1)}, r"logsnr_grid must be \[T\+1\]"),
        ("samplers.sample", {"z_1": None}, "z_1 must be an array of numbers with at least 1 axis; got None"),
        ("samplers.sample", {"z_1": [[0.0]]}, "z_1 must be an array"),
        ("samplers.sample", {"z_1": 1.0}, "z_1 must be an array"),
        ("samplers.sample", {"z_1": X.at[0].set(NAN)}, r"z_1 must hold finite numbers \(noise\)"),
        ("samplers.sample", {"denoise": "net"}, r"denoise must be a function of \(z_t, logsnr_t\)"),
        ("samplers.sample", {"denoise": lambda z, t: None}, "the estimate of denoise must be an array"),
        (
            "samplers.sample",
            {"denoise": lambda z, t: z[:1]},
            "the estimate of denoise must have the shape of z_1",
        ),
        ("samplers.sample", {"sampler": None}, "sampler must be a Sampler or one of ddim, "),
        ("samplers.sample", {"callback": 5}, "callback must be a function"),
        ("samplers.sample, noisy", {"keys": 5}, "keys must be"),
        ("samplers.make", {"gamma": 1.0}, "options of unipc must be among final_logsnr, order; got gamma"),
        (
            "process.diffuse",
            {"eps": X[:1]},
            r"eps must have the shape of x, \[2, 4, 4, 3\]; got \(1, 4, 4, 3\)",
        ),
        (
            "process.diffuse",
            {"logsnr_t": jnp.zeros(4)},
            r"logsnr_t must be a number or have one for each row of x, \[2\]",
        ),
        ("process.x_from", {"prediction": None}, "prediction must be one of x, eps, v, edm; got None"),
        (
            "augmentation.augment",
            {"aug_level": jnp.full(2, 1.5)},
            r"aug_level must be in \[0, 1\]; got values from 1.5",
        ),
        ("augmentation.level_to_logsnr", {"aug_level": NAN}, r"aug_level must be in \[0, 1\]; got nan"),
        (
            "thresholding.dynamic",
            {"x_hat": None},
            "x_hat must be an array of floats with at least 1 axis; got None",
        ),
        (
            "guidance.classifier_free",
            {"null": (X, X)},
            "null must have the structure of the first condition",
        ),
        ("guidance.classifier_free", {"weights": (1, 1)}, "weights must be .* sum to 1"),
        ("guidance.classifier_free", {"cond": ("a", "b")}, r"cond\[0\] must be a pytree of arrays"),
        ("guidance.interval", {"guidance_scale": NAN}, "guidance_scale must be finite; got nan"),
        ("editing.outpainting", {"top": 1.5}, "top, bottom, left and right must be whole numbers"),
        ("losses.stratified_times", {"key": 5}, "key must be one random key"),
        ("guidance.oscillating", {"guidance_scale": 10**30, "start": -1}, "start must be at least 0; got -1"),
        ("guidance.classifier_free", {"null": jax.eval_shape(lambda: X)}, r"null must be a pytree of arrays"),
        ("losses.sigmoid", {"bias": 10**30, "prediction": ()}, "prediction must be one of"),
        ("losses.v", {"cap": 0.5}, "cap must be at least 1; got 0.5"),
        ("losses.logit_normal", {"std": 0.0}, "std must be positive; got 0.0"),
        ("losses.min_snr", {"floor": 6.0}, "floor must be at most gamma, 5; got 6.0"),
    ],
)
def test_wrong_arguments_of_functions(name, changes, message):
    function, good = FUNCTIONS[name]
    with pytest.raises(ValueError, match=message):
        function(**(good | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"z_t": None}, "z_t must be an array of numbers with 4 axes; got None"),
        ({"z_t": jnp.zeros((7, 9, 8, 3))}, r"z_t must be \[B, H, W, C\] with H and W multiples of"),
        ({"z_t": jnp.zeros((8, 8, 3))}, "z_t must be an array of numbers with 4 axes"),
        ({"logsnr_t": 0.0}, "logsnr_t must be an array of numbers with 1 axis; got 0.0"),
        ({"logsnr_t": jnp.zeros(3)}, "logsnr_t must have one entry for each row of z_t, 7; got 3"),
        ({"cond": None}, "cond must be a Cond; got None"),
        ({"cond": text()}, "cond must be a Cond; got a TextCond"),
        ({"cond": Cond("a red star")}, "cond.text must be a TextCond; got 'a red star'"),
        ({"cond": Cond(text(rows=3))}, "cond must have one row for each row of z_t, 7; got 3"),
        (
            {"cond": Cond(text(), low_res_noised=jnp.zeros((7, 8, 8, 3)))},
            "cond.aug_logsnr must be given with low_res_noised",
        ),
        (
            {"cond": Cond(text(), control=jnp.zeros((7, 4, 4, 3)))},
            r"cond.control must have the size of z_t, \[7, 8, 8\]",
        ),
    ],
)
def test_wrong_inputs_of_networks(tiny_configs, changes, message):
    for config in tiny_configs:
        of_patches = dataclasses.replace(config.network, patch_size=2)
        network = stage.network(dataclasses.replace(config, network=of_patches))
        with pytest.raises(ValueError, match=message):
            network.init(jax.random.key(0), *(NETWORK_INPUTS | changes).values())


@pytest.mark.parametrize(
    ("index", "changes", "message"),
    [
        (0, {"channels": ()}, "channels must have at least one level"),
        (0, {"channels": None}, "channels must be a tuple"),
        (0, {"attention": (True, False)}, "attention must have one entry for each of the 1 levels of channels"),
        (0, {"head_dim": 0}, "head_dim must be at least 1; got 0"),
        (0, {"embedding": 2.5}, "embedding must be a whole number"),
        (1, {"num_heads": 5}, "channels must be multiples of num_heads 5"),
        (1, {"dropout": NAN}, "dropout must be a finite number; got nan"),
        (1, {"stem_channels": -8}, "stem_channels must be at least 1; got -8"),
    ],
)
def test_networks_that_cannot_be_built(tiny_configs, index, changes, message):
    network = dataclasses.replace(stage.network(tiny_configs[index]), **changes)
    with pytest.raises(ValueError, match=f"^{message}"):
        network.init(jax.random.key(0), *NETWORK_INPUTS.values())


# --- any call -------------------------------------------------------------------------------------

HOSTILE = (
    None, True, False, 0, -1, 3, 2**40, 10**30, 10**5000, 0.5, -0.5, 1e23, 1e300, NAN, INF, -INF, 1j, "", "cosine",
    "a/b", "\0", "\ud800", b"", (), [], {}, set(), (0.5, 0.5), (1, "a"), [1.0, 2.0], [[1], [2, 3]], {"a": 1}, range(3),
    object(), lambda *_: None, iter(()), Exception("x"), slice(3), ..., np.float32(0.5), np.int64(2),
    np.bool_(True), np.array(0.5), np.array("a"), np.array(None), np.zeros(0), np.zeros(2), np.zeros((2, 3)),
    np.zeros((1,) * 9), np.full((2, 4, 4, 3), NAN), np.full((2, 4, 4, 3), 200, np.uint8),
    np.zeros((2, 4, 4, 3), complex),
    np.array(["2020"], "datetime64[D]"), np.zeros(3, [("a", int)]), jnp.zeros(7), jnp.zeros((7, 2), jnp.uint32),
    jnp.zeros((7, 8, 8, 3)), jax.random.key(0), KEYS, jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.float32), COSINE,
    text(), text(mask=None), Cond(text()), Cond(None), TextCond(None, None), Stage(None, None), guidance.linear(),
    samplers.DDIM(), guidance.Estimate(None, None), guidance.Stateful(None, None), samplers.Sampler,
    schedules.Schedule(None, None), guidance.Rule,
)  # fmt: skip


def requests(tiny_stages, tiny_text):
    """name -> (function, its right arguments), of what takes stages."""
    base, other = tiny_stages
    batch = {"x": picture(size=8), "text": tiny_text.embeddings, "text_mask": tiny_text.mask}
    draws = stage.draw(base.config, jax.random.key(0), 7)
    return {
        "sample_cascade": (sample_cascade, {
            "stages": tiny_stages, "text": tiny_text, "keys": KEYS, "return_all": False, "start": None, "stop": None,
            "low_res": None, "size": (16, 16), "image": picture(), "mask": np.ones((7, 16, 16)), "control": None,
            "z_1": None, "negative": None, "weights": None, "weak": None, "steps": 4, "sampler": "ddim",
            "guidance_scale": 2.0, "eta": None, "strength": 1.0, "resample": 1, "spacing": "t", "schedule": None,
        }),
        "sample_stage": (one_stage.sample_stage, {
            "stage": base, "text": tiny_text, "keys": KEYS, "low_res": None, "sampling": None, "negative": None,
            "weights": None, "weak": None, "image": picture(size=8), "mask": np.ones((7, 8, 8)), "control": None,
            "z_1": None, "size": (8, 8), "return_info": True, "trajectory": False, "callback": None,
        }),
        "sample_stage, larger": (
            one_stage.sample_stage, {"stage": other, "text": tiny_text, "keys": KEYS, "low_res": ""}
        ),
        "stage.draw": (stage.draw, {"config": base.config, "key": jax.random.key(0), "batch_size": 2}),
        "stage.init": (stage.init, {"config": "", "key": jax.random.key(0)}),
        "stage.loss": (stage.loss, {"params": {}, "config": base.config, "batch": batch, "draws": draws}),
        "stage.loss, batch": (lambda **parts: stage.loss({}, base.config, batch | parts, draws), batch),
        "Stage.denoise": (base.denoise, {**NETWORK_INPUTS, "z_t": jnp.zeros((7, 3, 8, 3))}),
        "Stage.prepare": (base.prepare, {"cond": ""}),
    }  # fmt: skip


def is_clear(function, arguments):
    """Whether a call returns, asks to sample, or raises an error of one line in the project's form."""
    try:
        function(**arguments)
    except (ValueError, FloatingPointError) as error:
        message = str(error)
        return " must " in message and "\n" not in message and len(message) < 1000
    except Sampled:
        pass
    return True


@pytest.mark.slow
def test_no_call_ends_in_anything_but_a_clear_error(
    tiny_stages, tiny_text, checked_only, tmp_path, monkeypatch
):
    """Calls with one or two hostile arguments in the place of right ones; nothing is written."""
    monkeypatch.chdir(tmp_path)
    functions = FUNCTIONS | requests(tiny_stages, tiny_text)

    @settings(max_examples=CALLS, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def call(data):
        function, good = functions[data.draw(st.sampled_from(sorted(functions)))]
        names = data.draw(st.lists(st.sampled_from(sorted(good)), min_size=1, max_size=2, unique=True))
        changes = {name: HOSTILE[data.draw(st.integers(0, len(HOSTILE) - 1))] for name in names}
        assert is_clear(function, good | changes)

    call()
    assert not list(tmp_path.iterdir())
