"""Measures a trained model on a dataset, for the programs that need its accuracy."""
