"""The training program, and its parts for use from Python."""

from noah_jax.lazy_imports import lazy_names

__all__ = ["main", "train"]

__getattr__ = lazy_names(
    __name__, {"main": "noah_jax.train.program", "train": "noah_jax.train.loop"}
)


def __dir__() -> list[str]:
    return __all__
