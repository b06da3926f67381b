"""NOAH, the attentive classification head, in JAX."""

from noah_jax.head import NOAH, poca
from noah_jax.models import create_model, list_models
from noah_jax.workdir import load_model

__all__ = ["NOAH", "create_model", "list_models", "load_model", "poca"]
