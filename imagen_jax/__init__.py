"""Imagen in JAX: text-to-image by cascaded pixel diffusion.

The functions here are the whole public surface for sampling; see the README for training. Importing this package loads
nothing: each name, and each module of the package, is loaded when it is first used.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:  # for type checkers and editors; the same names as in _HOMES
    from imagen_jax.compilation import use_compilation_cache
    from imagen_jax.models.efficient_unet import EfficientUNet
    from imagen_jax.models.unet import UNet
    from imagen_jax.sampling.cascade import sample_cascade
    from imagen_jax.sampling.one_stage import sample_stage
    from imagen_jax.stage import Stage, image_keys
    from imagen_jax.stage_dir.loading import load_cascade, load_stage
    from imagen_jax.stage_dir.saving import save_cascade, save_pretrained, save_stage
    from imagen_jax.structs import Cond, TextCond
    from imagen_jax.text.encoder import TextEncoder

__version__ = "0.1.0"

_HOMES = {
    "Cond": "structs",
    "EfficientUNet": "models.efficient_unet",
    "Stage": "stage",
    "TextCond": "structs",
    "TextEncoder": "text.encoder",
    "UNet": "models.unet",
    "image_keys": "stage",
    "load_cascade": "stage_dir.loading",
    "load_stage": "stage_dir.loading",
    "sample_cascade": "sampling.cascade",
    "sample_stage": "sampling.one_stage",
    "save_cascade": "stage_dir.saving",
    "save_pretrained": "stage_dir.saving",
    "save_stage": "stage_dir.saving",
    "use_compilation_cache": "compilation",
}

__all__ = [
    "Cond",
    "EfficientUNet",
    "Stage",
    "TextCond",
    "TextEncoder",
    "UNet",
    "image_keys",
    "load_cascade",
    "load_stage",
    "sample_cascade",
    "sample_stage",
    "save_cascade",
    "save_pretrained",
    "save_stage",
    "use_compilation_cache",
]


def __getattr__(name: str):
    import importlib  # here, since scripts import this package before they handle signals

    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_"):
        try:
            return importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
