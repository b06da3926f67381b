"""Random erasing, mixup and cutmix: on the device, inside the step, as timm computes them.

Drawing stands apart from applying, so that fixed draws can be compared. What is drawn depends
on the key and the batch alone, never on the devices that share it: each group of images that
mixes has its own draw, as each process of the original had, and where a device holds whole
groups no image leaves it.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from noah_jax.errors import InputError

# Of random erasing: the rectangle's share of the image, its aspect, and tries to fit it.
_AREA = (0.02, 1 / 3)
_ASPECT = (0.3, 1 / 0.3)
_TRIES = 10

# (key, images, labels) -> images, targets
Augment = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array | None]]


class Mixing(NamedTuple):
    """How each group of images mixes with its own reverse.

    Attributes:
      weight: float32 `[groups]`, the share that an image keeps of its target and, outside
        `box`, of each of its pixels. 1 outside the box where `cut`.
      box: int32 `[groups, 4]`, `top, bottom, left, right` of the pixels that come from the
        partner alone; empty for mixup.
      cut: bool `[groups]`, whether this is cutmix.
    """

    weight: jax.Array
    box: jax.Array
    cut: jax.Array


def smooth(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """Targets: `smoothing / num_classes` for every class and the rest for the label's.

    Args:
      labels: int32 `[batch]`, or `[batch, num_classes]`, 1 for each class of an image.
      num_classes: number of classes.
      smoothing: share of the target that is spread over all classes.

    Returns:
      float32 `[batch, num_classes]`; of a single label each sums to one.
    """
    if labels.ndim == 2:
        return (labels == 1).astype(jnp.float32)
    one_hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return optax.smooth_labels(one_hot, smoothing)


def draw_erasing(key: jax.Array, batch: int, size: tuple[int, int], prob: float) -> jax.Array:
    """The rectangle to erase of each image (Zhong et al., 2017).

    Area uniform, aspect log-uniform; of ten tries the first that is smaller than the image in
    both directions counts, its place uniform. If none is, nothing is erased.

    Args:
      key: random key.
      batch: number of images.
      size: `(height, width)` of the images in pixels.
      prob: of erasing, for each image.

    Returns:
      int32 `[batch, 4]`: `top, bottom, left, right`, exclusive ends; empty for nothing.
    """
    height, width = size
    # One draw for everything: every further one takes a CPU's compiler a second.
    drawn = jax.random.uniform(key, (batch, 2 * _TRIES + 3), jnp.float32)
    areas, aspects = drawn[:, :_TRIES], drawn[:, _TRIES : 2 * _TRIES]
    chance, row, column = drawn[:, 2 * _TRIES :].T
    area = (_AREA[0] + (_AREA[1] - _AREA[0]) * areas) * (height * width)
    low, high = map(math.log, _ASPECT)
    aspect = jnp.exp(low + (high - low) * aspects)
    h = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    w = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (h < height) & (w < width)
    first = jnp.argmax(fits, axis=1)[:, None]
    chosen = fits.any(axis=1) & (chance < prob)
    h, w = (jnp.where(chosen, jnp.take_along_axis(x, first, axis=1)[:, 0], 0) for x in (h, w))
    top, left = _below(height - h + 1, row), _below(width - w + 1, column)
    return jnp.stack([top, top + h, left, left + w], axis=1)


def erase(images: jax.Array, boxes: jax.Array, noise: jax.Array) -> jax.Array:
    """Puts noise in place of a rectangle of each image.

    Args:
      images: normalised, `[batch, height, width, 3]`.
      boxes: see `draw_erasing`.
      noise: like `images`.
    """
    return jnp.where(_inside(boxes, images.shape[1:3])[..., None], noise, images)


def draw_mixing(
    key: jax.Array,
    groups: int,
    size: tuple[int, int],
    *,
    mixup: float,
    cutmix: float,
    prob: float = 1.0,
    switch_prob: float = 0.5,
) -> Mixing:
    """How each group mixes: mixup (Zhang et al., 2017) or cutmix (Yun et al., 2019).

    Args:
      key: random key.
      groups: number of groups.
      size: `(height, width)` of the images in pixels.
      mixup: alpha of the Beta distribution of mixup's weight; 0 for no mixup.
      cutmix: alpha of cutmix's; 0 for no cutmix.
      prob: of mixing at all.
      switch_prob: of cutmix rather than mixup, where both are on.
    """
    choice_key, weight_key = jax.random.split(key)
    chance, kind, row, column = jax.random.uniform(choice_key, (4, groups), jnp.float32)
    mixed = chance < prob
    cut = mixed & (kind < (switch_prob if mixup and cutmix else float(bool(cutmix))))
    # Beta(alpha, alpha) is one of two equal gamma variables over their sum.
    alpha = jnp.where(cut, cutmix or 1.0, mixup or 1.0).astype(jnp.float32)
    gammas = jax.random.loggamma(weight_key, alpha, (2, groups), jnp.float32)
    drawn = jax.nn.sigmoid(gammas[0] - gammas[1])
    box, kept = cutmix_box(drawn, _below(size[0], row), _below(size[1], column), size)
    weight = jnp.where(cut, kept, jnp.where(mixed, drawn, 1))
    return Mixing(weight, jnp.where(cut[:, None], box, 0), cut)


def cutmix_box(
    weight: jax.Array, row: jax.Array, column: jax.Array, size: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """Cutmix's rectangle, clipped to the image, and the weight that its area really leaves.

    Args:
      weight: drawn share of the image to keep, `[groups]`.
      row: of the rectangle's centre, int32 `[groups]`.
      column: likewise.
      size: `(height, width)` of the images in pixels.

    Returns:
      int32 `[groups, 4]`, `top, bottom, left, right`, and float32 `[groups]`.
    """
    ratio = jnp.sqrt(1 - weight)

    def ends(centre, length):
        half = (length * ratio).astype(jnp.int32) // 2
        return jnp.clip(centre - half, 0, length), jnp.clip(centre + half, 0, length)

    (top, bottom), (left, right) = ends(row, size[0]), ends(column, size[1])
    area = ((bottom - top) * (right - left)).astype(jnp.float32)
    return jnp.stack([top, bottom, left, right], axis=-1), 1 - area / (size[0] * size[1])


def mix_images(images: jax.Array, mixing: Mixing) -> jax.Array:
    """Each image mixed with the one at the mirrored place of its group.

    Args:
      images: normalised, `[batch, height, width, 3]`.
      mixing: its number of groups divides the batch.
    """
    own = _grouped(images, mixing)
    partner = own[:, ::-1]
    weight = jnp.where(mixing.cut, 1, mixing.weight)[:, None, None, None, None]
    blend = own * weight + partner * (1 - weight)
    inside = _inside(mixing.box, images.shape[1:3])[:, None, :, :, None]
    return jnp.where(inside, partner, blend).reshape(images.shape)


def mix_targets(targets: jax.Array, mixing: Mixing) -> jax.Array:
    """The targets `[batch, num_classes]` mixed likewise."""
    own = _grouped(targets, mixing)
    weight = mixing.weight[:, None, None]
    return (own * weight + own[:, ::-1] * (1 - weight)).reshape(targets.shape)


def make_augment(
    config: Mapping[str, Any],
    *,
    num_classes: int,
    batch_size: int,
    size: tuple[int, int],
    replicate: Callable[[Mixing], Mixing] = lambda mixing: mixing,
) -> Augment:
    """What a configuration does to normalised images and their labels, in the recipes' order.

    Args:
      config: its `smoothing`, `erase_prob`, `mixup`, `cutmix`, `mix_prob`, `mix_switch_prob`
        and `mix_group`.
      num_classes: number of classes.
      batch_size: images per step over all devices.
      size: `(height, width)` of the images in pixels.
      replicate: puts what is drawn on every device. Without it XLA may split the draws as it
        splits the images, and then gather a part of them.

    Returns:
      `f(key, images, labels) -> images, targets`; the targets are `None` where the labels
      themselves are, else float32 `[batch, num_classes]`.

    Raises:
      ValueError: on a value out of its range; names the key.
    """
    for key in ("erase_prob", "mix_prob", "mix_switch_prob", "smoothing"):
        if not 0 <= config[key] <= 1:
            raise InputError(f"{key} must be in 0..1, got {config[key]}")
    for key in ("mixup", "cutmix"):
        if not 0 <= config[key] < math.inf:
            raise InputError(
                f"{key} is the alpha of a Beta distribution, 0 or more (0: none), got {config[key]}"
            )
    mixes = bool(config["mixup"] or config["cutmix"])
    group = config["mix_group"]
    if group is not None and not mixes:
        raise InputError(f"mix_group={group} without mixing; set mixup or cutmix, or no mix_group")
    group = batch_size if group is None else group
    if mixes and (group < 2 or group % 2 or batch_size % group):
        raise InputError(
            f"mix_group={group} must be even, because images mix in pairs, and divide"
            f" batch_size={batch_size}"
        )

    def augment(key, images, labels):
        box_key, noise_key, mix_key = jax.random.split(key, 3)
        if config["erase_prob"]:
            boxes = draw_erasing(box_key, batch_size, size, config["erase_prob"])
            noise = jax.random.normal(noise_key, images.shape, images.dtype)
            images = erase(images, boxes, noise)
        targets = None
        if mixes or config["smoothing"]:
            targets = smooth(labels, num_classes, config["smoothing"])
        if mixes:
            mixing = draw_mixing(
                mix_key,
                batch_size // group,
                size,
                mixup=config["mixup"],
                cutmix=config["cutmix"],
                prob=config["mix_prob"],
                switch_prob=config["mix_switch_prob"],
            )
            mixing = replicate(mixing)
            images, targets = mix_images(images, mixing), mix_targets(targets, mixing)
        return images, targets

    return augment


def _below(limit: jax.Array | int, uniform: jax.Array) -> jax.Array:
    """Whole numbers from 0 to below a limit, equally likely, from numbers in [0, 1)."""
    return (uniform * limit).astype(jnp.int32)


def _grouped(x: jax.Array, mixing: Mixing) -> jax.Array:
    return x.reshape(mixing.weight.shape[0], -1, *x.shape[1:])


def _inside(boxes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Which pixels lie in each box, bool `[boxes, height, width]`."""
    top, bottom, left, right = (x[:, None] for x in boxes.T)
    rows, columns = jnp.arange(size[0]), jnp.arange(size[1])
    rows = (rows >= top) & (rows < bottom)
    columns = (columns >= left) & (columns < right)
    return rows[:, :, None] & columns[:, None, :]
