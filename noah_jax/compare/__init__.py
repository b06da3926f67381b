"""Compares heads on the same data; `python -m noah_jax.compare --help` explains it."""
