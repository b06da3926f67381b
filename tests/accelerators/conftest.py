"""Skips the tests of this folder where JAX finds no accelerator of the kind that was asked for.

`pytest -m gpu` and `pytest -m tpu` run them. With `NOAH_ACCELERATOR_TESTS=anywhere` they run on
whatever JAX has, a CPU for example, with emulated kernels, to find mistakes in the tests.
"""

import os

import jax
import pytest

from tests.accelerators import asked_for


@pytest.fixture(scope="session", autouse=True)
def accelerator(request) -> str:
    """The kind that was asked for; looked for first, so that nothing is trained in vain."""
    kind = asked_for(request.config)
    if kind is None:
        pytest.skip("run by `pytest -m gpu` and `pytest -m tpu`")
    if jax.default_backend() != kind and os.environ.get("NOAH_ACCELERATOR_TESTS") != "anywhere":
        pytest.skip(f"JAX finds no {kind.upper()}")
    return kind


@pytest.fixture(scope="session")
def kernel(accelerator) -> str:
    """Name of the implementation of the head's kernel: compiled where it can be, else emulated."""
    return accelerator if jax.default_backend() == accelerator else f"{accelerator}_interpret"
