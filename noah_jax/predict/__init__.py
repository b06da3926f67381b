"""Classes of single images; `python -m noah_jax.predict --help` says how."""
