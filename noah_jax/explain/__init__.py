"""Shows where the NOAH head sees a class; `python -m noah_jax.explain --help` explains it."""
