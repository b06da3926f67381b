"""Converts weights between PyTorch and noah_jax, as `python -m noah_jax.convert` does."""

import sys

from noah_jax.convert.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
