"""Puts timm's weights into our heads, by timm's names of them."""

import re

import jax.numpy as jnp
import numpy as np
from flax import nnx

# Parts of timm's names, and ours.
_PARTS = (
    (r"^decoder\.layers\.0", "decoder"),
    (r"^blocks_token_only", "blocks"),
    (r"^head\.", "linear."),
    (r"in_proj_", "in_proj."),
)


def _our_path(key: str, array: np.ndarray) -> str:
    for pattern, ours in _PARTS:
        key = re.sub(pattern, ours, key)
    norm = re.search(r"norm\d?\.weight$", key)
    if key == "query_embed.weight":
        return "query_embed"
    return key.replace(".", "/").replace("weight", "scale" if norm else "kernel")


def load(head: nnx.Module, state_dict: dict[str, np.ndarray]) -> None:
    """Replaces weights of a head in place; the linear layer that timm lacks stays as it is."""
    own = {"/".join(map(str, path)): x for path, x in nnx.to_flat_state(nnx.state(head))}
    for key, array in state_dict.items():
        path = _our_path(key, array)
        turned = array.T if path.endswith("kernel") else array
        assert own[path].shape == turned.shape, key
        own[path][...] = jnp.asarray(turned)
        del own[path]
    assert set(own) <= {"linear/kernel", "linear/bias"}, own
    nnx.update(head, nnx.state(head))
