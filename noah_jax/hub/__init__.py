"""Brings checkpoints that are kept elsewhere to this machine: Hugging Face, URLs, the authors'."""
