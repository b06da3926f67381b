"""Fine-tunes a model on photographs of your own, in a folder with a folder for each class.

    python -m noah_jax.train --config configs/finetune.py --config.dataset=folder:photos \\
        --config.init_from=runs/converted --workdir runs/photos

`photos` holds `CLASS/*.jpg`, of which a fifth is kept for the evaluation, or `train/CLASS/*.jpg`
and `val/CLASS/*.jpg`. `init_from` is the folder of a run or of converted weights, or a PyTorch
file; its model, image size and normalisation are taken. Without it a ResNet-18 learns from the
beginning, which needs thousands of images for each class.

The variants are noah (the default), which gives any backbone a NOAH head, and linear. Batch,
epochs, warm-up and the interval of log lines depend on the number of images, from a few dozen on;
`noah_jax/train/choices.py` has the rules, and the log says what was chosen. Weights from
`init_from` learn at a tenth of the head's rate. Hardware: whatever there is; on GPUs and TPUs add
`--config.model.dtype=bfloat16`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from noah_jax.config import default_config
from noah_jax.errors import InputError


def get_config(variant: str = "noah") -> ConfigDict:
    """Returns the configuration of a variant: "noah" (the default) or "linear"."""
    if variant not in ("noah", "linear"):
        raise InputError(f"finetune has the variants noah and linear, got {variant!r}")
    config = default_config()
    config.model.name = placeholder(str)
    config.model.head = variant
    config.model.head_split = config.model.kv_split = placeholder(bool)  # As in init_from.
    config.data.area = (0.25, 1.0)  # A photograph of one's own may show a small object.
    config.data.color_jitter = 0.2
    config.smoothing = 0.1
    config.ema_span = 0.1

    config.batch_size = placeholder(int)
    config.epochs = placeholder(float)
    config.log_every = placeholder(int)
    config.checkpoint_every = 200  # An epoch of few images is too short to save after each.

    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.warmup_epochs = placeholder(float)
    config.optim.param_groups = placeholder(tuple)
    config.optim.weight_decay = 0.05
    config.optim.decay_all = False
    config.optim.clip_grad_norm = 1.0
    return config
