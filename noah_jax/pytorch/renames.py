"""Changes the keys that other libraries use to the original's.

A state dict that has the original's keys already passes through unchanged.
"""

from collections.abc import Mapping

import numpy as np

from noah_jax.models.family import Family
from noah_jax.pytorch.mapping import match


def rename(state_dict: Mapping[str, np.ndarray], family: Family) -> dict[str, np.ndarray]:
    """Returns a state dict with the original's keys; keys that the family does not rename stay.

    If two keys would become one, the foreign one keeps its name, so that it is reported as extra.
    Tensors that another library joins or splits otherwise are regrouped.
    """
    out: dict[str, np.ndarray] = {}
    for key, value in state_dict.items():
        name, array = key, value
        for row in family.renames:
            if (fields := match(row.foreign, key)) is not None:
                target = row.original.format(**fields)
                if target == key or target not in state_dict:
                    name, array = target, row.transform(value)
                break
        out[name] = array
    return dict(family.regroup(out))
