"""Compiles ahead of time for machines that are not here, and reads what XLA says of the result."""
