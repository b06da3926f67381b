"""Shows where a head sees a class; `python -m noah_jax.explain --help` explains it."""
