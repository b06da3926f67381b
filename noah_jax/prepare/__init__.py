"""The program `python -m noah_jax.prepare`, which prepares datasets for training."""
