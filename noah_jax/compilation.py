"""Sets XLA's compiler options, and the cache that keeps compiled programs between runs."""

from noah_jax.paths import expand_home

DEFAULT_CACHE = "~/.cache/noah_jax/compilation"

# For programs that run a few times only: compiling them well takes longer than running them badly
# (initialising ResNet-18 on a CPU takes 18 s optimised and 3 s like this, with the same numbers).
QUICK_COMPILE = {"xla_backend_optimization_level": 0}

# XLA's options for the training step, by the platform of its devices ("gpu", "tpu" or "cpu"). An
# option belongs here once it was measured to make steps faster, with
# `python -m noah_jax.benchmark --what step --compiler-option NAME=VALUE`.
TRAIN_STEP_OPTIONS: dict[str, dict[str, str | bool]] = {}


def train_step_options(platform: str) -> dict[str, str | bool] | None:
    """Returns the `compiler_options` of `jax.jit` for a training step; `None` for XLA's defaults.

    Args:
      platform: Platform of the devices, as JAX names it.
    """
    return TRAIN_STEP_OPTIONS.get(platform)


def enable_compilation_cache(folder: str | None, *, shared: str | None = None) -> None:
    """Keeps compiled programs between runs, unless JAX's own setting already says where.

    Args:
      folder: The folder of the cache; `None` or empty for no cache.
      shared: The folder to take instead if there are several processes and `folder` is the
        default. The first process writes there and all read.
    """
    import jax  # here, because it takes a second, which no `--help` should wait for

    if shared and jax.process_count() > 1 and folder == DEFAULT_CACHE:
        folder = shared
    # JAX makes the attributes of its configuration at run time.
    if folder and jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", expand_home(folder))
