"""Layers with PyTorch's semantics, and the functions they are made of."""
