"""Creates a model by its name."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx

from noah_jax.errors import InputError, near_matches
from noah_jax.heads.registry import check_head, complete_options
from noah_jax.heads.spec import HeadSpec
from noah_jax.models.backbone import Backbone, BackboneSettings
from noah_jax.models.base import Model
from noah_jax.models.family import Architecture, check_dimension
from noah_jax.models.registry import NOAH_PREFIX, get_architecture
from noah_jax.nn.arguments import check_count, check_flag, check_number
from noah_jax.nn.dtypes import check_compute_dtype

# The arguments that only the NOAH head takes.
NOAH_ARGUMENTS = ("head_num", "key_ratio", "head_split", "kv_split")


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    head: str | nnx.Module | None = None,
    head_num: int | None = None,
    key_ratio: float | None = None,
    head_split: bool = True,
    kv_split: bool = True,
    head_options: Mapping[str, Any] | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    head_drop_rate: float = 0.0,
    features_only: bool = False,
    batch_norm_group: int | None = None,
    remat: bool = False,
    dtype: Any = jnp.float32,
    **family_arguments: Any,
) -> Model:
    """Creates a model by its registered name.

    No weights are made yet: `Model.init` draws them, `noah_jax.load_model` reads them.

    >>> import jax
    >>> from noah_jax import create_model
    >>> model = create_model("noah_resnet18", num_classes=10, width=8, depths=(1, 1, 1, 1))
    >>> model
    <Model noah_resnet18: 79,032 parameters, 10 classes, images of 224x224 pixels>
    >>> params, stats = model.abstract()  # or model.init(jax.random.key(0))
    >>> params["head"]["query"]["kernel"].shape
    (4, 8, 10)
    >>> images = jax.ShapeDtypeStruct((2, 224, 224, 3), "float32")
    >>> jax.eval_shape(model.logits, params, stats, images).shape
    (2, 10)

    Args:
      name: A registered name, such as "noah_resnet50"; `list_models` lists them.
      num_classes: Number of classes; by default the published one.
      image_size: Image size in pixels, one number or `(height, width)`; by default the published
        one.
      head: Replaces the head that the name says: the name of another one, such as "linear" or
        "noah" (`noah_jax.heads.registry.HEADS` has them all), or a module called as
        `head(features, train=..., key=...)` on `[batch, *spatial, channels]`.
      head_num: NOAH's N; by default the published one. Other heads take none of these four.
      key_ratio: NOAH's r in (0, 1); by default the published one.
      head_split: Whether each NOAH block sees only its own channels, `1/head_num` of them.
      kv_split: Whether NOAH's query and value see different channels.
      head_options: Options of the chosen kind of head by name, such as `{"p": 4.0}` for "gem" or
        `{"merge": "max"}` for "noah"; those that are missing have their published defaults, see
        `noah_jax.heads.registry.HEADS`.
      drop_rate: Dropout rate in the backbone while training. DeiT, DINOv2, PVT and the MLP family
        have it.
      drop_path_rate: Rate of stochastic depth while training. In DeiT, DINOv2 and PVT it is the
        last block's, and rises linearly from 0; in the MLP family it is every block's.
      head_drop_rate: Dropout rate in the head while training.
      features_only: Whether to leave the head out. Then `apply` gives the last feature map,
        `[batch, *spatial, channels]`, in place of the logits. A backbone named without `noah_`
        keeps what a linear head needs, such as a class token.
      batch_norm_group: Images per BatchNorm statistic while training (32 in the original's
        recipes); `None` is the global batch.
      remat: Whether the backward pass recomputes the blocks' insides. The numbers are the same,
        in less memory, for about one more forward pass.
      dtype: Compute dtype, such as "bfloat16". Parameters, statistics, softmax and logits are
        float32. ("float64" is for parity, and needs JAX_ENABLE_X64=1.)
      **family_arguments: Arguments that only some families have: ResNet's `stem` ("imagenet" or
        "small", for images of some 32 pixels), DeiT's `pre_logits`, DeiT's and PVT's `class_token`
        (whether there is one; by default with a linear head only), and dimensions in place of the
        published ones (`get_architecture(name).dimensions`):
        `width` (ResNet, DeiT, DINOv2, MLP), `widths` (PVT, ShuffleNetV2), `width_mult`
        (MobileNets), `depth` (DeiT, DINOv2, MLP), `depths` (ResNet, PVT, ShuffleNetV2),
        `patch_size` (DeiT, DINOv2, MLP), `num_heads` (DeiT, DINOv2, PVT), hidden sizes over the
        width: `mlp_ratio` (DeiT, DINOv2), `mlp_ratios` (PVT), `channel_ratio` (MLP) and
        `token_ratio` (Mixer, gMixer), PVT's `reductions` and DINOv2's `registers`.

    Returns:
      The model.

    Raises:
      InputError: If there is no such model (names the nearest), if it has no such argument, or if
        a value does not fit; says what would. It is a `ValueError`.
    """
    architecture = get_architecture(name)
    kind = head if head is not None else ("noah" if name.startswith(NOAH_PREFIX) else "linear")
    check_head(kind)
    if kind != "noah":
        given = (head_num is not None, key_ratio is not None, not head_split, not kv_split)
        _refuse_noah_arguments(name, kind, given)
    options = complete_options(kind, head_options)
    _check_arguments(name, architecture, family_arguments)
    for key, published in architecture.dimensions.items():
        given = family_arguments.get(key, published)
        family_arguments[key] = check_dimension(key, given, published)
    for key, rate in (("drop_rate", drop_rate), ("drop_path_rate", drop_path_rate)):
        check_number(key, rate)
        if key in _own_arguments(architecture):
            family_arguments[key] = rate
        elif rate:
            raise InputError(
                f"{name} has no {'dropout' if key == 'drop_rate' else 'stochastic depth'} in its"
                f" backbone: {key} must be 0, got {rate}; head_drop_rate is the head's"
            )
    dtype = check_compute_dtype(dtype)
    check_number("head_drop_rate", head_drop_rate)
    flags = dict(head_split=head_split, kv_split=kv_split, features_only=features_only, remat=remat)
    for key, flag in flags.items():
        check_flag(key, flag)
    if batch_norm_group is not None:
        batch_norm_group = check_count("batch_norm_group", batch_norm_group)
    num_classes = (
        architecture.num_classes if num_classes is None else check_count("num_classes", num_classes)
    )
    size = _image_size(image_size, architecture.image_size)
    spec = HeadSpec(
        kind=kind,
        num_classes=num_classes,
        head_num=architecture.head_num if head_num is None else check_count("head_num", head_num),
        key_ratio=(
            architecture.key_ratio if key_ratio is None else check_number("key_ratio", key_ratio)
        ),
        head_split=head_split,
        kv_split=kv_split,
        drop_rate=head_drop_rate,
        dtype=dtype,
        options=options,
        features_only=features_only,
        spatial_major=architecture.spatial_major,
    )

    settings = BackboneSettings(
        image_size=size, batch_norm_group=batch_norm_group, remat=remat, dtype=dtype
    )

    def build(rngs: nnx.Rngs) -> Backbone:
        return architecture.build(spec, settings, rngs=rngs, **family_arguments)

    arguments = dict(
        num_classes=num_classes,
        image_size=size,
        head=kind if isinstance(kind, str) else type(kind).__name__,
        **(
            dict(head_num=spec.head_num, key_ratio=spec.key_ratio)
            if kind == "noah"
            else dict(head_num=None, key_ratio=None)
        ),
        head_split=head_split,
        kv_split=kv_split,
        head_options=options,
        head_drop_rate=head_drop_rate,
        features_only=features_only,
        batch_norm_group=batch_norm_group,
        remat=remat,
        dtype=dtype.name,
        **family_arguments,
    )
    return Model(
        build,
        name=name,
        arguments=arguments,
        num_classes=num_classes,
        image_size=size,
        architecture=architecture,
    )


def _refuse_noah_arguments(name: str, kind: str | nnx.Module, given: Sequence[bool]) -> None:
    """Raises an InputError if arguments of the NOAH head are given for another one."""
    keys = [key for key, is_given in zip(NOAH_ARGUMENTS, given, strict=True) if is_given]
    if keys:
        head = f"a {kind} head" if isinstance(kind, str) else f"the head {type(kind).__name__}"
        raise InputError(
            f"{name} has {head}, which takes no {' and no '.join(keys)}; for the NOAH head create"
            f" {NOAH_PREFIX}{name.removeprefix(NOAH_PREFIX)}, or give head='noah'"
        )


def _own_arguments(architecture: Architecture) -> set[str]:
    """Returns names of the arguments that the architecture's class takes and others may not."""
    build = architecture.build
    # The class's own signature: Flax's metaclass hides it behind (*args, **kwargs).
    parameters = inspect.signature(build.func.__init__).parameters.values()
    own = {p.name for p in parameters if p.kind != p.VAR_KEYWORD} - set(build.keywords)
    own -= {"self", "head", "settings", "rngs"}
    return own | set(architecture.dimensions)


def _check_arguments(name: str, architecture: Architecture, given: dict[str, Any]) -> None:
    common = set(inspect.signature(create_model).parameters) - {"name", "family_arguments"}
    own = _own_arguments(architecture) - common
    for key in given:
        if key not in own:
            nearest = near_matches(key, sorted(own | common))
            hint = f"did you mean {nearest[0]!r}? " if nearest else ""
            raise InputError(
                f"{name} takes no argument {key!r}; {hint}"
                f"it takes {', '.join(sorted(common))}"
                + (f" and {', '.join(sorted(own))}" if own else "")
            )


def _image_size(given: int | tuple[int, int] | None, default: tuple[int, int]) -> tuple[int, int]:
    if given is None:
        return default
    size = given if isinstance(given, list | tuple) else (given, given)
    if len(size) != 2:
        raise InputError(f"image_size must be pixels or (height, width), got {given!r}")
    height, width = (check_count("image_size", side, what=" pixel") for side in size)
    return height, width
