"""Trains heads on the cached features of a frozen backbone, and classifies by its neighbours."""
