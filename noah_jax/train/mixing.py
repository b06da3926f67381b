"""Erases, mixes and cuts images on the device, inside the step, as timm does.

The functions that draw stand apart from those that apply, so that tests can compare fixed draws.
What is drawn depends on the key and the batch alone, never on the devices that share the batch.
Each mix group of images has its own draw, as each process of the original had. If a device holds
whole mix groups, no image leaves it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from noah_jax.errors import InputError

# Random erasing: the rectangle's fraction of the image, its aspect, and the tries to fit it.
_AREA = (0.02, 1 / 3)
_ASPECT = (0.3, 1 / 0.3)
_TRIES = 10

# Takes (key, images, labels), returns (images, targets).
Augment = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array | None]]


class Mixing(NamedTuple):
    """How each mix group of images mixes with its own reverse.

    Attributes:
      weight: float32 `[mix_groups]`, the fraction that an image keeps of its target. With mixup
        it also keeps this fraction of each of its pixels.
      box: int32 `[mix_groups, 4]`, `top, bottom, left, right` of the pixels that come from the
        partner alone; empty for mixup.
      cut: bool `[mix_groups]`, whether this is cutmix.
    """

    weight: jax.Array
    box: jax.Array
    cut: jax.Array


def smooth(labels: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """Makes targets: `smoothing / num_classes` for every class and the rest for the image's own.

    Args:
      labels: int32 `[batch]`, or `[batch, num_classes]` with a 1 for each class of an image, which
        are not smoothed.
      num_classes: Number of classes.
      smoothing: The fraction of the target that is spread over all classes.

    Returns:
      float32 `[batch, num_classes]`; with single labels each row sums to one.
    """
    if labels.ndim == 2:
        return (labels == 1).astype(jnp.float32)
    one_hot = jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return optax.smooth_labels(one_hot, smoothing)


def draw_erasing(key: jax.Array, batch: int, size: tuple[int, int], prob: float) -> jax.Array:
    """Draws the rectangle to erase from each image (Zhong et al., 2017).

    The area is uniform, the aspect log-uniform. The first of ten tries that is smaller than the
    image in both directions counts, and its position is uniform. If none is, nothing is erased.

    Args:
      key: Random key.
      batch: Number of images.
      size: `(height, width)` of the images in pixels.
      prob: Probability of erasing, for each image.

    Returns:
      int32 `[batch, 4]`: `top, bottom, left, right`, exclusive ends; empty for nothing.
    """
    height, width = size
    # One draw for everything, because each draw takes a CPU's compiler a second.
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
    """Replaces a rectangle of each image.

    Args:
      images: Normalised images `[batch, height, width, 3]`.
      boxes: The rectangles, see `draw_erasing`.
      noise: What stands in the rectangles, of the shape of `images` or broadcast to it.
    """
    return jnp.where(_inside(boxes, _size(images))[..., None], noise, images)


def draw_cutout(key: jax.Array, batch: int, size: tuple[int, int], side: float) -> jax.Array:
    """Draws the square to cut out of each image (DeVries & Taylor, 2017).

    Its centre is uniform over the image, which clips it.

    Args:
      key: Random key.
      batch: Number of images.
      size: `(height, width)` of the images in pixels.
      side: Its sides over those of the image.

    Returns:
      int32 `[batch, 4]`: `top, bottom, left, right`, exclusive ends.
    """
    row, column = jax.random.uniform(key, (2, batch), jnp.float32)
    ends = []
    for length, centre in ((size[0], _below(size[0], row)), (size[1], _below(size[1], column))):
        half = round(side * length) // 2
        ends += [jnp.clip(centre - half, 0, length), jnp.clip(centre + half, 0, length)]
    return jnp.stack(ends, axis=1)


def draw_mixing(
    key: jax.Array,
    mix_groups: int,
    size: tuple[int, int],
    *,
    mixup: float,
    cutmix: float,
    prob: float = 1.0,
    switch_prob: float = 0.5,
) -> Mixing:
    """Draws how each mix group mixes: mixup (Zhang et al., 2017) or cutmix (Yun et al., 2019).

    Args:
      key: Random key.
      mix_groups: Number of mix groups.
      size: `(height, width)` of the images in pixels.
      mixup: Alpha of the Beta distribution of mixup's weight; 0 for no mixup.
      cutmix: Alpha of the Beta distribution of cutmix's weight; 0 for no cutmix.
      prob: Probability of mixing at all.
      switch_prob: Probability of cutmix instead of mixup, if both are on.
    """
    choice_key, weight_key = jax.random.split(key)
    chance, kind, row, column = jax.random.uniform(choice_key, (4, mix_groups), jnp.float32)
    mixed = chance < prob
    cut = mixed & (kind < (switch_prob if mixup and cutmix else float(bool(cutmix))))
    # A Beta(alpha, alpha) variable is one of two equal gamma variables over their sum.
    alpha = jnp.where(cut, cutmix or 1.0, mixup or 1.0).astype(jnp.float32)
    gammas = jax.random.loggamma(weight_key, alpha, (2, mix_groups), jnp.float32)
    drawn = jax.nn.sigmoid(gammas[0] - gammas[1])
    box, cutmix_weight = cutmix_box(drawn, _below(size[0], row), _below(size[1], column), size)
    weight = jnp.where(cut, cutmix_weight, jnp.where(mixed, drawn, 1))
    return Mixing(weight, jnp.where(cut[:, None], box, 0), cut)


def cutmix_box(
    weight: jax.Array, row: jax.Array, column: jax.Array, size: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """Clips cutmix's rectangle to the image and returns the weight that its area really leaves.

    Args:
      weight: The fraction of the image to keep, as drawn, `[mix_groups]`.
      row: The row of the rectangle's centre, int32 `[mix_groups]`.
      column: The column of the rectangle's centre, int32 `[mix_groups]`.
      size: `(height, width)` of the images in pixels.

    Returns:
      `top, bottom, left, right`, int32 `[mix_groups, 4]`, and the weight, float32 `[mix_groups]`.
    """
    ratio = jnp.sqrt(1 - weight)

    def ends(centre: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
        half = (length * ratio).astype(jnp.int32) // 2
        return jnp.clip(centre - half, 0, length), jnp.clip(centre + half, 0, length)

    (top, bottom), (left, right) = ends(row, size[0]), ends(column, size[1])
    area = ((bottom - top) * (right - left)).astype(jnp.float32)
    return jnp.stack([top, bottom, left, right], axis=-1), 1 - area / (size[0] * size[1])


def mix_images(images: jax.Array, mixing: Mixing) -> jax.Array:
    """Mixes each image with the one at the mirrored position in its mix group.

    Args:
      images: Normalised images `[batch, height, width, 3]`.
      mixing: What was drawn; its number of mix groups divides the batch.
    """
    own = _in_mix_groups(images, mixing)
    partner = own[:, ::-1]
    weight = jnp.where(mixing.cut, 1, mixing.weight)[:, None, None, None, None]
    blend = own * weight + partner * (1 - weight)
    inside = _inside(mixing.box, _size(images))[:, None, :, :, None]
    return jnp.where(inside, partner, blend).reshape(images.shape)


def mix_targets(targets: jax.Array, mixing: Mixing) -> jax.Array:
    """Mixes the targets `[batch, num_classes]` as `mix_images` mixes their images."""
    own = _in_mix_groups(targets, mixing)
    weight = mixing.weight[:, None, None]
    return (own * weight + own[:, ::-1] * (1 - weight)).reshape(targets.shape)


def make_augment(
    section: Mapping[str, Any],
    *,
    num_classes: int,
    batch_size: int,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    replicate: Callable[[Mixing], Mixing] = lambda mixing: mixing,
) -> Augment:
    """Makes the function that augments normalised images and their labels, in the recipes' order.

    Args:
      section: See `noah_jax.config_sections.augmentation_section`.
      num_classes: Number of classes.
      batch_size: Images per step over all devices.
      size: `(height, width)` of the images in pixels.
      mean: Mean of the pixels in 0..1, by which the images are normalised.
      std: Their standard deviation, likewise.
      replicate: Puts what is drawn on every device. Without it XLA may split the draws as it
        splits the images, and then gather some of them.

    Returns:
      `f(key, images, labels) -> images, targets`. The targets are float32 `[batch, num_classes]`,
      or `None` if they are just the labels.

    Raises:
      InputError: If a value is out of its range; the message names the key.
    """
    for key in ("erase_prob", "cutout", "mix_prob", "mix_switch_prob", "smoothing"):
        if not 0 <= section[key] <= 1:
            raise InputError(f"{key} must be in 0..1, got {section[key]}")
    for key in ("mixup", "cutmix"):
        if not 0 <= section[key] < math.inf:
            raise InputError(
                f"{key} is the alpha of a Beta distribution, 0 or more (0: none), got"
                f" {section[key]}"
            )
    mixes = bool(section["mixup"] or section["cutmix"])
    mix_group = section["mix_group"]
    if mix_group is not None and not mixes:
        raise InputError(
            f"mix_group={mix_group} without mixing; set mixup or cutmix, or no mix_group"
        )
    mix_group = batch_size if mix_group is None else mix_group
    if mixes and (mix_group < 2 or mix_group % 2 or batch_size % mix_group):
        raise InputError(
            f"mix_group={mix_group} must be even, because images mix in pairs, and divide"
            f" batch_size={batch_size}"
        )

    def augment(
        key: jax.Array, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array | None]:
        box_key, noise_key, mix_key = jax.random.split(key, 3)
        if section["cutout"]:
            # A fourth key, so that the other draws are what they are without.
            square_key, colour_key = jax.random.split(jax.random.fold_in(key, 3))
            squares = draw_cutout(square_key, batch_size, size, section["cutout"])
            colours = jax.random.uniform(colour_key, (batch_size, 1, 1, 3), jnp.float32)
            normalised = (colours - jnp.array(mean)) / jnp.array(std)
            images = erase(images, squares, normalised.astype(images.dtype))
        if section["erase_prob"]:
            boxes = draw_erasing(box_key, batch_size, size, section["erase_prob"])
            noise = jax.random.normal(noise_key, images.shape, images.dtype)
            images = erase(images, boxes, noise)
        if not mixes and not section["smoothing"]:
            return images, None
        targets = smooth(labels, num_classes, section["smoothing"])
        if mixes:
            mixing = draw_mixing(
                mix_key,
                batch_size // mix_group,
                size,
                mixup=section["mixup"],
                cutmix=section["cutmix"],
                prob=section["mix_prob"],
                switch_prob=section["mix_switch_prob"],
            )
            mixing = replicate(mixing)
            images, targets = mix_images(images, mixing), mix_targets(targets, mixing)
        return images, targets

    return augment


def _below(limit: jax.Array | int, uniform: jax.Array) -> jax.Array:
    """Turns numbers in [0, 1) into whole numbers from 0 to below a limit, equally likely."""
    return (uniform * limit).astype(jnp.int32)


def _in_mix_groups(x: jax.Array, mixing: Mixing) -> jax.Array:
    """Reshapes `[batch, ...]` to `[mix_groups, images, ...]`."""
    return x.reshape(mixing.weight.shape[0], -1, *x.shape[1:])


def _size(images: jax.Array) -> tuple[int, int]:
    _, height, width, _ = images.shape
    return height, width


def _inside(boxes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Returns which pixels lie in each box, bool `[boxes, height, width]`."""
    top, bottom, left, right = (x[:, None] for x in boxes.T)
    rows, columns = jnp.arange(size[0]), jnp.arange(size[1])
    rows = (rows >= top) & (rows < bottom)
    columns = (columns >= left) & (columns < right)
    return rows[:, :, None] & columns[:, None, :]
