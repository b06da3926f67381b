"""The NOAH head. Read `module.py`, then `poca.py`."""

from noah_jax.heads.evidence import Contributions
from noah_jax.heads.noah.module import NOAH
from noah_jax.heads.noah.operands import Projection
from noah_jax.heads.noah.poca import IMPLEMENTATIONS, poca
from noah_jax.heads.noah.reference import attention, contributions

# Not lazy: the function `poca` must hide the module of the same name whatever is imported first.
__all__ = [
    "IMPLEMENTATIONS",
    "NOAH",
    "Contributions",
    "Projection",
    "attention",
    "contributions",
    "poca",
]
