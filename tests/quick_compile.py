"""Compiles the programs of tests quickly: they run for milliseconds, and compiling takes seconds.

LLVM's optimisations take nearly half of the time, and XLA's fusion emitters most of the rest; XLA's
own passes run all the same.
"""

import functools
import os

import jax
from jax._src import compiler

QUICK_COMPILE = "jax_disable_most_optimizations"
EMITTERS = "xla_cpu_use_fusion_emitters"
_FLAGS = os.environ.get("XLA_FLAGS", "")


@functools.cache
def _has_emitters() -> bool:
    """Says whether XLA knows the option."""
    try:
        jax.jit(lambda: 0, compiler_options={EMITTERS: False}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


@functools.cache
def _watch_options() -> None:
    """Lets JAX leave the emitters out as long as QUICK_COMPILE is set.

    `XLA_FLAGS` would not do: a process reads them once.
    """
    make_options = compiler.get_compile_options

    @functools.wraps(make_options)
    def without_emitters(*arguments, **options):
        made = make_options(*arguments, **options)
        if jax.config.read(QUICK_COMPILE):
            made.env_option_overrides = [*made.env_option_overrides, (EMITTERS, False)]
        return made

    compiler.get_compile_options = without_emitters


def environment(quick: bool) -> dict[str, str]:
    """Returns the variables with which programs that tests start compile quickly or as a user's."""
    flags = f"{_FLAGS} --{EMITTERS}=false" if quick and _has_emitters() else _FLAGS
    return {QUICK_COMPILE.upper(): str(quick), "XLA_FLAGS": flags}


def compile_quickly(quick: bool) -> None:
    """Compiles quickly from now on, or as for users; so do the programs that tests start."""
    if quick and _has_emitters():
        _watch_options()
    if quick != jax.config.read(QUICK_COMPILE):
        jax.clear_caches()
        jax.config.update(QUICK_COMPILE, quick)
    os.environ |= environment(quick)
