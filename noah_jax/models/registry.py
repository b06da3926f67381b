"""The families, and every model by name.

Each architecture has two names, a bare one (`resnet50`: linear head) and one with the prefix
`noah_` (`noah_resnet50`: the NOAH head with the published N and r).
"""

import fnmatch

from noah_jax.errors import InputError, near_matches
from noah_jax.models import (
    deit,
    dinov2,
    mlp,
    mobilenetv2,
    mobilenetv3,
    pvt,
    resnet,
    shufflenetv2,
)
from noah_jax.models.family import Architecture, Family

NOAH_PREFIX = "noah_"

# A new family is a folder beside these and a row here.
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        resnet.FAMILY,
        mobilenetv2.FAMILY,
        mobilenetv3.FAMILY,
        shufflenetv2.FAMILY,
        deit.FAMILY,
        dinov2.FAMILY,
        pvt.FAMILY,
        mlp.FAMILY,
    )
}


def architectures() -> dict[str, Architecture]:
    """Returns the registered architectures by their bare names."""
    return {
        name: architecture
        for family in FAMILIES.values()
        for name, architecture in family.architectures.items()
    }


def list_models(pattern: str = "*") -> list[str]:
    """Returns names of the registered models that match a shell-style pattern, sorted."""
    bare = architectures()
    return sorted(fnmatch.filter([*bare, *(NOAH_PREFIX + name for name in bare)], pattern))


def get_architecture(name: str) -> Architecture:
    """Returns the architecture of a model, named with or without `noah_`.

    Raises:
      InputError: If there is no such model; names the nearest ones.
    """
    return get_family(name).architectures[name.removeprefix(NOAH_PREFIX)]


def get_family(name: str) -> Family:
    """Returns the family of a model, named with or without `noah_`.

    Raises:
      InputError: If there is no such model; names the nearest ones.
    """
    for family in FAMILIES.values():
        if name.removeprefix(NOAH_PREFIX) in family.architectures:
            return family
    nearest = near_matches(name, list_models(), 3)
    hint = f"did you mean {', '.join(nearest)}?" if nearest else "see noah_jax.list_models()"
    raise InputError(f"unknown model {name!r}; {hint}")
