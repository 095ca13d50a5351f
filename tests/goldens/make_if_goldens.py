"""Makes the goldens of DeepFloyd IF: what diffusers' U-Nets and scheduler return for small random models.

Run where torch and diffusers are installed (the committed files: torch 2.13.0, diffusers 0.42.1, numpy 2.4.6; the
versions are also in the file), with no argument:

    pip install torch==2.13.0 diffusers==0.42.1 transformers accelerate beautifulsoup4 ftfy
    python tests/goldens/make_if_goldens.py

Writes beside itself:
  if_unets.npz  versions, JSON; for each of MODELS its config.json as diffusers saves it, inputs as diffusers takes
                them, [B, C, H, W], and the output; for each of TRAJECTORIES steps, noises and the images of guided
                sampling. Weights are those of `weights`.
  if_captions.json  CAPTIONS and what clean_caption makes of them
  if_released.json  of each released network: config.json, parameters, tensors, the SHA-256 of their names and shapes
  tiny_if       a pipeline's directory with the model "stage_1" as diffusers saves it: shards of variant fp16
"""

import hashlib
import json
import pathlib
import shutil
from typing import Any
from unittest import mock

import numpy as np

HERE = pathlib.Path(__file__).parent

_NAMES = {
    False: ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"),
    True: ("SimpleCrossAttnDownBlock2D", "SimpleCrossAttnUpBlock2D"),
}


def options(channels: tuple[int, ...], attention: tuple[bool, ...], **changes: Any) -> dict[str, Any]:
    """The options of a network of stage I in IF's manner."""
    return {
        "block_out_channels": channels,
        "down_block_types": tuple(_NAMES[is_on][0] for is_on in attention),
        "up_block_types": tuple(_NAMES[is_on][1] for is_on in reversed(attention)),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "in_channels": 3,
        "out_channels": 6,
        "act_fn": "gelu",
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 4,
        "attention_head_dim": 8,
        "cross_attention_dim": 32,
        "cross_attention_norm": "group_norm",
        "encoder_hid_dim": 24,
        "norm_num_groups": 8,
        "resnet_time_scale_shift": "scale_shift",
        "sample_size": 16,
    } | changes


STAGE_2 = {
    "in_channels": 6,
    "class_embed_type": "timestep",
    "time_embedding_act_fn": "gelu",
    "mid_block_scale_factor": 1 / 0.7071,
    "resnet_out_scale_factor": 1 / 0.7071,
    "resnet_skip_time_act": True,
}
MODELS = {
    "stage_1": options((8, 16), (False, True), layers_per_block=[1, 2], norm_num_groups=4, encoder_hid_dim=16),
    "stage_2": options((16, 24), (False, True), **STAGE_2, layers_per_block=[2, 1], time_embedding_dim=40),
    # Not as released: groups of one channel, other factors, two activations of the embedding, no self-attention.
    "mixed": options(
        (32, 64, 64), (True, False, True), in_channels=6, class_embed_type="timestep", mid_block_scale_factor=1.414,
        time_embedding_act_fn="gelu", time_embedding_dim=32, layers_per_block=[1, 1, 2], norm_num_groups=32,
        only_cross_attention=True,
    ),
}  # fmt: skip
SIZES = {"stage_1": (6, 10), "stage_2": (12, 8), "mixed": (8, 4)}  # H, W
_LARGE = {"addition_embed_type_num_heads": 64, "attention_head_dim": 64, "encoder_hid_dim": 4096, "norm_num_groups": 32}
_I, _II = (False, True, True, True), (False, False, False, True, True)
_LARGE_II = {**_LARGE, **STAGE_2, "mid_block_scale_factor": 1.4142271248762552, "sample_size": 256}
RELEASED = {
    "IF-I-M": options((192, 384, 576, 768), _I, **_LARGE, layers_per_block=3, cross_attention_dim=768, sample_size=64),
    "IF-I-L": options(
        (320, 640, 960, 1280), _I, **_LARGE, layers_per_block=3, cross_attention_dim=1280, sample_size=64
    ),
    "IF-I-XL": options(
        (704, 1408, 2112, 2816), _I, **_LARGE, layers_per_block=3, cross_attention_dim=2816, sample_size=64
    ),
    "IF-II-M": options(
        (128, 256, 512, 768, 768), _II, **_LARGE_II, layers_per_block=[2, 2, 3, 3, 3], cross_attention_dim=768,
        time_embedding_dim=768,
    ),
    "IF-II-L": options(
        (160, 320, 640, 960, 1280), _II, **_LARGE_II, layers_per_block=[2, 2, 3, 5, 5], cross_attention_dim=1280,
        time_embedding_dim=1280,
    ),
}  # fmt: skip
TRAJECTORIES = {
    "leading": ("stage_1", None),
    "custom": ("stage_1", [999, 800, 500, 300, 120, 60, 20, 0]),
    "stage_2": ("stage_2", None),
}
STEPS, TOKENS, SCALE, NOISE_LEVEL = 8, 7, 5.0, 250
SCHEDULER = {
    "beta_schedule": "squaredcos_cap_v2",
    "dynamic_thresholding_ratio": 0.95,
    "num_train_timesteps": 1000,
    "sample_max_value": 1.5,
    "thresholding": True,
    "variance_type": "learned_range",
}

