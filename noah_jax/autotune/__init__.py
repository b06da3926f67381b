"""Finds the fastest block sizes of the head's kernels on this machine's own GPU."""
