"""The accuracy of trained models; `python -m noah_jax.evaluate --help` says how."""