CAPTIONS = (
    "a red circle", "  A Tall   MAN\n\twith a hat ", "", " ", ".", "'quoted'", "\"double\"", "'a' and 'b'", "-dash-",
    ":a;", "<person> rides a <b>horse</b>", "<p>one</p><p>two &amp; three</p>", "<!-- hidden -->shown", "a < b > c",
    "<script>x=1</script>y", "&lt;b&gt;bold&lt;/b&gt;", "&quot;word&quot; &amp;amp; &#39;s",
    "caf&eacute; na\u00efve \u201ccurly\u201d \u2018single\u2019",
    "see https://example.com/a?b=1 and www.foo.org/bar, mail me@site.net", "example.com", "http:/x www:y",
    "go to a.b.co/uk now", "@nick took #123 and #12345 of 123456 at 10.0.0.1", "item 3:45 ", "price 12:30 pm",
    "a\\nb", "photo.jpg of IMG_0001.JPEG.png", "wait... what..", "***SALE*** #now (free) [x] {y} | / \\ ~",
    "hello . world", "a-b-c-d-e", "a_b-c", "this_is_my_cute_cat_photo", "jc6640 jc6640vc 6640vc231 j2d1a2a",
    "free shipping worldwide free shipping", "free download free", "click for more click on it",
    "png images of a jpg image", "page 12 of 30", "640x480 3.5\u00d72 4\u04455", "one , two ,three;four", "a,b.c/d",
    "x : y", "\u4f60\u597d world \u3042", "\u2014 em \u2013 en \u2012", "`tick` \u00b4acute\u00b4",
    "\u00e2\u20ac\u2122s broken", "\ufb01ne \uff21\uff22", "100% cotton, 50+ colors", "a%20b+c", "caption ends with-",
    "caption ends with'", ".hidden", ".hidden word", "\u00bd \u00be cup",
    "A photo of a corgi dog wearing a wizard hat, highly detailed, 8k, trending on artstation", "3d render 4k 1080p",
    "an oil painting of \"the fog\" by monet", "'tis the season", "rock'n'roll", "U.S.A. flag",
    "e.g. this, i.e. that",
)  # fmt: skip


