"""Trained models: loading them, and running them on many images."""
