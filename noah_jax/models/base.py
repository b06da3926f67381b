"""The one boundary between Flax modules and the rest: a model as two pure functions.

Beyond this file parameters and statistics are nested dicts of arrays.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from noah_jax.errors import InputError
from noah_jax.heads.noah.poca import Contributions
from noah_jax.models.family import Architecture
from noah_jax.models.images import check_images, normalise
from noah_jax.nn.dropout import Key

Tree = dict[str, Any]

# XLA hands matrix products on CPUs to YNNPACK, with which evaluation takes 1.05 to 1.9 times as
# long as with XLA's own (batch 8); nothing in a layer keeps them from it.
_ON_CPU = {"xla_cpu_experimental_ynn_fusion_type": ""}


class Model:
    """An architecture; its weights live outside, in plain nested dicts.

    `model.init(key) -> params, stats` and
    `model.apply(params, stats, images, train=..., key=...) -> logits, stats` are pure and
    can be jitted, differentiated and sharded.

    Attributes:
      name: the registered name.
      arguments: every argument of `create_model` that made it, defaults included.
      num_classes: number of classes.
      image_size: `(height, width)` the model is made for, in pixels.
      architecture: what the registry knows of it, such as the recipe's weight decay.
      mean: the architecture's per-channel mean of the images in 0..1, which the input is
        normalised by.
      std: per-channel standard deviation likewise.
    """

    def __init__(
        self,
        build: Callable[[nnx.Rngs], nnx.Module],
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
        self.mean = architecture.mean
        self.std = architecture.std
        abstract = nnx.eval_shape(lambda: build(_Rngs(jax.random.key(0))))
        self._graphdef, params, stats = nnx.split(abstract, nnx.Param, nnx.BatchStat)
        self._abstract = (params, stats)

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """Fresh float32 parameters and statistics, drawn from `key`."""
        _, params, stats = nnx.split(self._build(_Rngs(key)), nnx.Param, nnx.BatchStat)
        return _to_dict(params), _to_dict(stats)

    def abstract(self) -> tuple[Tree, Tree]:
        """Parameters and statistics as `jax.ShapeDtypeStruct`s, without computing them."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
            (_to_dict(self._abstract[0]), _to_dict(self._abstract[1])),
        )

    @property
    def num_params(self) -> int:
        """How many parameters there are; statistics do not count."""
        return sum(x.size for x in jax.tree.leaves(self.abstract()[0]))

    @property
    def position_grids(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of every learnt position embedding, by its path in the parameters."""
        module = nnx.merge(self._graphdef, *self._abstract)
        return getattr(module, "position_grids", {})

    def evaluation_options(self) -> dict[str, str] | None:
        """What `jax.jit(..., compiler_options=)` of an evaluation should get on this platform.

        The numbers are the same without it, evaluation on CPUs is slower.
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
        """Logits and the new statistics.

        Args:
          params: the parameters.
          stats: BatchNorm's running statistics; `{}` for models without.
          images: normalised, `[batch, height, width, 3]`.
          train: whether to train: batch statistics, dropout, stochastic depth.
          key: random key of dropout and stochastic depth; needed to train with them. For a part
            of a batch a `noah_jax.nn.dropout.MicroBatchKey`, which gives the masks of the whole.

        Returns:
          float32 logits `[batch, num_classes]` (the feature map if the model is made for
          `features_only`), and the statistics (unchanged unless training).

        Raises:
          ValueError: on images of another rank or channel count.
        """
        module = self._merge(params, stats)
        logits = module(check_images(images), train=train, key=key)
        return logits, _to_dict(nnx.state(module, nnx.BatchStat)) if train else stats

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
          ValueError: If the images have another shape or dtype, or the weights belong to another
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
        if images.dtype == jnp.uint8:
            mean = self.mean if mean is None else mean
            std = self.std if std is None else std
            images = normalise(check_images(images), mean, std)
        elif not jnp.issubdtype(images.dtype, jnp.floating):
            raise InputError(
                f"images must be uint8 pixels or normalised floats, got {images.dtype}"
            )
        return self.apply(params, stats, images, train=False)[0]

    def features(self, params: Tree, stats: Tree, images: jax.Array) -> jax.Array:
        """The last feature map in evaluation mode, `[batch, *spatial, channels]`."""
        return self._merge(params, stats).features(check_images(images), train=False)

    def attention(
        self, params: Tree, stats: Tree, images: jax.Array, classes: jax.Array
    ) -> jax.Array:
        """Where the NOAH head looks for chosen classes, in evaluation mode.

        Args:
          params: the parameters.
          stats: the statistics.
          images: normalised, `[batch, height, width, 3]`.
          classes: class indices, `[m]` or `[batch, m]`.

        Returns:
          float32 `[batch, head_num, m, *spatial]`, sums to one over the spatial dimensions.

        Raises:
          ValueError: if the head has no attention, or on bad classes.
        """
        head, features = self._attentive_head(params, stats, images)
        return head.attention(features, classes)

    def contributions(
        self, params: Tree, stats: Tree, images: jax.Array, classes: jax.Array
    ) -> Contributions:
        """What every position of the last feature map contributes to the logits of chosen classes.

        Arguments and errors are those of `attention`; see `head.contributions`.
        """
        head, features = self._attentive_head(params, stats, images)
        return head.contributions(features, classes)

    def portable(self) -> "Model":
        """The same model, whose head every platform computes by the same plain operations."""
        module = nnx.merge(self._graphdef, *self._abstract)
        if hasattr(module.head, "implementation"):
            module.head.implementation = "xla"
        other = copy.copy(self)
        other.__dict__.pop("predict_step", None)  # it would call this model
        other._graphdef = nnx.split(module, nnx.Param, nnx.BatchStat)[0]
        return other

    def _attentive_head(
        self, params: Tree, stats: Tree, images: jax.Array
    ) -> tuple[nnx.Module, jax.Array]:
        module = self._merge(params, stats)
        if not hasattr(module.head, "attention"):
            what = f"a {type(module.head).__name__}" if module.head is not None else "no"
            raise InputError(
                f"{self.name} has {what} head, which has no attention;"
                " create the model with head='noah'"
            )
        return module.head, module.features(check_images(images), train=False)

    def _merge(self, params: Tree, stats: Tree) -> nnx.Module:
        abstract_params, abstract_stats = self._abstract
        return nnx.merge(
            self._graphdef,
            _from_dict(abstract_params, params, "params"),
            _from_dict(abstract_stats, stats, "stats"),
        )


class _Rngs:
    """What layers need of `nnx.Rngs(params=key)`, with the same keys.

    `nnx.Rngs` counts in an array: under tracing every draw updates a traced variable, whose
    cost grows with all that was traced before. A large PVT took minutes to trace.
    """

    def __init__(self, key: jax.Array):
        self._key = key
        self._count = 0

    def params(self) -> jax.Array:
        self._count += 1
        return jax.random.fold_in(self._key, self._count - 1)


@functools.cache
def _compiles_with_options() -> bool:
    """Whether this version of XLA knows `_ON_CPU`, which is experimental."""
    try:
        jax.jit(lambda: 0, compiler_options=_ON_CPU).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _to_dict(state: nnx.State) -> Tree:
    """An NNX state as nested dicts with string keys."""
    tree: Tree = {}
    for path, leaf in nnx.to_flat_state(state):
        node = tree
        for part in path[:-1]:
            node = node.setdefault(str(part), {})
        node[str(path[-1])] = leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
    return tree


def _from_dict(abstract: nnx.State, tree: Tree, what: str) -> nnx.State:
    """Nested dicts back into an NNX state; keys must be exactly those of `abstract`."""
    flat = {
        "/".join(str(k.key) for k in path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
    leaves = []
    for path, variable in nnx.to_flat_state(abstract):
        name = "/".join(map(str, path))
        if name not in flat:
            raise InputError(f"{what} lack {name!r}; they belong to another model")
        leaf = flat.pop(name)
        if jnp.shape(leaf) != variable.shape:
            raise InputError(
                f"{what} hold {name!r} of shape {jnp.shape(leaf)}, the model has {variable.shape}"
            )
        # NumPy arrays would be written to in place.
        leaf = jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf
        leaves.append((path, variable.replace(leaf)))
    if flat:
        raise InputError(f"{what} hold {sorted(flat)}, which the model does not have")
    return nnx.from_flat_state(leaves)
