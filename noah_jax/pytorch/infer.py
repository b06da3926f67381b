"""Finds the registered model that a state dict belongs to.

Which architecture it is:

1. The one that the caller names (`name`). Only the kind of head is compared.
2. Otherwise the one that the shapes tell: the family whose table knows most of the keys, and
   the architecture of that family with the nearest dimensions.
3. The file's own name for the model (`hint`) decides what the shapes leave open: which of several
   architectures with the same weights it is, and which one a model with unpublished dimensions
   is named after.

Which arguments `create_model` gets is decided in one place, `_create`.
"""

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from noah_jax.errors import ConversionError, near_matches
from noah_jax.models import (
    FAMILIES,
    architectures,
    get_architecture,
    get_family,
    list_models,
)
from noah_jax.models.base import Model
from noah_jax.models.family import Family, Positions
from noah_jax.models.positions import fit_positions
from noah_jax.models.registry import NOAH_PREFIX
from noah_jax.models.shapes import Shapes
from noah_jax.pytorch.dimensions import attention_heads, nearest
from noah_jax.pytorch.foreign import foreign_kind
from noah_jax.pytorch.head import (
    HEAD_ARGUMENTS,
    StateDict,
    create_with_head,
    head_kind,
    model_name,
)
from noah_jax.pytorch.mapping import expected_shapes, match
from noah_jax.pytorch.other_heads import options_not_told, table_of
from noah_jax.pytorch.parts import Part, backbone_of, find_part, is_any_kind
from noah_jax.pytorch.renames import rename

HEADLESS = (
    "the file has no head: the model gives the last feature map (features_only); training that"
    " starts from it with init_from adds a fresh head"
)


@dataclasses.dataclass(frozen=True)
class ModelMatch:
    """A model, and the state dict with its weights.

    Attributes:
      model: The model, with every argument that the shapes tell.
      state_dict: Arrays by the original's keys.
      notes: Sentences on what the file does not tell.
    """

    model: Model
    state_dict: dict[str, np.ndarray]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """A state dict as one of an architecture.

    Attributes:
      state_dict: Arrays by the original's keys.
      base: Name of the architecture, without `noah_`.
      kind: The kind of head in the state dict; `None` for a complete file without a head.
      sizes: The dimensions in the state dict that are not the architecture's.
      given: The arguments of `create_model` that the caller gives.
      notes: Sentences on what was done to the state dict.
    """

    state_dict: dict[str, np.ndarray]
    base: str
    kind: str | None
    sizes: Mapping[str, Any]
    given: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def find_model(
    state_dict: StateDict,
    *,
    name: str | None = None,
    hint: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    beside: Collection[str] = (),
    backbone: bool = False,
) -> ModelMatch:
    """Finds the model of a state dict; the module's docstring says how.

    Args:
      state_dict: Arrays by key, without prefixes such as `module.`.
      name: Registered name of the model; `None` finds it.
      hint: What the file calls the model.
      arguments: Arguments of `create_model`; they override what the shapes tell. If `name` is
        given, they must have every dimension that is not the published one.
      beside: Keys that the file keeps beside the model, see `find_part`.
      backbone: Whether to take the backbone alone, and to leave out every key that is not its.

    Raises:
      ConversionError: In one line that names the nearest models, if no registered model fits.
      InputError: If `name` is not registered, or an argument does not exist or fit.
    """
    given = dict(arguments or {})
    if kind := foreign_kind(state_dict):
        raise ConversionError(kind)
    part = find_part(state_dict, beside)
    if backbone:
        part = backbone_of(part)
    if name is not None:
        found = _named_model(part.state_dict, name, given)
    else:
        found = _fitting_model(part, hint, given)
    return dataclasses.replace(found, notes=(*part.notes, *found.notes))


def _fitting_model(part: Part, hint: str | None, given: Mapping[str, Any]) -> ModelMatch:
    """Finds the model whose shapes are the state dict's; see `find_model`."""
    misfits, state_dict = [], part.state_dict
    for family in part.families:
        if not is_any_kind(state_dict, family):
            raise ConversionError(
                f"the keys are like those of {family.name} models, but of a kind of block that this"
                " package does not have"
            )
        candidate = _nearest_candidate(rename(state_dict, family), family, hint, given)
        model = _create_of_own_sizes(candidate)
        problems = _differences(candidate.state_dict, model)
        if not problems:
            return _choose_name(candidate, model, hint)
        misfits.append((len(problems), _with_sizes(model, candidate.sizes), problems[0]))
    if not misfits:
        keys = ", ".join(list(state_dict)[:3])
        raise ConversionError(
            f"the keys ({keys}, ...; {len(state_dict)} in all) are those of no registered family"
            f" ({', '.join(FAMILIES)}); a model of another kind cannot be converted"
        )
    listed = [f"{model} ({problem}; {n} problem(s))" for n, model, problem in sorted(misfits)[:3]]
    raise ConversionError(
        f"no registered model fits the shapes; nearest: {'; '.join(listed)};"
        " --model NAME says more about one"
    )


