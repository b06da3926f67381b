"""A classifier that noah_jax exported, in PyTorch; needs torch and safetensors, no other package.

    from modeling_noah import load

    model = load("FOLDER")  # with model.safetensors and config.json
    logits = model(model.prepare(PIL.Image.open("photo.jpg"))[None])

The images of a batch are `[batch, 3, height, width]`: uint8 pixels, which the model normalises, or
floats that are normalised already, `(pixel / 255 - model.mean) / model.std`. The logits are
`[batch, num_classes]`; `model.class_names` has the classes in their order, where they are known.

The weights are ordinary parameters and buffers, so `model.to("cuda")`, `model.half()`,
`model.train()` and `model.state_dict()` work as usual. There is no dropout.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_PVT_EPSILON = 1e-5


def load(folder: str | pathlib.Path | None = None) -> "ImageClassifier":
    """Loads the model of a folder, on the CPU and in evaluation mode.

    Args:
      folder: A folder with `model.safetensors` and `config.json`; by default that of this file.
    """
    from safetensors.torch import load_file

    folder = pathlib.Path(folder or pathlib.Path(__file__).parent)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return ImageClassifier(config, load_file(folder / "model.safetensors")).eval()


class ImageClassifier(nn.Module):
    """A backbone with its head.

    Args:
      config: The contents of `config.json`.
      weights: Tensors by the keys of `model.safetensors`.
    """

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Tensor]):
        super().__init__()
        self.settings = config["modeling_noah"]
        self.preprocessing = config["noah_jax"]["preprocessing"]
        self.mean, self.std = self.preprocessing["mean"], self.preprocessing["std"]
        self.class_names = config.get("label_names")
        for key, tensor in weights.items():
            self._add(self.settings["renamed"].get(key, key), tensor)

    def _add(self, key: str, tensor: Tensor) -> None:
        *path, name = key.split(".")
        module: nn.Module = self
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        if name.startswith("running_") or not tensor.is_floating_point():
            module.register_buffer(name, tensor)
        else:
            module.register_parameter(name, nn.Parameter(tensor))

    def forward(self, images: Tensor) -> Tensor:
        """Computes the logits `[batch, num_classes]` of images `[batch, 3, height, width]`."""
        state = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        if images.dtype == torch.uint8:
            like = next(self.parameters())
            mean, std = (255 * like.new_tensor(x)[:, None, None] for x in (self.mean, self.std))
            images = (images.to(like.dtype) - mean) / std
        return forward(state, images, self.settings, training=self.training)

    def prepare(self, image: Any) -> Tensor:
        """Resizes and crops an image as the training's evaluation did.

        Args:
          image: A `PIL.Image.Image`.

        Returns:
          uint8 pixels `[3, height, width]`.
        """
        import numpy

        resize = self.preprocessing["resize"]
        rows, columns = self.preprocessing["crop"]
        width, height = image.size
        if resize == "squash":
            size = columns, rows
        elif resize is None:  # so that the image just covers the crop
            scale = max(rows / height, columns / width)
            size = max(columns, round(width * scale)), max(rows, round(height * scale))
        else:
            short = min(width, height)
            size = int(resize * width / short), int(resize * height / short)
        image = _resized(image.convert("RGB"), size, self.preprocessing["interpolation"])
        sides = zip(size, (columns, rows), strict=True)
        left, top = (round((a - b) / 2) if a >= b else -((b - a) // 2) for a, b in sides)
        image = image.crop((left, top, left + columns, top + rows))  # black beyond the image
        return torch.from_numpy(numpy.array(image)).permute(2, 0, 1)


def _resized(image: Any, size: tuple[int, int], interpolation: str) -> Any:
    """Resizes a Pillow image to `(width, height)`; "nearest" is PyTorch's, all others Pillow's."""
    import numpy
    from PIL import Image

    if image.size == size:
        return image
    if interpolation != "nearest":
        name = interpolation.upper().removesuffix("-EXACT")
        return image.resize(size, Image.Resampling[name])
    pixels = torch.from_numpy(numpy.array(image)).permute(2, 0, 1)
    pixels = functional.interpolate(pixels[None], size[::-1], mode="nearest")
    return Image.fromarray(pixels[0].permute(1, 2, 0).contiguous().numpy())


def forward(
    state: Mapping[str, Tensor], images: Tensor, settings: Mapping[str, Any], training: bool = False
) -> Tensor:
    """Computes logits from a state dict, whose tensors tell widths and depths by their shapes.

    Args:
      state: Tensors by the keys of the authors' code.
      images: Normalised images `[batch, 3, height, width]`, of the tensors' dtype.
      settings: What no shape tells: the section `modeling_noah` of `config.json`.
      training: Whether BatchNorm takes the statistics of the batch.

    Returns:
      Logits `[batch, num_classes]`.
    """
    net = _Layers(state, settings, training)
    return _head(net, _FAMILIES[settings["family"]](net, images))


class _Layers:
    """PyTorch's layers with the tensors of a state dict; each is called by its keys' prefix."""

    def __init__(self, state: Mapping[str, Tensor], settings: Mapping[str, Any], training: bool):
        self.state = state
        self.settings = settings
        self.training = training

    def __contains__(self, key: str) -> bool:
        return key in self.state

    def __getitem__(self, key: str) -> Tensor:
        return self.state[key]

    def indices(self, prefix: str) -> range:
        """Returns the numbers i for which there are keys that start with `prefix.i.`"""
        keys = (
            key.removeprefix(f"{prefix}.") for key in self.state if key.startswith(f"{prefix}.")
        )
        return range(len({key.partition(".")[0] for key in keys}))

    def conv(self, key: str, x: Tensor, stride: int = 1, padding: int | None = None) -> Tensor:
        weight = self.state[f"{key}.weight"]
        padding = weight.shape[-1] // 2 if padding is None else padding
        groups = x.shape[1] // weight.shape[1]
        bias = self.state.get(f"{key}.bias")
        return functional.conv2d(x, weight, bias, stride, padding, groups=groups)

    def batch_norm(self, key: str, x: Tensor) -> Tensor:
        names = ("running_mean", "running_var", "weight", "bias")
        tensors = (self.state[f"{key}.{name}"] for name in names)
        return functional.batch_norm(x, *tensors, self.training)

    def linear(self, key: str, x: Tensor) -> Tensor:
        return functional.linear(x, self.state[f"{key}.weight"], self.state.get(f"{key}.bias"))

    def layer_norm(self, key: str, x: Tensor, epsilon: float = 1e-6) -> Tensor:
        weight, bias = self.state[f"{key}.weight"], self.state[f"{key}.bias"]
        return functional.layer_norm(x, weight.shape, weight, bias, epsilon)

    def mlp(self, key: str, x: Tensor) -> Tensor:
        return self.linear(f"{key}.fc2", functional.gelu(self.linear(f"{key}.fc1", x)))

    def attention(self, query: Tensor, keys: Tensor, value: Tensor, num_heads: int) -> Tensor:
        """Multi-head attention of tensors `[batch, tokens, channels]`."""
        split = (x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (query, keys, value))
        out = functional.scaled_dot_product_attention(*split)
        return out.transpose(1, 2).flatten(2)


def _resnet(net: _Layers, x: Tensor) -> Tensor:
    imagenet = net.settings["stem"] == "imagenet"
    x = functional.relu_(net.batch_norm("bn1", net.conv("conv1", x, 2 if imagenet else 1)))
    if imagenet:
        x = functional.max_pool2d(x, 3, 2, 1)
    for stage in range(1, 5):
        for b in net.indices(f"layer{stage}"):
            key = f"layer{stage}.{b}"
            stride = 2 if stage > 1 and not b else 1
            bottleneck = f"{key}.conv3.weight" in net
            y = net.conv(f"{key}.conv1", x, 1 if bottleneck else stride)
            y = functional.relu_(net.batch_norm(f"{key}.bn1", y))
            y = net.conv(f"{key}.conv2", y, stride if bottleneck else 1)
            y = net.batch_norm(f"{key}.bn2", y)
            if bottleneck:
                y = net.batch_norm(f"{key}.bn3", net.conv(f"{key}.conv3", functional.relu_(y)))
            if f"{key}.downsample.0.weight" in net:
                x = net.conv(f"{key}.downsample.0", x, stride)
                x = net.batch_norm(f"{key}.downsample.1", x)
            x = functional.relu_(y.add_(x))
    return x


def _mobilenetv2(net: _Layers, x: Tensor) -> Tensor:
    def layer(conv: str, norm: str, x: Tensor, stride: int = 1) -> Tensor:
        x = net.batch_norm(norm, net.conv(conv, x, stride))
        return functional.relu6(x, inplace=True)

    x = layer("features.0.0", "features.0.1", x, 2)
    strides = net.settings["strides"]
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


def _mobilenetv3(net: _Layers, x: Tensor) -> Tensor:
    def hardswish(x: Tensor) -> Tensor:
        return functional.hardswish(x, inplace=True)

    x = hardswish(net.batch_norm("features.0.1", net.conv("features.0.0", x, 2)))
    blocks = list(zip(net.settings["strides"], net.settings["activations"], strict=True))
    for i, (stride, name) in enumerate(blocks, start=1):
        key = f"features.{i}.conv"
        activation = functional.relu_ if name == "relu" else hardswish
        y = activation(net.batch_norm(f"{key}.1", net.conv(f"{key}.0", x)))
        y = net.batch_norm(f"{key}.4", net.conv(f"{key}.3", y, stride))
        if f"{key}.5.fc.0.weight" in net:  # squeeze and excitation
            gate = functional.relu(net.linear(f"{key}.5.fc.0", y.mean((2, 3))))
            gate = functional.hardsigmoid(net.linear(f"{key}.5.fc.2", gate))
            y = y.mul_(gate[:, :, None, None])
        y = net.batch_norm(f"{key}.8", net.conv(f"{key}.7", activation(y)))
        x = y.add_(x) if stride == 1 and y.shape == x.shape else y
    last = len(blocks) + 1
    x = hardswish(net.batch_norm(f"features.{last}.1", net.conv(f"features.{last}.0", x)))
    last += 1
    if f"features.{last}.weight" not in net:  # the linear head pools before it
        x = x.mean((2, 3), keepdim=True)
        last += 1
    return hardswish(net.conv(f"features.{last}", x))


def _shufflenetv2(net: _Layers, x: Tensor) -> Tensor:
    def layer(key: str, index: int, x: Tensor, stride: int = 1) -> Tensor:
        x = net.conv(f"{key}.{index}", x, stride)
        return net.batch_norm(f"{key}.{index + 1}", x)

    x = functional.relu_(layer("conv1", 0, x, 2))
    x = functional.max_pool2d(x, 3, 2, 1)
    for stage in (2, 3, 4):
        for b in net.indices(f"stage{stage}"):
            key, stride = f"stage{stage}.{b}", 1 if b else 2
            if b:
                left, right = x.chunk(2, dim=1)
            else:
                left = layer(f"{key}.branch1", 0, x, 2)
                left, right = functional.relu_(layer(f"{key}.branch1", 2, left)), x
            right = functional.relu_(layer(f"{key}.branch2", 0, right))
            right = layer(f"{key}.branch2", 3, right, stride)
            right = functional.relu_(layer(f"{key}.branch2", 5, right))
            # Shuffling two channel groups makes the channels of the halves alternate.
            x = torch.stack((left, right), dim=2).flatten(1, 2)
    return functional.relu_(layer("conv5", 0, x))


def _deit(net: _Layers, x: Tensor) -> Tensor:
    patch = net["patch_embed.proj.weight"].shape[-1]
    grid = [pixels // patch for pixels in x.shape[2:]]
    x = net.conv("patch_embed.proj", x, patch, 0).flatten(2).transpose(1, 2)
    has_token = "cls_token" in net
    if has_token:
        x = _prepend(net["cls_token"], x)
    x = _vit_blocks(net, x + net["pos_embed"])
    x = net.layer_norm("norm", x[:, 0] if has_token else x)
    if "pre_logits.fc.weight" in net:
        x = net.linear("pre_logits.fc", x).tanh()
    return x if has_token else _as_map(x, grid)


def _dinov2(net: _Layers, x: Tensor) -> Tensor:
    patch = net["patch_embed.proj.weight"].shape[-1]
    grid = [pixels // patch for pixels in x.shape[2:]]
    made_for = [pixels // patch for pixels in net.settings["image_size"]]
    x = net.conv("patch_embed.proj", x, patch, 0).flatten(2).transpose(1, 2)
    # Without registers the class token has a position too, the first one.
    positions = net["pos_embed"][:, -made_for[0] * made_for[1] :]
    if made_for != grid:
        resized = functional.interpolate(
            _as_map(positions, made_for), tuple(grid), mode="bicubic", antialias=True
        )
        positions = resized.flatten(2).transpose(1, 2)
    x = x + positions
    if "reg_token" in net:
        x = _prepend(net["cls_token"], _prepend(net["reg_token"], x))
    else:
        x = _prepend(net["cls_token"] + net["pos_embed"][:, :1], x)
    x = net.layer_norm("norm", _vit_blocks(net, x))
    if net.settings["head"] == "linear":
        return x[:, 0]
    return _as_map(x[:, -grid[0] * grid[1] :], grid)


def _vit_blocks(net: _Layers, x: Tensor) -> Tensor:
    """Applies blocks of attention and MLP to `[batch, tokens, channels]`."""
    for b in net.indices("blocks"):
        key = f"blocks.{b}"
        qkv = net.linear(f"{key}.attn.qkv", net.layer_norm(f"{key}.norm1", x))
        query, keys, value = qkv.chunk(3, dim=2)
        y = net.linear(
            f"{key}.attn.proj", net.attention(query, keys, value, net.settings["num_heads"])
        )
        x = x + y * net.state.get(f"{key}.ls1.gamma", 1)
        y = net.mlp(f"{key}.mlp", net.layer_norm(f"{key}.norm2", x))
        x = x + y * net.state.get(f"{key}.ls2.gamma", 1)
    return x


def _pvt(net: _Layers, x: Tensor) -> Tensor:
    num_heads, reductions = net.settings["num_heads"], net.settings["reductions"]
    for s, reduction in enumerate(reductions, start=1):
        patch = net[f"patch_embed{s}.proj.weight"].shape[-1]
        x = net.conv(f"patch_embed{s}.proj", x, patch, 0)
        grid = x.shape[2:]
        x = net.layer_norm(f"patch_embed{s}.norm", x.flatten(2).transpose(1, 2), _PVT_EPSILON)
        has_token = s == 4 and "cls_token" in net
        positions = net[f"pos_embed{s}"]
        positions_grid = [pixels // 4 // 2 ** (s - 1) for pixels in net.settings["image_size"]]
        if positions_grid != list(grid):
            resized = _as_map(positions[:, 1:] if has_token else positions, positions_grid)
            resized = functional.interpolate(resized, tuple(grid), mode="bilinear")
            resized = resized.flatten(2).transpose(1, 2)
            positions = torch.cat((positions[:, :1], resized), 1) if has_token else resized
        x = (_prepend(net["cls_token"], x) if has_token else x) + positions
        for b in net.indices(f"block{s}"):
            key = f"block{s}.{b}"
            y = reduced = net.layer_norm(f"{key}.norm1", x)
            if reduction > 1:
                reduced = net.conv(f"{key}.attn.sr", _as_map(y, grid), reduction, 0)
                reduced = reduced.flatten(2).transpose(1, 2)
                reduced = net.layer_norm(f"{key}.attn.norm", reduced, _PVT_EPSILON)
            keys, value = net.linear(f"{key}.attn.kv", reduced).chunk(2, dim=2)
            y = net.attention(net.linear(f"{key}.attn.q", y), keys, value, num_heads[s - 1])
            x = x + net.linear(f"{key}.attn.proj", y)
            x = x + net.mlp(f"{key}.mlp", net.layer_norm(f"{key}.norm2", x))
        if s < 4:
            x = _as_map(x, grid)
    x = net.layer_norm("norm", x[:, 0] if has_token else x)
    return x if has_token else _as_map(x, grid)


def _mlp(net: _Layers, x: Tensor) -> Tensor:
    def norm(key: str, x: Tensor) -> Tensor:
        if f"{key}.alpha" in net:  # ResMLP
            return torch.addcmul(net[f"{key}.beta"], net[f"{key}.alpha"], x)
        return net.layer_norm(key, x)

    def mlp(key: str, x: Tensor) -> Tensor:
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


def _head(net: _Layers, x: Tensor) -> Tensor:
    """Computes logits from the last map `[batch, channels, height, width]` or a class token."""
    if net.settings["head"] == "linear":
        key = next(key for key in ("head.2", "classifier.1", "head") if f"{key}.weight" in net)
        return net.linear(key, x.mean((2, 3)) if x.ndim == 4 else x)
    key = "classifier" if "classifier.value.weight" in net else "head"
    head_num = net.settings["head_num"]
    groups = head_num if net.settings["head_split"] else 1
    # The query sees the first channels and the value the last, or both see all of them.
    channels = net[f"{key}.value.weight"].shape[1] * groups
    value = net.conv(f"{key}.value", x[:, -channels:]).flatten(2)
    if f"{key}.query.weight" in net:
        channels = net[f"{key}.query.weight"].shape[1] * groups
        attention = net.conv(f"{key}.query", x[:, :channels]).flatten(2).softmax(-1)
        blocks = (attention * value).sum(-1)
    else:
        blocks = value.mean(-1)
    blocks = blocks.unflatten(1, (head_num, -1))
    merge = net.settings["merge"]
    if merge == "max":
        return blocks.amax(1)
    return blocks.sum(1) if merge == "sum" else blocks.mean(1)


def _prepend(tokens: Tensor, x: Tensor) -> Tensor:
    """Puts tokens `[1, any, channels]` before the tokens of every image."""
    return torch.cat((tokens.expand(len(x), -1, -1), x), 1)


def _as_map(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """Reshapes `[batch, tokens, channels]` to `[batch, channels, *grid]`."""
    return tokens.transpose(1, 2).unflatten(2, tuple(grid))
