"""Turns JAX's error for exhausted device memory into one that a user can act on."""

import contextlib
from collections.abc import Iterator

import jax

from noah_jax.errors import InputError

MORE_MEMORY = "take a device with more memory, or the host's with JAX_PLATFORMS=cpu"
SMALLER_BATCH = "choose a smaller --batch"


@contextlib.contextmanager
def raise_if_out_of_memory(what: str, remedy: str = MORE_MEMORY) -> Iterator[None]:
    """Raises an `InputError` in place of JAX's error if a device runs out of memory inside.

    Args:
      what: What does not fit, as the subject of the message.
      remedy: What the user can do.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            raise
        raise InputError(f"{what} does not fit into the memory of the device; {remedy}") from error
