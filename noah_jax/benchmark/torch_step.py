"""Train steps of timm's models in PyTorch, for `step`."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from noah_jax.aot.head_shape import HeadShape
from noah_jax.benchmark import pytorch_here
from noah_jax.errors import InputError
from noah_jax.models.base import Model
from noah_jax.timing import Call

if TYPE_CHECKING:
    import torch

FORMS = ("eager", "torch.compile")
_LEARNING_RATE = 0.01


def torch_step(
    model: Model, shape: HeadShape | None, *, batch: int, dtype: str, form: str, device: str
) -> tuple[Call, int | None]:
    """Makes the train step of the same model in PyTorch.

    Images lie on the device, normalised, with channels last; products run in `dtype` by autocast,
    parameters are float32; SGD with momentum as in our step.

    Args:
      model: Our model.
      shape: Shape of its NOAH head; `None` for the linear head.
      batch: Images a step.
      dtype: Compute dtype.
      form: "eager" or "torch.compile".
      device: PyTorch's name of the device.

    Returns:
      The step, and the memory that it takes; `None` where PyTorch tells none.

    Raises:
      InputError: If timm has no such model, or one with another number of parameters.
    """
    import torch

    before = pytorch_here.held_bytes(device)
    net = timm_model(model, shape).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=_LEARNING_RATE, momentum=0.9)
    forward = torch.compile(net) if form == "torch.compile" else net
    images = torch.randn(batch, 3, *model.image_size, device=device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(model.num_classes, (batch,), device=device)
    autocast = functools.partial(
        torch.autocast, device, getattr(torch, dtype), enabled=dtype != "float32"
    )

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            loss = torch.nn.functional.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    call = pytorch_here.torch_call(step, device)
    call.wait(call.start())  # compiles, and makes the momentum
    return call, pytorch_here.peak_bytes(call, device, before=before)


def timm_model(model: Model, shape: HeadShape | None) -> "torch.nn.Module":
    """Makes timm's model of a backbone, with the same head as ours.

    Args:
      model: Our model.
      shape: Shape of its NOAH head; `None` for the linear head.

    Raises:
      InputError: If timm has no such model, or one with another number of parameters.
    """
    import timm

    name = model.name.removeprefix("noah_")
    if not timm.is_model(name):
        raise InputError(f"timm has no {name}")
    options: dict[str, Any] = {"num_classes": model.num_classes}
    if name.startswith(("deit", "mixer", "gmixer", "resmlp", "gmlp")):
        options["img_size"] = model.image_size
    if shape is not None and name.startswith("deit"):
        options |= {"class_token": False, "global_pool": "avg", "fc_norm": False}
    net = timm.create_model(name, **options)
    if shape is not None:
        net.reset_classifier(0)
        net = _with_noah(net, shape)
    size = sum(parameter.numel() for parameter in net.parameters())
    if size != model.num_params:
        raise InputError(f"timm's {name} has {size:,} parameters, not {model.num_params:,}")
    return net


def _with_noah(backbone: "torch.nn.Module", shape: HeadShape) -> "torch.nn.Module":
    """Puts the NOAH head, as its definition says, on timm's features."""
    import torch

    query_channels = int(shape.channels * shape.key_ratio)
    outputs = shape.head_num * shape.num_classes

    class WithNoah(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone
            self.query, self.value = (
                torch.nn.Conv2d(channels, outputs, 1, groups=shape.head_num)
                for channels in (query_channels, shape.channels - query_channels)
            )

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            features: Callable[..., torch.Tensor] = self.backbone.forward_features
            x = features(images)
            if x.ndim == 3:  # tokens
                x = x.transpose(1, 2).unflatten(2, shape.spatial)
            return pytorch_here.noah_logits(
                x,
                (self.query.weight, self.query.bias),
                (self.value.weight, self.value.bias),
                head_num=shape.head_num,
                query_channels=query_channels,
            )

    return WithNoah()
