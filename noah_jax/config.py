"""Defines the configuration: every key, its default and its meaning, in one place.

The comment of a key stands directly above it or behind it; the reference of the documentation is
made from these comments. One with an empty line below it is about several keys.

A file in `configs/` starts from `default_config()` and sets what its result needs. The command
line sets single keys: `--config.optim.learning_rate=0.1`. Each part of a run gets its own section
of the configuration and nothing else, see `config_sections.py`.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from noah_jax.compilation import DEFAULT_CACHE
from noah_jax.errors import InputError, did_you_mean


def default_config() -> ConfigDict:
    """Returns all keys with their defaults. A placeholder is None until it is set."""
    config = ConfigDict()
    # Seeds the weights, the order of the images, the augmentation and dropout.
    config.seed = 0

    # The name of a TFDS dataset, folder:PATH for class folders, csv:PATH, coco:PATH, voc:PATH,
    # wds:PATH for WebDataset shards, or hf:NAME for a dataset of Hugging Face.
    # Class folders without train/ and val/ are split, see noah_jax/data/split.py.
    config.dataset = "fashion_mnist_sample"

    # The weights to start with: a run's folder, a converted folder, a PyTorch file or a name such
    # as hf://USER/NAME, as noah_jax.load_model takes it. Only a run's first start reads it; None
    # means fresh weights.
    config.init_from = placeholder(str)
    config.init_ema = False  # Take the moving average of those weights.

    # The arguments of noah_jax.create_model. Some models have more, such as stem, width and depth.
    config.model = ConfigDict()
    # The registered name; None takes the model of init_from and the normalisation of its images.
    config.model.name = "noah_resnet50"
    # The kind of head, see noah_jax/heads/registry.py; None means the one that the name says. Its
    # own options are in the section head.
    config.model.head = placeholder(str)
    # The images' side, or height and width, in pixels; None means the published size.
    config.model.image_size = placeholder(int)
    # NOAH's N, the number of its blocks; None means the published one.
    config.model.head_num = placeholder(int)
    # NOAH's r, the fraction of the channels that feeds the query; None means the published one.
    config.model.key_ratio = placeholder(float)
    config.model.head_split = True  # Each block of NOAH sees only its own channels.
    config.model.kv_split = True  # NOAH's query and value see different channels.
    config.model.drop_rate = 0.0  # Dropout in the backbone, if it has any.
    config.model.drop_path_rate = 0.0  # Stochastic depth, if the backbone has any.
    config.model.head_drop_rate = 0.0  # Dropout in the head.
    # Images that share BatchNorm's batch statistics; None means the global batch.
    config.model.batch_norm_group = placeholder(int)
    config.model.remat = False  # Save memory at the cost of one more forward pass.
    config.model.dtype = "float32"  # The compute dtype; use "bfloat16" on TPUs and GPUs.

    # The options of the kinds of heads with their published defaults. Only those of the model's own
    # kind count. attention and merge are NOAH's.
    config.head = ConfigDict()
    config.head.attention = "softmax"  # What NOAH's positions are weighed by; uniform is the mean.
    config.head.merge = "sum"  # How NOAH's blocks give one logit: sum, mean or max.
    # Generalised-mean pooling.
    config.head.gem = ConfigDict()
    config.head.gem.p = 3.0  # Where the exponent starts that is learnt.
    # Multi-head attention pooling.
    config.head.map = ConfigDict()
    # The number of attention heads; None means 64 channels for each, as published.
    config.head.map.num_heads = placeholder(int)
    config.head.map.mlp_ratio = 4.0  # Hidden channels of the MLP over the map's.
    # Class-specific residual attention.
    config.head.csra = ConfigDict()
    config.head.csra.num_heads = 1  # The number of heads, whose temperatures differ: 1, 2, 4, 6, 8.
    config.head.csra.lam = 0.1  # The weight of what the attention adds to the mean.
    # SimPool, attention of the mean over the positions.
    config.head.simpool = ConfigDict()
    config.head.simpool.num_heads = 1  # Attention heads, a divisor of the map's channels.
    # The exponent of the pooled values, such as 2 behind convolutions; None sums the values.
    config.head.simpool.gamma = placeholder(float)
    # Efficient probing.
    config.head.ep = ConfigDict()
    # The learnt queries, or the next lower number that divides the value's channels.
    config.head.ep.queries = 32
    config.head.ep.d_out = 1  # What the map's channels are divided by for the value.
    # ML-Decoder.
    config.head.ml_decoder = ConfigDict()
    config.head.ml_decoder.groups = 100  # Queries; the number of classes if that is lower.
    config.head.ml_decoder.width = 768  # Channels of the decoder.
    config.head.ml_decoder.hidden = 2048  # Hidden channels of the decoder's perceptron.
    config.head.ml_decoder.num_heads = 8  # Attention heads, a divisor of the width.
    config.head.ml_decoder.decoder_dropout = 0.1  # Dropout inside the decoder.
    # Class attention.
    config.head.class_attention = ConfigDict()
    config.head.class_attention.depth = 2  # Blocks that the class token goes through.
    config.head.class_attention.head_width = 48  # The fewest channels of an attention head.
    config.head.class_attention.mlp_ratio = 4.0  # Hidden channels of the MLPs over the map's.
    config.head.class_attention.layer_scale = 1e-5  # Where the scales of the branches start.

    # The images, and what the host does to them.
    config.data = ConfigDict()
    config.data.dir = placeholder(str)  # The folder for datasets, TFDS's data_dir.
    # The folder of this machine for shards of buckets and the indices of WebDataset shards; None
    # means ~/.cache/noah_jax/shards.
    config.data.cache_dir = placeholder(str)
    # Gigabytes (10^9 bytes) that the shards of buckets may take there.
    config.data.cache_gb = 64.0
    # How many shards are shuffled together; 0 shuffles all images. None does too, unless the shards
    # are in a bucket and the cache does not hold them; the run's folder keeps what was chosen.
    config.data.shuffle_window = placeholder(int)
    # The name of the split to train on, or a pattern of WebDataset shards.
    config.data.train_split = "train"
    # The name of the split to evaluate on; None means the first that exists of validation, val and
    # test.
    config.data.eval_split = placeholder(str)
    # Go on with a run whose data changed: renamed classes, more images, another order. With
    # init_from, keep a head whose classes have other names.
    config.data.allow_change = False
    # The fraction for evaluation, of class folders that have no splits.
    config.data.eval_fraction = 0.2
    # The mean of pixels in 0..1, one number a channel; None means the model's.
    config.data.mean = placeholder(tuple)
    # The standard deviation of pixels in 0..1, likewise.
    config.data.std = placeholder(tuple)
    config.data.repeats = 1  # Repeated augmentation: copies of each image in an epoch.
    # Drop the images that do not fill a batch at an epoch's end. Otherwise the next epoch's
    # images fill it.
    config.data.drop_last = False
    config.data.crop = "random_resized"  # How training images are cropped.
    config.data.pad = 4  # Pixels around the image before a random crop, for crop=pad.
    config.data.area = (0.08, 1.0)  # The crop's fraction of the image, for crop=random_resized.
    config.data.ratio = (3 / 4, 4 / 3)  # The crop's width over its height, likewise.
    config.data.flip = True  # Flip half of the training images from left to right.
    # How training images are resized; random picks bilinear or bicubic for each image.
    config.data.interpolation = "bilinear"
    config.data.color_jitter = 0.0  # How much brightness, contrast and saturation vary.
    # RandAugment with timm's operations that grow stronger with the magnitude.
    config.data.rand_augment = ConfigDict()
    config.data.rand_augment.num_ops = 0  # Operations drawn for each image; 0 turns it off.
    config.data.rand_augment.magnitude = 9.0  # The mean of the magnitude, in 0..10.
    config.data.rand_augment.magnitude_std = 0.5  # The magnitude's standard deviation.
    # The probability of applying an operation that was drawn.
    config.data.rand_augment.probability = 0.5
    # Apply color_jitter and rand_augment in the training step instead of on the host's cores.
    config.data.augment_on_device = False
    # How images of the evaluation are resized; None means the same as interpolation.
    config.data.eval_interpolation = placeholder(str)
    # The shorter side in pixels before the centre crop; None resizes the image to just cover it.
    config.data.eval_resize = placeholder(int)
    # Resize whole images to the model's size, whatever their shape, instead of cropping the centre:
    # in the evaluation, and in training with crop=none or pad.
    config.data.squash = False
    # What to do about an image that cannot be decoded: replace it by the next one, or stop.
    config.data.on_corrupt_image = "replace"
    config.data.cache = False  # Keep decoded images in memory; for small datasets.
    # Decode and resize training images faster, with pixels that differ slightly from Pillow's.
    config.data.approximate_decode = False
    # What decodes, crops and flips the training images: host, the processor's cores, or dali,
    # NVIDIA DALI on the GPUs, which implies augment_on_device.
    config.data.loader = "host"
    # Threads that decode and transform images; None means one for every core.
    config.data.num_threads = placeholder(int)
    # Worker processes that share these threads. 0 means this process alone; None chooses by the
    # number of cores.
    config.data.num_workers = placeholder(int)

    # What may be None to be chosen by the number of images is marked "(size)"; the rules are in
    # noah_jax/train/choices.py, and the run's folder keeps what was chosen.

    config.epochs = 100.0  # How often the run goes through the training images. (size)
    config.batch_size = 256  # Images per step over all devices. (size)
    # Multiplies batch_size and, by the linear rule, the learning rates in optim.
    config.scale_batch = 1.0
    # Images per step of the evaluation; None means batch_size, divided by optim.accumulate.
    config.eval_batch_size = placeholder(int)

    # softmax for images with one label; for several labels (csv:, coco: or voc:PATH)
    # sigmoid or asymmetric.
    config.loss = "softmax"
    # For loss=asymmetric; see noah_jax/tasks/multi_label.py.
    config.asymmetric = ConfigDict()
    config.asymmetric.gamma_positive = 0.0  # The focusing parameter of present classes.
    config.asymmetric.gamma_negative = 4.0  # The focusing parameter of absent classes.
    # The probability below which an absent class does not count at all.
    config.asymmetric.margin = 0.05
    # Take the focusing factors for constants in the gradient, as the authors' own code does.
    config.asymmetric.constant_focus = False

    # These run on the device, after the transforms in data; see noah_jax/train/mixing.py.

    config.smoothing = 0.0  # The fraction of the target that is spread over all classes.
    config.erase_prob = 0.0  # The probability of erasing a random rectangle of an image.
    # Cutout: the side over the image's of a square that is filled with a random colour.
    config.cutout = 0.0
    config.mixup = 0.0  # The alpha of Beta(alpha, alpha); 0 turns mixup off.
    config.cutmix = 0.0  # The alpha of Beta(alpha, alpha); 0 turns cutmix off.
    config.mix_prob = 1.0  # The probability of mixing the images of a mix_group at all.
    config.mix_switch_prob = 0.5  # The probability of cutmix, if both are on.
    # Images that share one draw of mixup or cutmix; None means the global batch.
    config.mix_group = placeholder(int)

    # The decay of the weights' moving average; None keeps no average, unless ema_span is set.
    config.ema_decay = placeholder(float)
    # Where ema_decay is None: the fraction of the run's steps that the average spans; 0 keeps none.
    config.ema_span = 0.0

    # The optimizer and its learning rate.
    config.optim = ConfigDict()
    # sgd, adamw, or adam, which adds the weight decay to the gradient as PyTorch's Adam does.
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.1  # The peak of the learning rate.
    config.optim.schedule = "cosine"  # How the learning rate goes on after the warm-up.
    # Hold the learning rate during an epoch, as the original recipes do.
    config.optim.per_epoch = False
    # The epochs in which the learning rate rises to its peak. (size)
    config.optim.warmup_epochs = 0.0
    config.optim.warmup_learning_rate = 0.0  # The learning rate at which the warm-up starts.
    # With per_epoch: the first epoch's learning rate is held for this many more epochs.
    config.optim.lr_delay_epochs = 0
    config.optim.final_learning_rate = 0.0  # The rate where cosine and linear end.
    config.optim.step_epochs = (30.0, 60.0, 90.0)  # Each multiplies the rate by 0.1, for step.
    # For schedule=one_cycle, which is PyTorch's OneCycleLR with half cosines and has no warm-up.
    config.optim.one_cycle = ConfigDict()
    config.optim.one_cycle.pct_start = 0.3  # The fraction of the run in which the rate rises.
    config.optim.one_cycle.div_factor = 25.0  # The peak over the rate of the first step.
    config.optim.one_cycle.final_div_factor = 1e4  # The first step's rate over that of the last.
    # The momentum, beta1 for adam and adamw, at the peak, and at the start and the end; None leaves
    # it as it is.
    config.optim.one_cycle.momentum = (0.85, 0.95)
    config.optim.weight_decay = 1e-4  # The strength of the weight decay.
    # True decays every parameter; False spares biases, one-dimensional parameters and those the
    # model names; None does as the model's recipe does.
    config.optim.decay_all = placeholder(bool)
    # The number of micro-batches that a batch is computed in, one after another, if it does not
    # fit into memory at once.
    config.optim.accumulate = 1
    config.optim.momentum = 0.9  # The decay of the momentum, for sgd.
    config.optim.nesterov = False  # Use Nesterov's momentum, for sgd.
    # The largest global norm of the trained parameters' gradients; None does not clip.
    config.optim.clip_grad_norm = placeholder(float)
    # Regular expressions over the parameters' paths, see noah_jax/train/param_groups.py. Frozen
    # parameters stay as they are; BatchNorm's running statistics are still updated, as in PyTorch.
    config.optim.freeze = ()  # For example ("^(?!head/)",), which trains the head alone.
    # Expressions and their factors of the learning rate, for example (("^head/", 10.0),). None is
    # a tenth for all but the head where the run starts from init_from without layer_decay.
    config.optim.param_groups = ()
    # Layer-wise decay of the learning rate: its factor from one layer to the one before it, such as
    # 0.75. The final norm and the head have the whole rate, times their param_groups;
    # see noah_jax/train/layer_decay.py. None gives all layers the same rate.
    config.optim.layer_decay = placeholder(float)
    config.optim.beta1 = 0.9  # The decay of the gradient's moving average, for adam and adamw.
    # The decay of the moving average of the gradient's square, for adam and adamw.
    config.optim.beta2 = 0.999
    config.optim.epsilon = 1e-8  # What adam and adamw add to the denominator.

    # Shard parameters, EMA and optimizer state over the devices instead of replicating them.
    config.shard_state = False

    # Intervals do not change what is learnt.

    config.log_every = 50  # Steps between two lines of the log. (size)
    config.eval_every = placeholder(int)  # Steps between two evaluations; None is an epoch.
    config.checkpoint_every = placeholder(int)  # Steps between checkpoints; None is an epoch.
    config.keep_checkpoints = 3  # The number of checkpoints to keep, the newest ones.
    # Where metrics go besides metrics.jsonl and TensorBoard: wandb, trackio, mlflow. Each follows
    # the environment variables of its own library, such as WANDB_MODE=offline.
    config.trackers = ()
    config.tracker_project = "noah_jax"  # The project there, in MLflow the experiment.
    # The folder of the cache of compiled programs; None or empty for no cache. Only the first
    # process of a run writes there. With several processes the default is a folder inside the
    # run's folder.
    config.compilation_cache = DEFAULT_CACHE
    # Exit with the restartable code if no step or evaluation batch finishes within this many
    # seconds.
    config.watchdog_seconds = 900.0
    return config


def sample_config() -> ConfigDict:
    """Returns what the configurations for the embedded sample of Fashion-MNIST share."""
    config = default_config()
    config.model.image_size = 28
    config.dataset = "fashion_mnist_sample"
    config.data.mean = (0.286, 0.286, 0.286)
    config.data.std = (0.353, 0.353, 0.353)
    config.data.crop = "none"
    config.data.cache = True
    config.data.num_threads = 2
    config.epochs = 4.0
    config.eval_batch_size = 100
    return config


def imagenet_config(
    variant: str, backbones: Sequence[str], *, noah_drop_rate: float = 0.0
) -> ConfigDict:
    """Returns what all ImageNet-1k recipes of the original share, for either head.

    Args:
      variant: One of `backbones` for the linear head, or `noah_` and one of them.
      backbones: The backbones that the calling file has recipes for.
      noah_drop_rate: The dropout rate in the NOAH head; linear heads have no dropout.

    Raises:
      InputError: If the variant is none of these.
    """
    variants = [*backbones, *("noah_" + name for name in backbones)]
    if variant not in variants:
        got = f"got {variant!r}{did_you_mean(variant, variants)}" if variant else "got none"
        raise InputError(
            "--config FILE:VARIANT needs one of the variants"
            f" {', '.join(backbones)}, or noah_ and one of them; {got}"
        )
    config = default_config()
    config.model.name = variant
    if variant.startswith("noah_"):
        config.model.head_drop_rate = noah_drop_rate
    config.dataset = "imagenet2012"
    config.optim.per_epoch = True
    return config


# Keys that a resumed run may change. They change neither weights nor metrics, except for rounding
# (as a change of device count would).
OPERATIONAL_KEYS = frozenset(
    {
        "checkpoint_every",
        "keep_checkpoints",
        "trackers",
        "tracker_project",
        "optim.accumulate",
        "shard_state",
        "compilation_cache",
        "try_next",  # No key any more, but runs of 0.1.0 have it.
        "watchdog_seconds",
        "data.allow_change",
        "data.cache",
        "data.cache_dir",
        "data.cache_gb",
        "data.dir",
        "data.num_threads",
        "data.num_workers",
        "data.on_corrupt_image",
    }
)

# Keys that may be None to be chosen by the number of images, see noah_jax/train/choices.py.
_CHOSEN_BY_SIZE = frozenset(
    {"batch_size", "epochs", "log_every", "optim.warmup_epochs", "optim.param_groups"}
)

# Keys that may differ between the hosts of a run.
HOST_KEYS = frozenset(
    {
        *("data.cache", "data.cache_dir", "data.cache_gb", "data.dir"),
        *("data.num_threads", "data.num_workers"),
    }
)


def flat_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the configuration as one dict with keys such as "optim.momentum"."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= {f"{key}.{inner}": x for inner, x in flat_config(value).items()}
        else:
            flat[key] = value
    return flat


def left_open(key: str, flat: Mapping[str, Any]) -> bool:
    """Says whether a configuration leaves it to the run to choose the value of a key.

    Args:
      key: A key such as "optim.momentum". It may be one that the configuration lacks.
      flat: What `flat_config` returns.
    """
    if key.startswith("head."):
        return flat.get("model.name") is None and flat[key] == default_of(key)
    if flat.get(key) is not None:
        return False
    if key == "ema_decay":
        return bool(flat.get("ema_span"))
    if key.startswith("model.") or key in ("data.mean", "data.std"):
        return flat.get("model.name") is None
    return key in _CHOSEN_BY_SIZE or key == "data.shuffle_window"


def head_key(kind: str, option: str) -> str:
    """Returns the key of an option of a kind of head; NOAH's stand in `config.head` itself."""
    return f"head.{option}" if kind == "noah" else f"head.{kind}.{option}"


def default_of(key: str) -> Any:
    """Returns the default of a key such as "optim.momentum"."""
    return _defaults()[key]


@functools.cache
def _defaults() -> dict[str, Any]:
    return flat_config(default_config())
