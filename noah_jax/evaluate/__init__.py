"""Measures the accuracy of trained models; `python -m noah_jax.evaluate --help` explains it."""
