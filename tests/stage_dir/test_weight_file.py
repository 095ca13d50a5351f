"""Weight files hold what they promise: float32 to the bit, int8 within half a step of each channel."""

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from imagen_jax.stage_dir import weight_file


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    channels = np.array([1e-4, 1, 30, 1e3], np.float32)  # of very different ranges
    return {
        "conv": {"kernel": rng.normal(size=(3, 3, 5, 4)).astype("f4") * channels, "bias": np.ones(4, "f4") / 3},
        "dense": {"kernel": np.zeros((5, 2), "f4")},
        "gain": np.array(1 / 3, "f4"),
        "table": rng.normal(size=(5, 4)).astype("f4"),
    }


def decoded(params, dtype):
    return weight_file.decode(weight_file.encode(params, dtype), params, "file")


def test_float32_is_exact_and_bfloat16_the_nearest(params):
    for exact, found in zip(jax.tree.leaves(params), jax.tree.leaves(decoded(params, "float32")), strict=True):
        assert found.dtype == np.float32 and found.tobytes() == exact.tobytes()
    for exact, found in zip(jax.tree.leaves(params), jax.tree.leaves(decoded(params, "bfloat16")), strict=True):
        assert found.dtype == np.float32 and found.shape == exact.shape
        np.testing.assert_array_equal(found, exact.astype(ml_dtypes.bfloat16).astype("f4"))


def test_int8_rounds_kernels_by_at_most_half_a_step_of_their_channel(params):
    found = decoded(params, "int8")
    kernel = params["conv"]["kernel"]
    error, largest = (np.abs(x).max(axis=(0, 1, 2)) for x in (found["conv"]["kernel"] - kernel, kernel))
    assert (error <= largest / 254 * (1 + 1e-5)).all() and (error > largest / 400).all()
    assert not found["dense"]["kernel"].any()  # not NaN
    for exact, other in ((params["conv"]["bias"], found["conv"]["bias"]), (params["table"], found["table"])):
        np.testing.assert_array_equal(exact, other)
    stored = safetensors.numpy.load(weight_file.encode(params, "int8"))
    assert stored["conv/kernel"].dtype == np.int8 and stored["conv/kernel/scale"].shape == (4,)


def test_int4_stores_differences_to_other_parameters(params):
    """With no more error than rounding to a seventh of the largest in each channel has; kernels of odd sizes too."""
    rng = np.random.default_rng(1)
    move = lambda leaf: (leaf * (1 + 0.1 * rng.normal(size=leaf.shape))).astype("f4")
    moved = jax.tree.map(move, params) | {"dense": params["dense"], "odd": {"kernel": np.eye(3, 5, dtype="f4")}}
    params = params | {"odd": {"kernel": np.zeros((3, 5), "f4")}}
    content = weight_file.encode(moved, "int4", params)
    found = weight_file.decode(content, moved, "file", params)
    kernel, exact = (tree["conv"]["kernel"] - params["conv"]["kernel"] for tree in (found, moved))
    axes = (0, 1, 2)
    error, plain = np.square(kernel - exact).sum(axes), np.abs(exact).max(axes) / 7
    assert (error <= np.square(np.round(exact / plain) * plain - exact).sum(axes) * (1 + 1e-4)).all()
    np.testing.assert_allclose(found["odd"]["kernel"], moved["odd"]["kernel"], rtol=1e-6)
    for name in ("gain", "table", "dense"):
        jax.tree.map(np.testing.assert_array_equal, found[name], moved[name])
    stored = safetensors.numpy.load(content)
    assert "dense/kernel" not in stored and stored["odd/kernel"].shape == (8,)
    assert stored["odd/kernel"].dtype == np.uint8
    with pytest.raises(ValueError, match=r"got 0 unknown \[\], 1 missing \['dense/kernel'\]"):
        weight_file.decode(content, moved, "file")
    stored["odd/kernel"] = stored["odd/kernel"][:-1]
    with pytest.raises(ValueError, match=r"^file: odd/kernel must be of shape \[8\]; got uint8 of shape \(7,\)"):
        weight_file.decode(safetensors.numpy.save(stored), moved, "file", params)


def test_the_same_parameters_make_the_same_bytes(params):
    other = dict(reversed(params.items()))
    for dtype in weight_file.DTYPES:
        known = jax.tree.map(np.zeros_like, params) if dtype == "int4" else None
        assert weight_file.encode(params, dtype, known) == weight_file.encode(other, dtype, known)


def test_parameters_that_are_not_finite_are_refused(params):
    with pytest.raises(ValueError, match="^params gain must be finite; got NaN or infinity: take a checkpoint"):
        weight_file.encode(params | {"gain": np.array(np.nan, "f4")}, "int8")


def content(params, **changes):
    stored = safetensors.numpy.load(weight_file.encode(params, "int8")) | changes
    return safetensors.numpy.save({name: value for name, value in stored.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gain": None}, r"must hold the parameters of the network .*; got 0 unknown \[\], 1 missing \['gain'\]: get"),
        ({"other": np.zeros(1, "f4")}, r"got 1 unknown \['other'\], 0 missing"),
        ({"conv/kernel/scale": None}, r"1 missing \['conv/kernel/scale'\]"),
        ({"gain": np.zeros(2, "f4")}, r"file: gain must be of shape \[\]; got float32 of shape \(2,\)"),
        ({"conv/kernel/scale": np.zeros(3, "f4")}, r"file: conv/kernel/scale must be float32 of shape \[4\]"),
        ({"gain": np.zeros((), "f8")}, "file: gain must be F32, BF16, I8, U8; got F64"),
    ],
)
def test_a_file_of_other_parameters_is_one_line(params, changes, message):
    with pytest.raises(ValueError, match=message):
        weight_file.decode(content(params, **changes), params, "file")
    for damaged in (b"", b"x" * 50, weight_file.encode(params, "int8")[:-3]):
        with pytest.raises(ValueError, match="^file must be a safetensors file; got an error") as error:
            weight_file.decode(damaged, params, "file")
        assert "\n" not in str(error.value)
