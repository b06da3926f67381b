"""Names the ways in which evaluations resize images."""

# "nearest" is that of PyTorch's `interpolate`: target pixel i is source pixel
# floor(i * source / target). "nearest-exact" is Pillow's NEAREST, which takes the pixel at the
# centre; torchvision and timm take it for their nearest, where images are Pillow's. The others are
# Pillow's too.
INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic", "lanczos", "box", "hamming")
