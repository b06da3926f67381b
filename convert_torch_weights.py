"""Converts weights between PyTorch and noah_jax; see `noah_jax/convert/program.py`."""

import sys

from noah_jax.convert.program import main

if __name__ == "__main__":
    sys.exit(main())
