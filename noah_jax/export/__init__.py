"""Exports models for use without this package; `python -m noah_jax.export --help` explains it."""
