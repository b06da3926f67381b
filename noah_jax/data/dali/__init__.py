"""Decodes, crops and flips training images with NVIDIA DALI, on GPUs or on its CPU backend.

What stands where, the box, the flip and RandAugment's operations are drawn by the host's own code,
so that they are those of the other loader; only the pixels differ, by less than a level of 255 in
the mean. RandAugment and the colour jitter are left to the training step, as with
`data.augment_on_device`: so they have one definition, whose pixels are Pillow's. DALI's own
operators draw and compute otherwise.
"""
