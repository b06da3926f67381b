"""Cuts a batch into micro-batches that a step computes one after another.

The result is the step of the whole batch: each micro-batch consists of whole BatchNorm groups, and
dropout keys are those of the images in the whole batch.
"""

from collections.abc import Callable

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from noah_jax.errors import InputError
from noah_jax.models.base import Model


def check_accumulate(accumulate: int, batch_size: int, model: Model, devices: int) -> None:
    """Raises an InputError unless a batch can be cut into so many micro-batches.

    Args:
      accumulate: Number of micro-batches.
      batch_size: Images per step over all devices.
      model: The model; a micro-batch must consist of whole BatchNorm groups.
      devices: Number of devices; each must get the same number of images of every micro-batch.
    """
    name = f"optim.accumulate={accumulate}"
    if accumulate < 1 or batch_size % (accumulate * devices):
        raise InputError(
            f"{name} must be at least 1 and cut batch_size={batch_size} into micro-batches that the"
            f" {devices} device(s) share evenly"
        )
    if accumulate == 1 or not model.abstract()[1]:
        return
    batch_norm_group = model.arguments["batch_norm_group"]
    micro_batch = batch_size // accumulate
    if batch_norm_group is None or micro_batch % batch_norm_group:
        size = "the whole batch" if batch_norm_group is None else batch_norm_group
        raise InputError(
            f"{name} makes micro-batches of {micro_batch} images, which must consist of whole"
            f" BatchNorm groups; model.batch_norm_group is {size}, choose a divisor of"
            f" {micro_batch}"
        )


def make_cutter(
    model: Model, accumulate: int, batch_size: int, mesh: Mesh | None
) -> Callable[[jax.Array], jax.Array]:
    """Makes the function that cuts `[batch, ...]` into `[accumulate, batch / accumulate, ...]`.

    Each micro-batch takes its images from every device's own, so that no image moves between
    devices, unless a BatchNorm group is larger than what a device has of a micro-batch.

    Args:
      model: The model.
      accumulate: Number of micro-batches.
      batch_size: Images per step over all devices.
      mesh: The devices that share the batch; `None` for one device.
    """
    devices = 1 if mesh is None else mesh.size
    batch_norm_group = (model.arguments["batch_norm_group"] if model.abstract()[1] else None) or 1
    images_of_a_device = batch_size // (accumulate * devices)
    blocks = devices if images_of_a_device % batch_norm_group == 0 else 1

    def cut(x: jax.Array) -> jax.Array:
        x = x.reshape(blocks, accumulate, -1, *x.shape[1:]).swapaxes(0, 1)
        x = x.reshape(accumulate, -1, *x.shape[3:])
        if mesh is None:
            return x
        sharding = NamedSharding(mesh, PartitionSpec(None, *mesh.axis_names))
        return jax.lax.with_sharding_constraint(x, sharding)

    return cut
