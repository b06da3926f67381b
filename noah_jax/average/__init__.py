"""Averages the weights of checkpoints; `python -m noah_jax.average --help` explains it."""
