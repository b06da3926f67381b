"""Loads trained models and runs them on many images."""
