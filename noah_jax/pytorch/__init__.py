"""PyTorch's names and files: reading weights, finding their model, writing them back."""
