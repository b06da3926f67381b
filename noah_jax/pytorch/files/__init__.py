"""Reads the files of PyTorch and safetensors; imports neither PyTorch nor JAX."""
