"""Classifies single images; `python -m noah_jax.predict --help` explains it."""
