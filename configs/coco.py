"""Multi-label classification on COCO with any head, by ML-Decoder's or CSRA's recipe.

    python -m noah_jax.prepare --coco PATH
    python -m noah_jax.train --config coco.py:noah_resnet101_448 --config.init_from=WEIGHTS \\
        --workdir DIR

Variants are resnet101_448, resnet101_576, vit_large_224 and vit_large_384, with the images' side in
pixels. With noah_, csra_ or ml_decoder_ before it a variant has that head; --config.model.head=NAME
gives it any other. With _sgd after it, it follows CSRA (SGD, cross entropy, 30 epochs) instead of
ML-Decoder (Adam, one cycle, asymmetric loss, moving average, 40 epochs).

WEIGHTS are those of ImageNet for the backbone: a PyTorch file, converted weights or a run. The
dataset is coco2014, on which results are published: 82,081 training and 40,137 evaluation images.
`--config.dataset=coco:PATH` reads COCO's own files instead, and coco2017 is another year.

NOAH's paper gives +3.6 % mAP for ResNet-101 and +1.1 % for ViT-L over their own heads; the authors'
repository has no recipe for it. The results of the moving average have `ema_` before their names.
Hardware: one GPU; on TPU and GPU add --config.model.dtype=bfloat16. No run of this file has been
made: neither its accuracy nor its time is known.
"""

from ml_collections import ConfigDict

from noah_jax.recipes import multi_label_config


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration of a variant, such as "noah_resnet101_448"."""
    config = multi_label_config(variant, step_epochs=5)
    config.dataset = "coco2014"
    if config.model.head == "csra":
        # As CSRA's README has it for ResNet-101 with 4 heads, and for ViT-L with 8; its code's
        # default for ViTs is lam=0.3.
        resnet = config.model.name.startswith("resnet")
        config.head.csra.num_heads, config.head.csra.lam = (4, 0.5) if resnet else (8, 0.3)
    return config
