"""Sends a run's metrics to experiment trackers: Weights & Biases, trackio, MLflow."""
