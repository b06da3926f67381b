"""Skips the tests of this folder where JAX finds no GPU; `pytest -m gpu` runs them.

`NOAH_GPU_TESTS=anywhere pytest -m gpu` runs the same tests on whatever JAX has, a CPU for example,
with emulated kernels, to find mistakes in the tests themselves.
"""

import os

import jax
import pytest


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    """Runs before any other fixture, so that nothing is trained in vain."""
    if jax.default_backend() != "gpu" and os.environ.get("NOAH_GPU_TESTS") != "anywhere":
        pytest.skip("JAX finds no GPU")


@pytest.fixture(scope="session")
def kernel() -> str:
    """Name of the implementation of the head's kernel for GPUs: compiled there, else emulated."""
    return "gpu" if jax.default_backend() == "gpu" else "gpu_interpret"
