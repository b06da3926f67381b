"""Says which packages noah-jax has; all else about it is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["noah_jax", "noah_jax.*"]), "noah_jax.configs"],
    # The configurations lie beside the package, where people look for them, and travel in it.
    package_dir={"noah_jax.configs": "configs"},
)
