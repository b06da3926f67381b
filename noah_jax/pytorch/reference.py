"""Computes the original's evaluation forward pass in PyTorch, from a PyTorch state dict.

The forward pass is in `modeling_noah`, which is also what an export takes along. It serves
comparisons of numbers and of speed here. PyTorch is optional, so it is imported where it is first
needed.
"""

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

from noah_jax.errors import InputError
from noah_jax.models import get_family
from noah_jax.models.base import Model, Tree
from noah_jax.models.mobilenetv2.modeling import STAGES
from noah_jax.pytorch.golden import golden_state_dict
from noah_jax.pytorch.mapping import to_jax, to_torch

if TYPE_CHECKING:
    from torch import Tensor

HEADS_IN_PYTORCH = ("linear", "noah")


def torch_state(model: Model, params: Tree, stats: Tree) -> dict[str, "Tensor"]:
    """Converts a model's weights to a PyTorch state dict on the CPU, without batch counters."""
    import torch

    table = get_family(model.name).table
    arrays = to_torch({"params": params, "stats": stats}, table)
    # Copied because PyTorch warns of arrays that it may not write to.
    return {key: torch.from_numpy(array.copy()) for key, array in arrays.items()}


def example_weights(model: Model) -> tuple[Tree, Tree]:
    """Computes golden parameters and statistics of a model, without compiling anything.

    Every layer matters to the logits, as it would not with freshly initialised weights.
    """
    params, stats = model.abstract()
    abstract = {"params": params, "stats": stats}
    table = get_family(model.name).table
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract)
    shapes = {key: array.shape for key, array in to_torch(zeros, table).items()}
    tree = to_jax(golden_state_dict(shapes, gain=1.0), table, abstract)
    return tree["params"], tree.get("stats", {})


def torch_forward(model: Model) -> Callable[[Mapping[str, "Tensor"], "Tensor"], "Tensor"]:
    """Returns the forward pass of a registered model in PyTorch, in evaluation mode.

    Args:
      model: A model that `create_model` made with a "linear" or a "noah" head.

    Returns:
      `forward(state, images) -> logits`. The state dict and the normalised images
      `[batch, 3, height, width]` have one dtype; the logits are `[batch, num_classes]`.

    Raises:
      InputError: If the head is another one.
    """
    settings = modeling_settings(model)
    from noah_jax.pytorch.modeling_noah import forward

    return functools.partial(forward, settings=settings)


def modeling_settings(model: Model) -> dict[str, Any]:
    """Returns what `noah_jax.pytorch.modeling_noah` has to know of a model beside its weights.

    Args:
      model: A model that `create_model` made with a "linear" or a "noah" head.

    Raises:
      InputError: If the head is another one.
    """
    arguments, family = model.arguments, get_family(model.name).name
    if arguments["head"] not in HEADS_IN_PYTORCH:
        raise InputError(
            f"the PyTorch reference has a 'linear' and a 'noah' head, but {model.name} has a"
            f" {arguments['head']}"
        )
    settings: dict[str, Any] = {"family": family, "head": arguments["head"]}
    settings["image_size"] = list(model.image_size)
    if arguments["head"] == "noah":
        settings |= {key: arguments[key] for key in ("head_num", "head_split")}
        settings["merge"] = arguments["head_options"]["merge"]
    if family == "resnet":
        settings["stem"] = arguments.get("stem", "imagenet")
    if family == "mobilenetv2":
        strides = [stride if not b else 1 for *_, depth, stride in STAGES for b in range(depth)]
        settings["strides"] = strides
    if family == "mobilenetv3":
        blocks = model.architecture.build.keywords["blocks"]
        settings["strides"] = [block.stride for block in blocks]
        names = ["relu" if block.activation is nnx.relu else "hardswish" for block in blocks]
        settings["activations"] = names
    if family in ("deit", "dinov2"):
        settings["num_heads"] = arguments["num_heads"]
    if family == "pvt":
        settings |= {key: list(arguments[key]) for key in ("num_heads", "reductions")}
    return settings
