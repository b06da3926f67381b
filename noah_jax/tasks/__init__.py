"""Losses and metrics of images with one label and of images with several."""
