"""Compiling the train step for machines that are not here."""
