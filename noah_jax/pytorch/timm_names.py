"""timm's names of the architectures that this package has, by the names that they have here.

A name says more than the keys and shapes of its weights do: `resnetaa50` has those of `resnet50`
and computes something else. So a file that names an architecture of timm's must name one of these.
"""

from noah_jax.errors import ConversionError, near_matches
from noah_jax.models import architectures

# Those that have another name here. The sizes that differ from the architecture's own, such as the
# patch, are in the shapes of the weights.
_OTHER_NAMES = {
    "resnet26": "resnet50",
    "mobilenetv2_140": "mobilenetv2_100",
    **{
        f"vit_{size}_patch{patch}_{pixels}": f"deit_{size}_patch16_224"
        for size in ("tiny", "small", "base")
        for patch in (8, 16, 32)
        for pixels in (224, 384)
    },
    "vit_base_patch16_384": "deit_base_patch16_384",
    "vit_large_patch32_224": "vit_large_patch16_224",
    "vit_large_patch32_384": "vit_large_patch16_384",
}
# Models of timm that were published with weights of the same architecture in one repository name.
NAMES = {**{name: name for name in architectures()}, **_OTHER_NAMES}


def own_name(timm_name: str) -> str:
    """Returns the name here of an architecture of timm's, with or without a tag of its weights.

    Raises:
      ConversionError: If this package does not have it; names the nearest that it has.
    """
    name = timm_name.partition(".")[0]
    if name in NAMES:
        return NAMES[name]
    near = near_matches(name, NAMES, 3, cutoff=0.5)
    nearest = f"; the nearest that it has are {', '.join(near)}" if near else ""
    raise ConversionError(
        f"the architecture {timm_name} is one that this package does not have{nearest}"
    )
