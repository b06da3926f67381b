"""Computes the original's evaluation forward pass in PyTorch, from a PyTorch state dict.

It serves comparisons of numbers and of speed, and nothing else. The functions are written from the
architectures' papers and layouts with `torch.nn.functional`, and read widths and depths off the
tensors' shapes. PyTorch is optional, so it is imported where it is first needed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from flax import nnx

from noah_jax.errors import InputError
from noah_jax.models import get_family
from noah_jax.models.base import Model, Tree
from noah_jax.models.mobilenetv2.modeling import STAGES
from noah_jax.models.pvt.modeling import EPSILON as PVT_EPSILON
from noah_jax.models.pvt.modeling import PATCH_SIZES
from noah_jax.pytorch.golden import golden_state_dict
from noah_jax.pytorch.mapping import to_jax, to_torch

if TYPE_CHECKING:
    from torch import Tensor


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
      InputError: If the head is a module of the user's own.
    """
    if model.arguments["head"] not in ("linear", "noah"):
        raise InputError(
            f"the PyTorch reference has a 'linear' and a 'noah' head, but {model.name} has a"
            f" {model.arguments['head']}"
        )
    family = _FAMILIES[get_family(model.name).name]

    def forward(state: Mapping[str, "Tensor"], images: "Tensor") -> "Tensor":
        net = _Layers(state)
        return _head(net, family(net, images, model), model)

    return forward


class _Layers:
    """PyTorch's layers with the tensors of a state dict; each is called by its keys' prefix."""

    def __init__(self, state: Mapping[str, "Tensor"]):
        import torch

        self.torch = torch
        self.functional = torch.nn.functional
        self.state = state

    def __contains__(self, key: str) -> bool:
        return key in self.state

    def __getitem__(self, key: str) -> "Tensor":
        return self.state[key]

    def indices(self, prefix: str) -> range:
        """Returns the numbers i for which there are keys that start with `prefix.i.`"""
        start = len(prefix) + 1
        return range(
            len({k[start:].partition(".")[0] for k in self.state if k.startswith(f"{prefix}.")})
        )

    def conv(self, key: str, x: "Tensor", stride: int = 1, padding: int | None = None) -> "Tensor":
        weight = self.state[f"{key}.weight"]
        padding = weight.shape[-1] // 2 if padding is None else padding
        groups = x.shape[1] // weight.shape[1]
        bias = self.state.get(f"{key}.bias")
        return self.functional.conv2d(x, weight, bias, stride, padding, groups=groups)

    def batch_norm(self, key: str, x: "Tensor") -> "Tensor":
        names = ("running_mean", "running_var", "weight", "bias")
        return self.functional.batch_norm(x, *(self.state[f"{key}.{name}"] for name in names))

    def relu(self, x: "Tensor") -> "Tensor":
        return self.functional.relu(x, inplace=True)

    def linear(self, key: str, x: "Tensor") -> "Tensor":
        return self.functional.linear(x, self.state[f"{key}.weight"], self.state.get(f"{key}.bias"))

    def layer_norm(self, key: str, x: "Tensor", epsilon: float = 1e-6) -> "Tensor":
        weight = self.state[f"{key}.weight"]
        bias = self.state[f"{key}.bias"]
        return self.functional.layer_norm(x, weight.shape, weight, bias, epsilon)

    def prepend(self, key: str, x: "Tensor") -> "Tensor":
        """Puts the tensor at `key`, `[1, any, channels]`, before the tokens of every image."""
        return self.torch.cat((self.state[key].expand(len(x), -1, -1), x), 1)

    def mlp(self, key: str, x: "Tensor") -> "Tensor":
        x = self.functional.gelu(self.linear(f"{key}.fc1", x))
        return self.linear(f"{key}.fc2", x)

    def attention(
        self, query: "Tensor", keys: "Tensor", value: "Tensor", num_heads: int
    ) -> "Tensor":
        """Multi-head attention of tensors `[batch, tokens, channels]`."""
        split = (x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (query, keys, value))
        out = self.functional.scaled_dot_product_attention(*split)
        return out.transpose(1, 2).flatten(2)


