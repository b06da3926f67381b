"""A model as two pure functions: the one boundary between Flax modules and everything else.

Beyond this file, parameters and statistics are nested dicts of arrays.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from noah_jax.errors import InputError
from noah_jax.heads.evidence import Contributions
from noah_jax.heads.registry import heads_that_draw
from noah_jax.models.backbone import Backbone
from noah_jax.models.family import Architecture
from noah_jax.models.images import check_images, check_shape, normalise
from noah_jax.models.start import Start
from noah_jax.nn.dropout import Key
from noah_jax.nn.mesh_axes import on_auto_axes, spec_of
from noah_jax.nn.modules import Tree, split_module, state_to_tree, tree_to_state

if TYPE_CHECKING:
    from noah_jax.data.preprocessing import Preprocessing

# On CPUs, XLA delegates matrix products to YNNPACK, which makes evaluation 1.05 to 1.9 times
# slower at batch 8. Only a compiler option turns it off.
_ON_CPU = {"xla_cpu_experimental_ynn_fusion_type": ""}


class Model:
    """A backbone with its head. Its weights live outside, in nested dicts.

    `model.init(key) -> params, stats` and
    `model.apply(params, stats, images, train=..., key=...) -> logits, stats` are pure
    functions that can be jitted, differentiated and sharded. `noah_jax.create_model` makes one.

    Attributes:
      name: The registered name.
      arguments: Every argument of `create_model` that made the model, defaults included.
      num_classes: Number of classes.
      image_size: `(height, width)` of the images the model is made for, in pixels.
      architecture: The published settings, such as the recipe's weight decay.
      mean: Per-channel mean that normalises the input, for pixels in 0..1: the architecture's, or
        that of the weights where `noah_jax.load_model` loaded some.
      std: Per-channel standard deviation that normalises the input, for pixels in 0..1, likewise.
      class_names: The classes in the order of the logits, where `noah_jax.load_model` found them.
      preprocessing: What the weights expect to be done to images, where `noah_jax.load_model`
        loaded some; `preprocessing.transform()` resizes and crops one.
      start: The weights at which `init` starts; `None` draws all of them.
    """

    class_names: tuple[str, ...] | None = None
    preprocessing: "Preprocessing | None" = None
    start: Start | None = None

    def __init__(
        self,
        build: Callable[[nnx.Rngs], Backbone],
        *,
        name: str,
        arguments: dict[str, Any],
        num_classes: int,
        image_size: tuple[int, int],
        architecture: Architecture,
    ):
        self._build = build
        self.name = name
        self.arguments = arguments
        self.num_classes = num_classes
        self.image_size = image_size
        self.architecture = architecture
        self.mean: tuple[float, ...] = architecture.mean
        self.std: tuple[float, ...] = architecture.std
        abstract = nnx.eval_shape(lambda: build(_rngs(jax.random.key(0))))
        self._graphdef, *self._abstract = split_module(abstract)

    def __repr__(self) -> str:
        height, width = self.image_size
        return (
            f"<Model {self.name}: {self.num_params:,} parameters, {self.num_classes} classes,"
            f" images of {height}x{width} pixels>"
        )

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Draws fresh weights, or starts at those that the model was created with.

        Args:
          key: Random key; weights that are not fresh do not depend on it.

        Returns:
          float32 parameters and BatchNorm statistics, each nested dicts of arrays. The statistics
          are `{}` for models without BatchNorm.
        """
        return (
            self._draw(key)
            if self.start is None
            else self.start.complete(self._draw, self.abstract(), key)
        )

    def _draw(self, key: jax.Array) -> tuple[Tree, Tree]:
        _, params, stats = split_module(self._build(_rngs(key)))
        return state_to_tree(params), state_to_tree(stats)

    def abstract(self) -> tuple[Tree, Tree]:
        """Parameters and statistics as `jax.ShapeDtypeStruct`s, without computing them."""
        params, stats = self._abstract
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
            (state_to_tree(params), state_to_tree(stats)),
        )

    @property
    def num_params(self) -> int:
        """Number of parameters; statistics do not count."""
        return sum(x.size for x in jax.tree.leaves(self.abstract()[0]))

    @property
    def position_grids(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of every learnt position embedding, by its path in the parameters."""
        return getattr(self._abstract_module(), "position_grids", {})

    def evaluation_options(self) -> dict[str, str] | None:
        """Returns the `compiler_options` of `jax.jit` with which this platform evaluates fastest.

        `predict` has them already. Without them the numbers are the same, but CPUs are slower.
        """
        if jax.default_backend() == "cpu" and _compiles_with_options():
            return dict(_ON_CPU)
        return None

    def apply(
        self,
        params: Tree,
        stats: Tree,
        images: jax.Array,
        *,
        train: bool,
        key: Key | None = None,
    ) -> tuple[jax.Array, Tree]:
        """Computes the logits and the new statistics.

        Args:
          params: The parameters.
          stats: BatchNorm's running statistics; `{}` for models without BatchNorm.
          images: Normalised images, floats `[batch, height, width, 3]`; `predict` and `logits`
            normalise uint8 pixels.
          train: Whether to train: batch statistics, dropout, stochastic depth.
          key: Random key of dropout and stochastic depth; needed to train with them. A
            `noah_jax.nn.dropout.MicroBatchKey` gives a micro-batch the masks of the whole batch.

        Returns:
          float32 logits `[batch, num_classes]` (the last feature map if the model was created
          with `features_only`), and the statistics (unchanged unless training).

        Raises:
          InputError: If the images have another shape or dtype, or the weights belong to another
            model.
        """

        def compute(
            images: jax.Array, params: Tree, stats: Tree, key: Key | None
        ) -> tuple[jax.Array, Tree]:
            module = self._merge(params, stats)
            logits = module(images, train=train, key=key)
            return logits, state_to_tree(nnx.state(module, nnx.BatchStat)) if train else {}

        def out_specs(images: jax.P) -> tuple[jax.P, Tree]:
            return images, jax.tree.map(spec_of, stats if train else {})

        logits, new_stats = on_auto_axes(
            compute, check_images(images), params, stats, key, out_specs=out_specs
        )
        return logits, new_stats if train else stats

    def predict(
        self,
        params: Tree,
        stats: Tree,
        images: jax.Array | np.ndarray,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> jax.Array:
        """Computes the logits of a batch of images in evaluation mode, compiled.

        The first call for a shape compiles; later calls of the same model reuse the program.
        Inside a function that is itself jitted, call `logits` instead.

        Args:
          params: The parameters.
          stats: BatchNorm's running statistics; `{}` for models without BatchNorm.
          images: uint8 RGB pixels `[batch, height, width, 3]`, which are normalised here, or
            floats of the same shape that are normalised already.
          mean: Mean of each channel of uint8 images, for pixels in 0..1; by default the model's
            own `mean`. It does not apply to floats.
          std: Standard deviation of each channel, likewise.

        Returns:
          float32 logits `[batch, num_classes]`.

        Raises:
          InputError: If the images have another shape or dtype, or the weights belong to another
            model.
        """
        mean = None if mean is None else tuple(mean)
        std = None if std is None else tuple(std)
        return self.predict_step(params, stats, images, mean=mean, std=std)

    @functools.cached_property
    def predict_step(self) -> Any:
        """The jitted function of `predict`, for callers that lower or time it themselves.

        Its arguments are those of `predict`, with `mean` and `std` as tuples or `None`.
        """
        return jax.jit(
            self.logits,
            static_argnames=("mean", "std"),
            compiler_options=self.evaluation_options(),
        )

    def logits(
        self,
        params: Tree,
        stats: Tree,
        images: jax.Array,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> jax.Array:
        """Computes what `predict` computes, without `jit`, as a part of larger jitted functions."""
        return self.apply(params, stats, self._normalised(images, mean, std), train=False)[0]

    def features(self, params: Tree, stats: Tree, images: jax.Array) -> jax.Array:
        """Computes the last feature map in evaluation mode, `[batch, *spatial, channels]`."""

        def compute(images: jax.Array, params: Tree, stats: Tree) -> jax.Array:
            return self._merge(params, stats).features(images, train=False)

        return on_auto_axes(compute, check_images(images), params, stats)

    def encode(
        self,
        params: Tree,
        stats: Tree,
        images: jax.Array,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Computes what heads can read, in evaluation mode.

        Args:
          params: The parameters.
          stats: BatchNorm's running statistics.
          images: uint8 pixels or normalised floats, see `predict`.
          mean: See `predict`.
          std: See `predict`.

        Returns:
          The last feature map `[batch, *spatial, channels]`, and the class token
          `[batch, channels]`, or `None` if the backbone has none.
        """

        def compute(
            images: jax.Array, params: Tree, stats: Tree
        ) -> tuple[jax.Array, jax.Array | None]:
            module = self._merge(params, stats)
            if hasattr(module, "encode"):
                return module.encode(images, train=False)
            return module.features(images, train=False), None

        images = check_images(self._normalised(images, mean, std))
        return on_auto_axes(compute, images, params, stats)

    def init_head(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Draws fresh weights as `init` does, and returns those of the head.

        Under `jax.jit` the backbone's weights are not computed.
        """
        params, stats = self.init(key)
        return params["head"], stats.get("head", {})

    def apply_head(
        self,
        params: Tree,
        stats: Tree,
        features: jax.Array,
        *,
        train: bool,
        key: Key | None = None,
    ) -> tuple[jax.Array, Tree]:
        """Computes the logits of features by the head alone, and the head's new statistics.

        Args:
          params: The head's parameters, `params["head"]` of the model's.
          stats: The head's statistics; `{}` for a head without any.
          features: What the head reads, see `encode`: the map, or the class token.
          train: See `apply`.
          key: See `apply`.

        Returns:
          float32 logits `[batch, num_classes]`, and the statistics (unchanged unless training).
        """
        graphdef, abstract_params, abstract_stats = split_module(self._abstract_module().head)
        head = nnx.merge(
            graphdef,
            tree_to_state(abstract_params, params, "the head's params"),
            tree_to_state(abstract_stats, stats, "the head's stats"),
        )
        logits = head(features, train=train, key=key)
        return logits, state_to_tree(nnx.state(head, nnx.BatchStat)) if train else stats

    def attention(
        self, params: Tree, stats: Tree, images: jax.Array, classes: jax.Array
    ) -> jax.Array:
        """Computes where the head looks for chosen classes, in evaluation mode.

        Args:
          params: The parameters.
          stats: BatchNorm's running statistics.
          images: Normalised images, `[batch, height, width, 3]`.
          classes: Class indices, `[m]` or `[batch, m]`.

        Returns:
          float32 `[batch, blocks, m, *spatial]`, which sums to one over the spatial dimensions. The
          blocks are NOAH's, or the attention heads of another head.

        Raises:
          InputError: If the head has no attention, or a class does not exist.
        """
        head, features = self._head_that_draws("attention", params, stats, images)
        return head.attention(features, classes)

    def contributions(
        self, params: Tree, stats: Tree, images: jax.Array, classes: jax.Array
    ) -> Contributions:
        """Computes what every position of the last map contributes to the logits of classes.

        It is no approximation: summed over blocks and positions, and with the bias of all blocks,
        the contributions are the logits.

        Args:
          params: The parameters.
          stats: BatchNorm's running statistics.
          images: Normalised images, `[batch, height, width, 3]`.
          classes: Class indices, `[m]` or `[batch, m]`.

        Returns:
          `(attention, contributions, bias)`, a named tuple of float32 arrays. Attention is
          where the head looks, `[batch, blocks, m, *spatial]`, and sums to one over the spatial
          dimensions. Contributions are what each position adds (in NOAH, the attention times the
          value there), of the same shape. Bias is what belongs to no position,
          `[batch, blocks, m]`.

        Raises:
          InputError: If the logits of the head are no sum over positions, or a class does not
            exist.
        """
        head, features = self._head_that_draws("contributions", params, stats, images)
        return head.contributions(features, classes)

    def portable(self) -> "Model":
        """The same model, which every platform computes by the same plain operations."""
        module = self._abstract_module()
        for _, part in nnx.iter_modules(cast(nnx.Module, module)):
            if hasattr(part, "implementation"):  # the NOAH head, and attention
                part.implementation = "xla"
        other = copy.copy(self)
        other.__dict__.pop("predict_step", None)  # it would call this model
        other._graphdef = split_module(module)[0]
        return other

    def _head_that_draws(
        self, what: str, params: Tree, stats: Tree, images: jax.Array
    ) -> tuple[Any, jax.Array]:
        module = self._merge(params, stats)
        if not hasattr(module.head, what):
            kind = f"a {type(module.head).__name__}" if module.head is not None else "no"
            raise InputError(
                f"{self.name} has {kind} head, which has no {what} over positions; heads that have:"
                f" {heads_that_draw(what)}"
            )
        return module.head, self.features(params, stats, images)

    def _normalised(
        self, images: jax.Array, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> jax.Array:
        """Normalises uint8 pixels, by the model's own mean and std unless others are given."""
        if images.dtype == jnp.uint8:
            mean = self.mean if mean is None else mean
            std = self.std if std is None else std
            return normalise(check_shape(images), mean, std)
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise InputError(
                f"images must be uint8 pixels or normalised floats, got {images.dtype}"
            )
        return images

    def _merge(self, params: Tree, stats: Tree) -> Backbone:
        abstract_params, abstract_stats = self._abstract
        return nnx.merge(
            self._graphdef,
            tree_to_state(abstract_params, params, "params"),
            tree_to_state(abstract_stats, stats, "stats"),
        )

    def _abstract_module(self) -> Backbone:
        return nnx.merge(self._graphdef, *self._abstract)


class _CountingRngs:
    """The part of `nnx.Rngs(params=key)` that layers use, with the same keys.

    `nnx.Rngs` counts in an array. Under tracing every draw updates a traced variable, at a cost
    that grows with all that was traced before: a large PVT took minutes to trace.
    """

    def __init__(self, key: jax.Array):
        self._key = key
        self._count = 0

    def params(self) -> jax.Array:
        self._count += 1
        return jax.random.fold_in(self._key, self._count - 1)


def _rngs(key: jax.Array) -> nnx.Rngs:
    return cast(nnx.Rngs, _CountingRngs(key))


@functools.cache
def _compiles_with_options() -> bool:
    """Returns whether this version of XLA knows `_ON_CPU`, which is experimental."""
    try:
        jax.jit(lambda: 0, compiler_options=_ON_CPU).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
