"""Puts stand-ins in the place of what imagen-pytorch imports and benchmarks do not use.

The peers here run it before they import the package, in its own environment, with runpy. Installed packages are used,
except transformers, which would ask the hub for the width of a T5.
"""

import importlib.util
import sys
from unittest import mock

PACKAGES = {
    "torchvision": ("torchvision.transforms", "torchvision.utils"),
    "kornia": ("kornia.augmentation",),
    "datasets": ("datasets.utils", "datasets.utils.file_utils"),
    "accelerate": (),
    "ema_pytorch": (),
    "pytorch_warmup": (),
    "transformers": (),
}

for package, modules in PACKAGES.items():
    if package == "transformers" or importlib.util.find_spec(package) is None:
        for name in (package, *modules):
            sys.modules[name] = mock.MagicMock()