def _resnet(net: _Layers, x: "Tensor", model: Model) -> "Tensor":
    imagenet = model.arguments.get("stem", "imagenet") == "imagenet"
    x = net.relu(net.batch_norm("bn1", net.conv("conv1", x, 2 if imagenet else 1)))
    if imagenet:
        x = net.functional.max_pool2d(x, 3, 2, 1)
    for stage in range(1, 5):
        for b in net.indices(f"layer{stage}"):
            key = f"layer{stage}.{b}"
            stride = 2 if stage > 1 and not b else 1
            bottleneck = f"{key}.conv3.weight" in net
            y = net.conv(f"{key}.conv1", x, 1 if bottleneck else stride)
            y = net.relu(net.batch_norm(f"{key}.bn1", y))
            y = net.conv(f"{key}.conv2", y, stride if bottleneck else 1)
            y = net.batch_norm(f"{key}.bn2", y)
            if bottleneck:
                y = net.batch_norm(f"{key}.bn3", net.conv(f"{key}.conv3", net.relu(y)))
            if f"{key}.downsample.0.weight" in net:
                x = net.conv(f"{key}.downsample.0", x, stride)
                x = net.batch_norm(f"{key}.downsample.1", x)
            x = net.relu(y.add_(x))
    return x


def _mobilenetv2(net: _Layers, x: "Tensor", model: Model) -> "Tensor":
    def layer(conv: str, norm: str, x: "Tensor", stride: int = 1) -> "Tensor":
        x = net.batch_norm(norm, net.conv(conv, x, stride))
        return net.functional.relu6(x, inplace=True)

    x = layer("features.0.0", "features.0.1", x, 2)
    strides = [stride if not b else 1 for _, _, depth, stride in STAGES for b in range(depth)]
    for i, stride in enumerate(strides, start=1):
        key = f"features.{i}.conv"
        y, last = x, 1
        if f"{key}.3.weight" in net:  # with an expansion
            y, last = layer(f"{key}.0.0", f"{key}.0.1", y), 2
        y = layer(f"{key}.{last - 1}.0", f"{key}.{last - 1}.1", y, stride)
        y = net.batch_norm(f"{key}.{last + 1}", net.conv(f"{key}.{last}", y))
        x = y.add_(x) if y.shape == x.shape else y
    last = len(strides) + 1
    return layer(f"features.{last}.0", f"features.{last}.1", x)


def _mobilenetv3(net: _Layers, x: "Tensor", model: Model) -> "Tensor":
    functional = net.functional

    def hardswish(x: "Tensor") -> "Tensor":
        return functional.hardswish(x, inplace=True)

    x = hardswish(net.batch_norm("features.0.1", net.conv("features.0.0", x, 2)))
    blocks = model.architecture.build.keywords["blocks"]
    for i, block in enumerate(blocks, start=1):
        key = f"features.{i}.conv"
        activation = net.relu if block.activation is nnx.relu else hardswish
        y = activation(net.batch_norm(f"{key}.1", net.conv(f"{key}.0", x)))
        y = net.batch_norm(f"{key}.4", net.conv(f"{key}.3", y, block.stride))
        if block.squeeze:
            gate = functional.relu(net.linear(f"{key}.5.fc.0", y.mean((2, 3))))
            gate = functional.hardsigmoid(net.linear(f"{key}.5.fc.2", gate))
            y = y.mul_(gate[:, :, None, None])
        y = net.batch_norm(f"{key}.8", net.conv(f"{key}.7", activation(y)))
        x = y.add_(x) if block.stride == 1 and y.shape == x.shape else y
    last = len(blocks) + 1
    x = hardswish(net.batch_norm(f"features.{last}.1", net.conv(f"features.{last}.0", x)))
    last += 1
    if f"features.{last}.weight" not in net:  # the linear head pools before it
        x = x.mean((2, 3), keepdim=True)
        last += 1
    return hardswish(net.conv(f"features.{last}", x))


def _shufflenetv2(net: _Layers, x: "Tensor", model: Model) -> "Tensor":
    def layer(key: str, index: int, x: "Tensor", stride: int = 1) -> "Tensor":
        x = net.conv(f"{key}.{index}", x, stride)
        return net.batch_norm(f"{key}.{index + 1}", x)

    x = net.relu(layer("conv1", 0, x, 2))
    x = net.functional.max_pool2d(x, 3, 2, 1)
    for stage in (2, 3, 4):
        for b in net.indices(f"stage{stage}"):
            key, stride = f"stage{stage}.{b}", 1 if b else 2
            if b:
                left, right = x.chunk(2, dim=1)
            else:
                left = layer(f"{key}.branch1", 0, x, 2)
                left, right = net.relu(layer(f"{key}.branch1", 2, left)), x
            right = net.relu(layer(f"{key}.branch2", 0, right))
            right = layer(f"{key}.branch2", 3, right, stride)
            right = net.relu(layer(f"{key}.branch2", 5, right))
            # Shuffling two channel groups makes the channels of the halves alternate.
            x = net.torch.stack((left, right), dim=2).flatten(1, 2)
    return net.relu(layer("conv5", 0, x))


