"""The folder of a training run: its configuration, checkpoints and results."""
