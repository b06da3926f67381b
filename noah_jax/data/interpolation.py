"""Names of interpolations, and how an image gets the size of a crop; imports nothing."""

from typing import Final, Literal

# "nearest" is that of PyTorch's `interpolate`: target pixel i is source pixel
# floor(i * source / target). "nearest-exact" is Pillow's NEAREST, which takes the pixel at the
# centre; torchvision and timm take it for their nearest, where images are Pillow's. The others are
# Pillow's too.
INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic", "lanczos", "box", "hamming")

SQUASH: Final = "squash"
# The shorter side in pixels; None to just cover the crop; or "squash", the whole image as the crop.
Resize = int | Literal["squash"] | None
