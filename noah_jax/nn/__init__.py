"""Layers with PyTorch's semantics, and what they share."""
