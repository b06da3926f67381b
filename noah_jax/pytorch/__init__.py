"""Reads weights from PyTorch's files, finds their model, and writes weights for PyTorch."""