def name_in_metadata(metadata: Mapping[str, Any]) -> str | None:
    """Returns what the metadata of a checkpoint calls the model."""
    args = metadata.get("args")
    names = (metadata.get("arch"), args.get("model") if isinstance(args, Mapping) else None)
    return next((name for name in names if isinstance(name, str)), None)


def _named_model(state_dict: StateDict, name: str, given: Mapping[str, Any]) -> ModelMatch:
    family = get_family(name)
    base = name.removeprefix(NOAH_PREFIX)
    renamed = rename(state_dict, family)
    kind = head_kind(renamed, family)
    if kind is not None and name != (right_name := model_name(base, kind)):
        raise ConversionError(
            f"the file has a {kind} head, but {name} has another; --model {right_name} has it"
        )
    candidate = _resized(_Candidate(renamed, base, kind, sizes={}, given=given))
    model = _create(candidate)
    untold = options_not_told(model, given) if candidate.kind else HEADLESS
    notes = (*filter(None, [untold]), *candidate.notes)
    return ModelMatch(model, candidate.state_dict, notes)


def _nearest_candidate(
    state_dict: dict[str, np.ndarray], family: Family, hint: str | None, given: Mapping[str, Any]
) -> _Candidate:
    kind = head_kind(state_dict, family)
    base, sizes = nearest(state_dict, family, _bare_name(hint))
    return _resized(_Candidate(state_dict, base, kind, sizes, given))


def _resized(candidate: _Candidate) -> _Candidate:
    """Resizes position embeddings to the image size that the caller gives, if the file has another.

    They stay where the file does not tell its own image size, so that the caller has to.
    """
    positions = get_family(candidate.base).positions
    if "image_size" not in candidate.given or positions is None:
        return candidate
    given = {key: value for key, value in candidate.given.items() if key != "image_size"}
    try:
        model = _create(candidate)
        source = _create(dataclasses.replace(candidate, given=given))
    except ValueError:  # Creating the model again says what is wrong.
        return candidate
    state_dict, notes = dict(candidate.state_dict), []
    for key, new in model.position_grids.items():
        array, old = state_dict.get(key), source.position_grids[key]
        if array is None or old == new or array.ndim != 3:
            continue
        if array.shape[1] - old[0] * old[1] in (0, 1):
            tokens = model.abstract()[0][key].shape[1]
            state_dict[key] = fit_positions(array, old, new, tokens, antialias=positions.antialias)
            notes.append(f"{key} is resized from {old[0]}x{old[1]} to {new[0]}x{new[1]} positions")
    return dataclasses.replace(candidate, state_dict=state_dict, notes=tuple(notes))


def _create(candidate: _Candidate) -> Model:
    """Creates the model of a candidate.

    Every argument comes from the first of these sources that has it:

    1. the caller
    2. the shapes: sizes, the family's switches (such as a stem), image size, head
    3. the usual number of attention heads for the file's sizes
    4. the published architecture, which `create_model` knows
    """
    state_dict, base, given = candidate.state_dict, candidate.base, candidate.given
    family = get_family(base)
    given_head = {key: value for key, value in given.items() if _is_heads(key)}
    given_backbone = {key: value for key, value in given.items() if not _is_heads(key)}
    backbone = {
        **attention_heads(base, candidate.sizes),
        **candidate.sizes,
        **family.infer_arguments(Shapes(state_dict)),
        # A file that does not tell its image size is an error unless the size is given.
        **({} if "image_size" in given else _image_size(state_dict, family.positions)),
        **given_backbone,
    }
    return create_with_head(state_dict, base, candidate.kind, backbone, given_head)


def _is_heads(key: str) -> bool:
    return key in HEAD_ARGUMENTS or key.startswith("head.")


def _create_of_own_sizes(candidate: _Candidate) -> Model:
    """Creates the model of a candidate; an error says the sizes that the file has."""
    try:
        return _create(candidate)
    except ConversionError:
        raise
    except ValueError as error:
        if not candidate.sizes:
            raise
        sizes = ", ".join(f"{key}={value}" for key, value in candidate.sizes.items())
        raise ConversionError(f"no model has the file's {sizes}: {error}") from error


def _image_size(state_dict: StateDict, positions: Positions | None) -> dict[str, int]:
    """Returns the side of the images in pixels as an argument; `{}` if the file does not tell."""
    if positions is None:
        return {}
    shapes = Shapes(state_dict)
    lengths = [shapes.length(key, axis) for key, axis in positions.tensors if key in shapes]
    if not lengths or positions.patch_kernel not in shapes:
        return {}
    has_token = positions.class_token in shapes and positions.registers not in shapes
    patches = lengths[0] - has_token
    side = math.isqrt(max(patches, 0))
    if side * side != patches or not side:
        key = next(key for key, _ in positions.tensors if key in shapes)
        token = f", {patches} without that of the class token" if has_token else ""
        raise ConversionError(
            f"{key} has {lengths[0]} positions{token}, which are no square of patches: either the"
            " images are no square, then give --set image_size=HEIGHT,WIDTH, or the model has"
            " tokens that no model here has"
        )
    return {"image_size": side * shapes.length(positions.patch_kernel, -1)}


