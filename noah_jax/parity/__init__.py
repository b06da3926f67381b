"""Checks that these are the original's models, by numbers that the original's code computed."""