def _deit(net: _Layers, x: "Tensor", model: Model) -> "Tensor":
    num_heads, patch = (model.arguments[key] for key in ("num_heads", "patch_size"))
    grid = [pixels // patch for pixels in x.shape[2:]]
    x = net.conv("patch_embed.proj", x, patch, 0).flatten(2).transpose(1, 2)
    has_token = "cls_token" in net
    if has_token:
        x = net.prepend("cls_token", x)
    x = _vit_blocks(net, x + net["pos_embed"], num_heads)
    x = net.layer_norm("norm", x[:, 0] if has_token else x)
    if "pre_logits.fc.weight" in net:
        x = net.linear("pre_logits.fc", x).tanh()
    return x if has_token else _as_map(x, grid)


def _dinov2(net: _Layers, x: "Tensor", model: Model) -> "Tensor":
    num_heads, patch = (model.arguments[key] for key in ("num_heads", "patch_size"))
    grid = [pixels // patch for pixels in x.shape[2:]]
    made_for = [pixels // patch for pixels in model.image_size]
    x = net.conv("patch_embed.proj", x, patch, 0).flatten(2).transpose(1, 2)
    # Without registers the class token has a position too, the first one.
    positions = net["pos_embed"][:, -made_for[0] * made_for[1] :]
    if made_for != grid:
        resized = net.functional.interpolate(
            _as_map(positions, made_for), tuple(grid), mode="bicubic", antialias=True
        )
        positions = resized.flatten(2).transpose(1, 2)
    x = x + positions
    if "reg_token" in net:
        x = net.prepend("cls_token", net.prepend("reg_token", x))
    else:
        token = net["cls_token"] + net["pos_embed"][:, :1]
        x = net.torch.cat((token.expand(len(x), -1, -1), x), 1)
    x = net.layer_norm("norm", _vit_blocks(net, x, num_heads))
    if model.arguments["head"] == "linear":
        return x[:, 0]
    return _as_map(x[:, -grid[0] * grid[1] :], grid)


def _vit_blocks(net: _Layers, x: "Tensor", num_heads: int) -> "Tensor":
    """Applies blocks of attention and MLP to `[batch, tokens, channels]`."""
    for b in net.indices("blocks"):
        key = f"blocks.{b}"
        qkv = net.linear(f"{key}.attn.qkv", net.layer_norm(f"{key}.norm1", x))
        query, keys, value = qkv.chunk(3, dim=2)
        y = net.linear(f"{key}.attn.proj", net.attention(query, keys, value, num_heads))
        x = x + y * net.state.get(f"{key}.ls1.gamma", 1)
        y = net.mlp(f"{key}.mlp", net.layer_norm(f"{key}.norm2", x))
        x = x + y * net.state.get(f"{key}.ls2.gamma", 1)
    return x


def _pvt(net: _Layers, x: "Tensor", model: Model) -> "Tensor":
    functional = net.functional
    num_heads, reductions = (model.arguments[key] for key in ("num_heads", "reductions"))
    for s, (patch, reduction) in enumerate(zip(PATCH_SIZES, reductions, strict=True), start=1):
        x = net.conv(f"patch_embed{s}.proj", x, patch, 0)
        grid = x.shape[2:]
        x = net.layer_norm(f"patch_embed{s}.norm", x.flatten(2).transpose(1, 2), PVT_EPSILON)
        has_token = s == 4 and "cls_token" in net
        positions = net[f"pos_embed{s}"]
        positions_grid = [pixels // 4 // 2 ** (s - 1) for pixels in model.image_size]
        if positions_grid != list(grid):
            resized = _as_map(positions[:, 1:] if has_token else positions, positions_grid)
            resized = functional.interpolate(resized, tuple(grid), mode="bilinear")
            resized = resized.flatten(2).transpose(1, 2)
            positions = net.torch.cat((positions[:, :1], resized), 1) if has_token else resized
        x = (net.prepend("cls_token", x) if has_token else x) + positions
        for b in net.indices(f"block{s}"):
            key = f"block{s}.{b}"
            y = reduced = net.layer_norm(f"{key}.norm1", x)
            if reduction > 1:
                reduced = net.conv(f"{key}.attn.sr", _as_map(y, grid), reduction, 0)
                reduced = reduced.flatten(2).transpose(1, 2)
                reduced = net.layer_norm(f"{key}.attn.norm", reduced, PVT_EPSILON)
            keys, value = net.linear(f"{key}.attn.kv", reduced).chunk(2, dim=2)
            y = net.attention(net.linear(f"{key}.attn.q", y), keys, value, num_heads[s - 1])
            x = x + net.linear(f"{key}.attn.proj", y)
            x = x + net.mlp(f"{key}.mlp", net.layer_norm(f"{key}.norm2", x))
        if s < 4:
            x = _as_map(x, grid)
    x = net.layer_norm("norm", x[:, 0] if has_token else x)
    return x if has_token else _as_map(x, grid)


def _mlp(net: _Layers, x: "Tensor", model: Model) -> "Tensor":
    functional = net.functional

    def norm(key: str, x: "Tensor") -> "Tensor":
        if f"{key}.alpha" in net:  # ResMLP
            return net.torch.addcmul(net[f"{key}.beta"], net[f"{key}.alpha"], x)
        return net.layer_norm(key, x)

    def mlp(key: str, x: "Tensor") -> "Tensor":
        if net[f"{key}.fc2.weight"].shape[1] == net[f"{key}.fc1.weight"].shape[0]:
            return net.mlp(key, x)
        if f"{key}.gate.proj.weight" in net:  # gMLP
            y, gate = functional.gelu(net.linear(f"{key}.fc1", x)).chunk(2, dim=-1)
            gate = net.layer_norm(f"{key}.gate.norm", gate, 1e-5)
            y = y * net.linear(f"{key}.gate.proj", gate.transpose(1, 2)).transpose(1, 2)
        else:  # gMixer
            y, gate = net.linear(f"{key}.fc1", x).chunk(2, dim=-1)
            y = y * functional.silu(gate)
        return net.linear(f"{key}.fc2", y)

    patch = net["stem.proj.weight"].shape[-1]
    grid = [pixels // patch for pixels in x.shape[2:]]
    x = net.conv("stem.proj", x, patch, 0).flatten(2).transpose(1, 2)
    for b in net.indices("blocks"):
        key = f"blocks.{b}"
        if f"{key}.norm.weight" in net:  # gMLP
            x = x + mlp(f"{key}.mlp_channels", norm(f"{key}.norm", x))
            continue
        y = norm(f"{key}.norm1", x).transpose(1, 2)
        if f"{key}.ls1" in net:  # ResMLP
            y = net.linear(f"{key}.linear_tokens", y).transpose(1, 2)
            x = x + net[f"{key}.ls1"] * y
            x = x + net[f"{key}.ls2"] * mlp(f"{key}.mlp_channels", norm(f"{key}.norm2", x))
        else:
            x = x + mlp(f"{key}.mlp_tokens", y).transpose(1, 2)
            x = x + mlp(f"{key}.mlp_channels", norm(f"{key}.norm2", x))
    return _as_map(norm("norm", x), grid)


_FAMILIES = {
    "resnet": _resnet,
    "mobilenetv2": _mobilenetv2,
    "mobilenetv3": _mobilenetv3,
    "shufflenetv2": _shufflenetv2,
    "deit": _deit,
    "dinov2": _dinov2,
    "pvt": _pvt,
    "mlp": _mlp,
}


def _head(net: _Layers, x: "Tensor", model: Model) -> "Tensor":
    """Computes logits from the last map `[batch, channels, height, width]` or a class token."""
    key = "classifier" if "classifier.query.weight" in net else "head"
    if f"{key}.query.weight" not in net:
        key = next(key for key in ("head.2", "classifier.1", "head") if f"{key}.weight" in net)
        return net.linear(key, x.mean((2, 3)) if x.ndim == 4 else x)
    arguments = model.arguments
    query, value = x, x
    if arguments["kv_split"]:
        split = int(x.shape[1] * arguments["key_ratio"])
        query, value = x[:, :split], x[:, split:]
    query = net.conv(f"{key}.query", query).flatten(2).softmax(-1)
    value = net.conv(f"{key}.value", value).flatten(2)
    return (query * value).sum(-1).unflatten(1, (arguments["head_num"], -1)).sum(1)


def _as_map(tokens: "Tensor", grid: Sequence[int]) -> "Tensor":
    """Reshapes `[batch, tokens, channels]` to `[batch, channels, *grid]`."""
    return tokens.transpose(1, 2).unflatten(2, tuple(grid))