def _differences(state_dict: StateDict, model: Model) -> list[str]:
    """Lists where the backbones of a state dict and a model differ."""
    table = table_of(model)
    params, stats = model.abstract()
    backbone = {key: value for key, value in params.items() if key != "head"}
    expected = expected_shapes({"params": backbone, "stats": stats}, table)
    ignored = [row.torch for row in table if row.path is None]
    actual = {
        key: value.shape
        for key, value in state_dict.items()
        if not any(match(pattern, key) is not None for pattern in ignored)
    }
    heads = {row.torch for row in table if (row.path or "").startswith("params/head/")}
    problems = []
    for key in expected.keys() | actual.keys() - heads:
        if actual.get(key) != expected.get(key):
            in_file = f"shape {actual[key]}" if key in actual else "nothing"
            in_model = f"shape {expected[key]}" if key in expected else "nothing"
            problems.append(f"{key}: {in_file} in the file, {in_model} in the model")
    return sorted(problems)


def _choose_name(candidate: _Candidate, model: Model, hint: str | None) -> ModelMatch:
    """Chooses among the architectures with the same weights the one that the file means."""
    base = candidate.base
    hinted = _bare_name(hint)
    # Nobody published a model with sizes of its own, so it has one name.
    names = [base] if candidate.sizes else _same_weights(base)

    def preference(name: str) -> tuple[bool, bool, bool, int]:
        architecture = get_architecture(name)
        # Without positions the file does not tell the image size, so it says nothing about names.
        tells_size = get_family(name).positions is not None
        return (
            name != hinted,
            architecture.num_classes != model.num_classes,
            tells_size and architecture.image_size != model.image_size,
            names.index(name),
        )

    best = min(names, key=preference)
    if best != base:
        model = _create(dataclasses.replace(candidate, base=best))
    others = [name for name in names if name != best]
    return ModelMatch(model, candidate.state_dict, tuple(_notes(candidate, model, others, hint)))


def _notes(
    candidate: _Candidate, model: Model, others: list[str], hint: str | None
) -> Iterator[str]:
    """Yields sentences on what the file does not tell.

    Args:
      candidate: The state dict and the caller's arguments.
      model: The model that was chosen.
      others: Names, without `noah_`, of other architectures with the same weights.
      hint: What the file calls the model.
    """
    sizes, given = candidate.sizes, candidate.given
    if candidate.kind is None:
        yield HEADLESS
    elif untold := options_not_told(model, given):
        yield untold
    yield from candidate.notes
    best = model.name.removeprefix(NOAH_PREFIX)
    is_hinted = best == _bare_name(hint)
    if sizes:
        yield f"no registered model has these dimensions: {_with_sizes(model, sizes)}"
    if attention_heads(candidate.base, sizes) and "num_heads" not in given:
        yield (
            f"the file does not tell the attention heads: taken as {model.arguments['num_heads']}"
            " (--set num_heads=... changes it)"
        )
    if others and not is_hinted:
        listed = ", ".join(model_name(name, candidate.kind) for name in others)
        yield (
            f"{listed} would fit as well: the same weights under another name"
            " (--model NAME chooses)"
        )
    if hint and not is_hinted:
        similar = near_matches(hint, list_models(), cutoff=0.9)
        registered = "" if similar and similar[0] == hint else ", which is not a registered name"
        relation = "nearest to" if sizes else "those of"
        yield f"it is called {hint!r}{registered}, but its shapes are {relation} {best}"
    if get_family(best).positions is None and "image_size" not in given:
        yield (
            f"the file does not tell the image size: taken as {model.image_size[0]} x"
            f" {model.image_size[1]} (--set image_size=N changes it)"
        )


def _same_weights(base: str) -> list[str]:
    """Returns the architectures whose weights have the same names and shapes, `base` included."""
    structure = _structure(base)
    return [name for name in architectures() if _structure(name) == structure]


def _structure(name: str) -> str:
    """Returns a text that is equal for architectures with the same weights."""
    build = get_architecture(name).build
    keywords = {key: _without_layer_scale(value) for key, value in build.keywords.items()}
    return repr((build.func, sorted(keywords.items())))


def _without_layer_scale(value: Any) -> str:
    # A layer scale only says where training starts.
    if hasattr(value, "keywords"):
        kept = {k: v for k, v in value.keywords.items() if k != "layer_scale"}
        return repr((value.func, sorted(kept.items())))
    return repr(value)


def _bare_name(hint: str | None) -> str:
    """Returns a model's name without timm's tag of the weights and without `noah_`."""
    return (hint or "").split(".")[0].removeprefix(NOAH_PREFIX)


def _with_sizes(model: Model, sizes: Mapping[str, Any]) -> str:
    """Returns a model's name and its values of these arguments."""
    values = ", ".join(f"{key}={model.arguments[key]}" for key in sizes)
    return f"{model.name} with {values}" if values else model.name
