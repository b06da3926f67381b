"""Losses and metrics, for images with one label and with several."""
