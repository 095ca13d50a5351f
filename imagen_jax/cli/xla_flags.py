"""Flags of XLA that commands run with, unless the environment variable XLA_FLAGS names them."""

import os
from importlib.metadata import version

# Products and reductions by the library YNNPACK. With the first, convolutions are products: their kernel gradients,
# which XLA otherwise computes as convolutions with a kernel as large as the image, run nearly as fast as other
# products. The second makes norms and sums of gradients faster, and more exact. With INDIVIDUAL_CONVOLUTION beside them
# kernel gradients are a third faster on one thread, but benchmarks/imagen_pytorch.py is slower on two.
CPU_LIBRARY = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
# Versions of jaxlib that know it: an unknown flag ends the process.
_KNOWN = ("0.10.", "0.11.", "0.12.")


def set_defaults() -> None:
    """Add the flags to XLA_FLAGS. Without effect once JAX has looked for devices."""
    given = os.environ.get("XLA_FLAGS", "")
    if version("jaxlib").startswith(_KNOWN) and CPU_LIBRARY.partition("=")[0] not in given:
        os.environ["XLA_FLAGS"] = f"{given} {CPU_LIBRARY}".strip()
