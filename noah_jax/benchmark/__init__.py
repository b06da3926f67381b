"""Measurements of speed; `python -m noah_jax.benchmark --help` says which."""
