"""Reads PyTorch's and safetensors' files; needs neither PyTorch nor JAX."""
