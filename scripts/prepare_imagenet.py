"""Prepares ImageNet, or other images, for training, as `python -m noah_jax.prepare` does."""

import sys

from noah_jax.prepare.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
