"""The backbones, one file per family, and the registry in `create.py`."""

from noah_jax.lazy_imports import lazy_names

__all__ = ["ARCHITECTURES", "create_model", "get_architecture", "list_models"]

__getattr__ = lazy_names(__name__, dict.fromkeys(__all__, "noah_jax.models.create"))


def __dir__() -> list[str]:
    return __all__
