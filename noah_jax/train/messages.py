"""Writes the lines that a run prints before its first step."""

import os
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from noah_jax import distributed
from noah_jax.config import flat_config
from noah_jax.config_sections import scaled
from noah_jax.data.shrunk import describe_pixels
from noah_jax.models.base import Model
from noah_jax.train.setup import TrainSetup
from noah_jax.train.state import State

_FEW_IMAGES = 5_000


def describe_setup(setup: TrainSetup, *, parameters: os.PathLike[str]) -> Iterator[str]:
    """Says what is trained on what.

    Args:
      setup: The run.
      parameters: The file that lists the parameters.
    """
    model, plan, inputs = setup.model, setup.plan, setup.inputs
    if inputs.split is not None:
        yield inputs.split.describe()
    yield (
        f"{model.name}: {model.num_params:,} parameters ({os.fspath(parameters)} lists them),"
        f" images of {model.image_size[0]} x {model.image_size[1]} pixels"
    )
    yield (
        f"{inputs.name}: {len(inputs.train_source):,} training and {len(inputs.eval_source):,}"
        f" evaluation images of {len(inputs.class_names):,} classes"
    )
    if line := inputs.describe_order():
        yield line
    pixels = describe_pixels(inputs.train_source.encoded, inputs.eval_source.encoded)
    if pixels is not None:
        yield pixels
    yield (
        f"{plan.total_steps} steps of {plan.batch_size} images, {setup.config.epochs:g} epochs, on"
        f" {setup.mesh.size} {jax.devices()[0].device_kind} device(s)"
    )


def describe_choices(config: ConfigDict, setup: TrainSetup) -> Iterator[str]:
    """Says what was chosen where the configuration left it open, except for the model.

    Args:
      config: The configuration as given.
      setup: What was built from it.
    """
    given, chosen = flat_config(config), flat_config(setup.config)
    words = [
        f"{key}={value:.4g}"
        for key, value in chosen.items()
        if isinstance(value, int | float) and not key.startswith("model.") and given[key] is None
    ]
    if words:
        yield f"chosen for {len(setup.inputs.train_source):,} images: {', '.join(words)}"


def few_images_warning(setup: TrainSetup) -> str | None:
    """Warns of weights that start afresh on images that are too few for them."""
    images = len(setup.inputs.train_source)
    if setup.config.init_from is not None or images >= _FEW_IMAGES:
        return None
    return (
        f"all weights start afresh, and {images:,} images are few to learn from; weights that know"
        " images already, --config.init_from=PATH, reach far more (a run's or converted folder, a"
        " PyTorch file, or hf://USER/NAME)"
    )


def describe_batch(setup: TrainSetup) -> Iterator[str]:
    """Says how a step's batch is scaled, cut into micro-batches and spread over the devices."""
    config = setup.config
    plan = setup.plan
    if config.scale_batch != 1:
        learning_rate = scaled(config).optim.learning_rate
        yield (
            f"scale_batch={config.scale_batch:g}: batch {config.batch_size} -> {plan.batch_size},"
            f" learning rate {config.optim.learning_rate:g} -> {learning_rate:g} (linear"
            " rule); epochs and warm-up stay"
        )
    micro_batch = plan.batch_size // plan.accumulate
    if plan.accumulate > 1:
        yield f"a step computes its {plan.batch_size} images in micro-batches of {micro_batch}"
    line = describe_batch_norm_groups(setup.model, micro_batch, setup.mesh.size)
    if line is not None:
        yield line


def describe_batch_norm_groups(model: Model, micro_batch: int, devices: int) -> str | None:
    """Says what BatchNorm groups cost that span several devices; `None` if none does.

    Args:
      model: The model.
      micro_batch: Images that are computed at once, over all devices.
      devices: Number of devices.
    """
    if not model.abstract()[1]:
        return None
    batch_norm_group = model.arguments["batch_norm_group"] or micro_batch
    images_of_a_device = micro_batch // devices
    if images_of_a_device % batch_norm_group == 0:
        return None
    if batch_norm_group % images_of_a_device == 0:
        spans = f"spans {batch_norm_group // images_of_a_device}"
    else:
        spans = f"spans up to {-(-batch_norm_group // images_of_a_device) + 1}"
    return (
        f"a BatchNorm group of {batch_norm_group} images {spans} devices, which have"
        f" {images_of_a_device} each: every BatchNorm layer exchanges its sums among them"
    )


def describe_sharding(state: State) -> str:
    """Says how much of a sharded state one device holds."""
    shard = distributed.device_bytes(state)
    whole = sum(x.nbytes for x in jax.tree.leaves(state))
    return f"a device holds {shard / 2**20:,.1f} MiB of the state's {whole / 2**20:,.1f} MiB"
