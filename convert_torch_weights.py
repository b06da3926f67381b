"""Converts weights between PyTorch and noah_jax; see `noah_jax/convert/convert.py`."""

import sys

from noah_jax.convert.convert import main

if __name__ == "__main__":
    sys.exit(main())
