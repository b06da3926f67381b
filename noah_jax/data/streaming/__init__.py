"""Shard files, local or remote: found by patterns, kept in a bounded cache, read ahead, opened."""
