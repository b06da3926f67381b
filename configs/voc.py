"""Multi-label classification on PASCAL VOC 2007 with any head, by ML-Decoder's or CSRA's recipe.

    python -m noah_jax.prepare --voc VOCdevkit/VOC2007
    python -m noah_jax.train --config voc.py:noah_resnet101_448_sgd --config.init_from=WEIGHTS \\
        --workdir DIR

Variants and WEIGHTS are those of coco.py. The training is on trainval (5,011 images) and the
evaluation on test (4,952 images), as in published results. `--config.dataset=voc:VOCdevkit/VOC2007`
reads VOC's own files. CSRA publishes 94.7 % mAP for ResNet-101 at 448 pixels with its head; its
training takes difficult objects as absent, which are ignored here. Hardware: one GPU. No run of
this file has been made: neither its accuracy nor its time is known.
"""

from ml_collections import ConfigDict

from noah_jax.recipes import multi_label_config


def get_config(variant: str = "") -> ConfigDict:
    """Returns the configuration of a variant, such as "noah_resnet101_448_sgd"."""
    config = multi_label_config(variant, step_epochs=4)
    config.dataset = "voc2007"
    config.data.train_split = "trainval"
    config.data.eval_split = "test"
    return config
