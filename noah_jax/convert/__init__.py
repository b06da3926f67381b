"""Converts weights from PyTorch's files to folders of this package, and back."""
