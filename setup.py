"""The packages, which setup.cfg cannot list: those of imagen_jax, and configs/ as imagen_jax.configs."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["imagen_jax*"]), "imagen_jax.configs"],
    package_dir={"imagen_jax.configs": "configs"},
)
