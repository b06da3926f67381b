"""Draws text, colour bars and rows of images as arrays of pixels, for the programs' pictures."""
