"""The training program, and the function `train` for use from Python."""

from noah_jax.lazy_imports import lazy_names

__all__ = ["main", "train"]

__getattr__ = lazy_names(
    __name__, {"main": "noah_jax.train.__main__", "train": "noah_jax.train.loop"}
)


def __dir__() -> list[str]:
    return __all__