def uniform(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [-1, 1) that depend on nothing but the bits of PCG64, which numpy does not change."""
    bits = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    return ((bits >> 11) / 2.0**52 - 1).reshape(shape).astype(np.float32)


def weights(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights in float16 by the names of the tensors, none of them zero and no norm without effect."""
    made = {}
    for i, (name, shape) in enumerate(sorted(shapes.items())):
        drawn = uniform(1000 * seed + i, shape)
        if name.endswith("weight") and len(shape) > 1:
            drawn *= (3 / np.prod(shape[1:])) ** 0.5
        elif name.endswith("weight"):
            drawn = 1 + 0.4 * drawn
        else:
            drawn *= 0.3
        made[name] = drawn.astype(np.float16)
    return made


def digest(shapes: dict[str, tuple[int, ...]]) -> str:
    """SHA-256 of the sorted lines "NAME SHAPE" of a network's tensors."""
    lines = (f"{name} {'x'.join(map(str, shape))}" for name, shape in sorted(shapes.items()))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def main() -> None:
    import diffusers
    import torch

    torch.set_grad_enabled(False)
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__, "numpy": np.__version__}
    arrays, models = {"versions": np.array(json.dumps(versions))}, {}
    for seed, (name, given) in enumerate(MODELS.items()):
        model = models[name] = diffusers.UNet2DConditionModel(**given).eval()
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        state = {key: torch.from_numpy(value).float() for key, value in weights(shapes, seed).items()}
        model.load_state_dict(state)
        height, width = SIZES[name]
        inputs = {
            "sample": 1.7 * uniform(91, (2, given["in_channels"], height, width)),
            "timestep": np.array([3, 999]),
            "encoder_hidden_states": 2 * uniform(92, (2, TOKENS, given["encoder_hid_dim"])),
        }
        if given["in_channels"] == 6:
            inputs["class_labels"] = np.array([NOISE_LEVEL, 0])
        out = model(**{key: torch.from_numpy(value) for key, value in inputs.items()}).sample
        arrays |= {f"{name}/{key}": value for key, value in inputs.items()}
        arrays |= {f"{name}/out": out.numpy(), f"{name}/config": np.array(model.to_json_string())}
    for name, (model, steps) in TRAJECTORIES.items():
        arrays |= {f"{name}/{key}": value for key, value in trajectory(models[model], steps).items()}
    np.savez_compressed(HERE / "if_unets.npz", **arrays)
    released = {}
    for name, given in RELEASED.items():
        with torch.device("meta"):
            model = diffusers.UNet2DConditionModel(**given)
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
        count = sum(value.numel() for value in model.state_dict().values())
        released[name] = {"parameters": count, "tensors": len(shapes), "sha256": digest(shapes)}
        released[name]["config"] = json.loads(model.to_json_string())
    (HERE / "if_released.json").write_text(json.dumps(released) + "\n")
    pipeline = diffusers.IFPipeline.__new__(diffusers.IFPipeline)
    cleaned = {caption: pipeline._text_preprocessing(caption, clean_caption=True)[0] for caption in CAPTIONS}
    (HERE / "if_captions.json").write_text(json.dumps(cleaned, indent=0) + "\n")
    save(models["stage_1"], HERE / "tiny_if")


def trajectory(model: Any, steps: list[int] | None) -> dict[str, np.ndarray]:
    """Guided sampling as IFPipeline and IFSuperResolutionPipeline do it, from given noises."""
    import diffusers
    import torch

    is_sr = model.config.in_channels == 6
    scheduler = diffusers.DDPMScheduler(**SCHEDULER | ({"sample_max_value": 1.0} if is_sr else {}))
    scheduler.set_timesteps(**{"timesteps": steps} if steps else {"num_inference_steps": STEPS})
    shape = (2, 3, 8, 8)
    normal = np.random.default_rng(0).standard_normal((STEPS + 2, *shape)).astype(np.float32)
    text = torch.from_numpy(2 * uniform(93, (4, TOKENS, model.config.encoder_hid_dim)))  # captions, then null captions
    z, low, *noises = torch.from_numpy(normal)
    z = z * scheduler.init_noise_sigma
    out = {"timesteps": scheduler.timesteps.numpy(), "text": text.numpy(), "z_1": z.numpy()}
    labels = {}
    if is_sr:
        low_res = torch.from_numpy(uniform(94, shape))
        low = scheduler.add_noise(low_res, low, torch.tensor([NOISE_LEVEL] * 2))
        labels = {"class_labels": torch.tensor([NOISE_LEVEL] * 4)}
        out["low_res"] = low.numpy()
    used = noises[: STEPS - 1]  # none is added in the last step
    draws = iter(used)
    where = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    with mock.patch(where, lambda *args, **options: next(draws)):
        for t in scheduler.timesteps:
            given = torch.cat([z, low], dim=1) if is_sr else z
            both = model(torch.cat([given, given]), t, text, **labels).sample
            (eps, variance), (eps_null, _) = (half.split(3, dim=1) for half in both.chunk(2))
            eps = eps_null + SCALE * (eps - eps_null)
            z = scheduler.step(torch.cat([eps, variance], dim=1), t, z).prev_sample
    return out | {"noise": torch.stack(used).numpy(), "z_0": z.numpy()}


def save(model: Any, directory: pathlib.Path) -> None:
    """Save a pipeline's unet/ in shards of variant fp16, its scheduler and model_index.json."""
    import diffusers

    shutil.rmtree(directory, ignore_errors=True)
    model.half().save_pretrained(directory / "unet", variant="fp16", max_shard_size="100KB")
    diffusers.DDPMScheduler(**SCHEDULER).save_pretrained(directory / "scheduler")
    index = {
        "_class_name": "IFPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    (directory / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    main()
