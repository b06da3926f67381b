"""NOAH, the attentive classification head, in JAX.

`NOAH` is the head as a Flax module and `poca` the pure function under it; `create_model` makes a
backbone with either head, `list_models` names them, and `load_model` loads trained weights.
"""

from typing import TYPE_CHECKING

from noah_jax.lazy_imports import lazy_names

if TYPE_CHECKING:
    from noah_jax.heads.noah.module import NOAH
    from noah_jax.heads.noah.poca import poca
    from noah_jax.inference.loading import load_model
    from noah_jax.inference.pretrained import create_model
    from noah_jax.models.registry import list_models

__version__ = "0.2.0"

__all__ = ["NOAH", "create_model", "list_models", "load_model", "poca"]

__getattr__ = lazy_names(
    __name__,
    {
        "NOAH": "noah_jax.heads.noah",
        "create_model": "noah_jax.inference.pretrained",
        "list_models": "noah_jax.models.registry",
        "load_model": "noah_jax.inference.loading",
        "poca": "noah_jax.heads.noah",
    },
)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
