"""Creates models that start at published weights."""

from typing import Any

from noah_jax import console
from noah_jax.data.preprocessing import GIVEN
from noah_jax.inference.initial_weights import load_initial_weights
from noah_jax.models import create as models
from noah_jax.models.base import Model
from noah_jax.models.pretrained import default_source
from noah_jax.models.start import Start


def create_model(name: str, *, pretrained: bool | str = False, **arguments: Any) -> Model:
    """Creates a model by its registered name, fresh or at published weights.

    No weights are made yet: `Model.init` makes them. `noah_jax.load_model` reads your own.

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
      pretrained: Whether `Model.init` starts at published weights, which are downloaded once:
        timm's or torchvision's, and where they have none, as for all names with `noah_`, those
        that the authors of NOAH released; `noah-jax models --pretrained` lists them. Or the name
        of a checkpoint to take, see `load_model`. The backbone must be the same; a head of another
        kind, or with another number of classes, is fresh, which is said. The model then prepares
        images as those weights expect it.
      **arguments: All that `noah_jax.models.create_model` takes, such as `num_classes`,
        `image_size`, `head`, `features_only`, `dtype` and the architecture's own dimensions.

    Returns:
      The model.

    Raises:
      InputError: If there is no such model (names the nearest), if it has no such argument, if a
        value does not fit, or if weights cannot be had or do not fit; says what would. It is a
        `ValueError`.
    """
    model = models.create_model(name, **arguments)
    if pretrained is False:
        return model
    path = default_source(name) if pretrained is True else pretrained
    initial = load_initial_weights(path, model, where=path)
    for line in initial.lines[1:]:  # the first only says where the weights come from
        console.note(f"{name}: {line}")
    model.start = Start(initial.params, initial.stats)
    source = initial.source
    assert source.preprocessing is not None  # loading has found it
    resized = {} if model.image_size == source.image_size else {"crop": model.image_size}
    model.preprocessing = source.preprocessing.override(resized, GIVEN)
    model.mean, model.std = source.mean, source.std
    model.class_names = source.class_names if initial.head else None
    return model
