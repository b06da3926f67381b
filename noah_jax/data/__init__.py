"""The host side of the input: sources of images, their order, decoding and transforms."""
