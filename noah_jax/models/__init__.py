"""The backbones, one folder a family, and the registry of their names."""

from noah_jax.lazy_imports import lazy_names

_HOMES = {
    "FAMILIES": "noah_jax.models.registry",
    "architectures": "noah_jax.models.registry",
    "create_model": "noah_jax.models.create",
    "get_architecture": "noah_jax.models.registry",
    "get_family": "noah_jax.models.registry",
    "list_models": "noah_jax.models.registry",
}
__all__ = sorted(_HOMES)

__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__
