"""Messages name options as they are typed."""

import pytest

from imagen_jax.cli import options, sample

KNOWN = {"optim.batch-size", "optim.accumulation", "guidance-scale", "low-res", "steps", "data"}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("steps must be at least 1; got 0.", "--steps must be at least 1; got 0."),
        ("guidance_scale[1] must be in [0, 1]; got 2.", "--guidance-scale[1] must be in [0, 1]; got 2."),
        (
            "optim.batch_size must be a multiple of optim.accumulation 5; got 3.",
            "--optim.batch-size must be a multiple of --optim.accumulation 5; got 3.",
        ),
        ("low_res must be left out; got low_res.", "--low-res must be left out; got --low-res."),
        ("data must have data; got 'low_res': data.", "--data must have data; got 'low_res': data."),
        ("steps must lie there; got /low_res/low_res.png.", "--steps must lie there; got /low_res/low_res.png."),
        ("run/config.json: optim.batch_size must be 3.", "run/config.json: optim.batch_size must be 3."),
        ("stages must be a tuple; got steps.", "stages must be a tuple; got steps."),
        ("steps, or low_res", "steps, or low_res"),
        ("accumulation must divide low_res.", "--optim.accumulation must divide --low-res."),
    ],
)
def test_messages_name_options_as_they_are_typed(message, expected):
    assert options.as_typed(message, KNOWN) == expected


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--prompts", "-x"], "--prompts must .* dash; got '-x': write --prompts=-x, or use --prompts-file"),
        (["--prompts", "a", "-x"], "--prompts must have values that do not begin with a dash; got '-x'"),
        (["--prompts", "a", "--negative", "-x"], "--negative must .*: write --negative=-x"),
        (["--prompts=-x", "--negative=-x", "--num", "-1"], None),
        (["--prompts", "-5 dogs", "- a list", "-"], None),
    ],
)
def test_values_that_begin_with_a_dash(args, message):
    known = options.fields(sample.Options)
    if message is None:
        options.check(args, known)
        return
    with pytest.raises(ValueError, match=message):
        options.check(args, known)
