"""NOAH, the attentive classification head, in JAX."""

from noah_jax.lazy_imports import lazy_names

__all__ = ["NOAH", "create_model", "list_models", "load_model", "poca"]

__getattr__ = lazy_names(
    __name__,
    {
        "NOAH": "noah_jax.heads.noah.module",
        "create_model": "noah_jax.models.create",
        "list_models": "noah_jax.models.registry",
        "load_model": "noah_jax.inference.loading",
        "poca": "noah_jax.heads.noah.poca",
    },
)


def __dir__() -> list[str]:
    return __all__
