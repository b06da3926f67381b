"""Runs the checks of the parity program, with float32 products computed in float32."""

import contextlib
from collections.abc import Iterator

import jax

from noah_jax.parity.checkpoint import check_checkpoint
from noah_jax.parity.head import check_head
from noah_jax.parity.models import check_models
from noah_jax.parity.training import check_training


def check_reference(checkpoint: str, reference: str) -> bool:
    """Checks a checkpoint against PyTorch's logits, see `check_checkpoint`; prints the result."""
    with _float32_products():
        return check_checkpoint(checkpoint, reference)


def check_golden(
    folder: str, models: str | None = None, *, train: bool = False, head: bool = False
) -> bool:
    """Checks models, their training or the head against golden vectors; prints the results.

    Args:
      folder: Folder of the golden vectors.
      models: Shell-style pattern of the models or training cases; `None` is all of them.
      train: Whether to check the training cases, not the logits of the models.
      head: Whether to check the head. The models are then checked only if `models` is given.

    Returns:
      Whether everything agrees.
    """
    with _float32_products():
        verdicts = list(_verdicts(folder, models, train=train, head=head))
    agreeing = sum(verdicts)
    print(f"{agreeing} of {len(verdicts)} agree")
    return agreeing == len(verdicts)


def _verdicts(folder: str, models: str | None, *, train: bool, head: bool) -> Iterator[bool]:
    if head:
        yield from check_head(folder)
    if train:
        yield from check_training(folder, models or "*")
    elif models is not None or not head:
        yield from check_models(folder, models or "*")


def _float32_products() -> contextlib.AbstractContextManager:
    # By default accelerators multiply float32 matrices in fewer bits.
    return jax.default_matmul_precision("float32")
