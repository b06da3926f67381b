"""The configuration: every key, its default and its meaning, in one place.

A file in `configs/` starts from `default_config()` and sets what its result needs; the
command line sets single keys, `--config.optim.learning_rate=0.1`.
"""

import copy
import difflib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import placeholder

from noah_jax.compilation import DEFAULT_CACHE
from noah_jax.errors import InputError, UsageError


def default_config() -> ConfigDict:
    """All keys with their defaults; a placeholder is None until it is set."""
    config = ConfigDict()
    config.seed = 0  # of the weights, the order, the augmentation and the dropout

    config.dataset = "fashion_mnist_sample"  # or a TFDS set's name, folder:PATH, csv:PATH

    # The weights to start with: a run's folder, a converted folder or a PyTorch file, as
    # noah_jax.load_model takes it. Read at the very start alone; None: fresh weights.
    config.init_from = placeholder(str)
    config.init_ema = False  # take their moving average

    config.model = ConfigDict()  # arguments of noah_jax.create_model
    config.model.name = "noah_resnet50"
    config.model.image_size = placeholder(int)  # pixels; None: the published size
    config.model.head_num = placeholder(int)  # NOAH's N; None: the published one
    config.model.key_ratio = placeholder(float)  # NOAH's r; None: the published one
    config.model.head_split = True
    config.model.kv_split = True
    config.model.drop_rate = 0.0  # in the backbone, where it has dropout
    config.model.drop_path_rate = 0.0  # stochastic depth, likewise
    config.model.head_drop_rate = 0.0
    config.model.batch_norm_group = placeholder(int)  # images; None: the global batch
    config.model.remat = False  # less memory for one more forward pass
    config.model.dtype = "float32"  # compute dtype; "bfloat16" on TPU and GPU

    config.data = ConfigDict()
    config.data.dir = placeholder(str)  # TFDS's data_dir
    config.data.train_split = "train"
    config.data.eval_split = placeholder(str)  # None: validation, val or test
    config.data.mean = placeholder(tuple)  # of pixels in 0..1; None: the model's
    config.data.std = placeholder(tuple)
    config.data.repeats = 1  # repeated augmentation: copies of an image in an epoch
    config.data.drop_last = False  # leave out the rest of an epoch; else the next one fills it
    config.data.crop = "random_resized"  # random_resized, pad or none
    config.data.pad = 4  # pixels, for crop=pad
    config.data.area = (0.08, 1.0)  # for crop=random_resized
    config.data.ratio = (3 / 4, 4 / 3)
    config.data.flip = True
    config.data.interpolation = "bilinear"  # bicubic, or random: one of both for each image
    config.data.color_jitter = 0.0  # strength of brightness, contrast and saturation
    config.data.rand_augment = ConfigDict()  # timm's increasing operations
    config.data.rand_augment.num_ops = 0  # drawn for an image; 0: no RandAugment
    config.data.rand_augment.magnitude = 9.0  # mean, in 0..10
    config.data.rand_augment.magnitude_std = 0.5
    config.data.rand_augment.probability = 0.5  # that a drawn operation is applied
    config.data.eval_interpolation = placeholder(str)  # None: as interpolation
    config.data.eval_resize = placeholder(int)  # shorter side in pixels; None: just cover
    config.data.on_damage = "replace"  # undecodable images by the next one; or stop
    config.data.cache = False  # keep decoded images in memory: for small sets
    config.data.fast_images = False  # quicker training images, no longer Pillow's pixels
    config.data.num_threads = placeholder(int)  # None: one for every core
    config.data.num_workers = placeholder(int)  # processes with these threads; 0: this one

    config.epochs = 100.0
    config.batch_size = 256  # images per step over all devices
    # Multiplies batch_size and, by the linear rule, the learning rates of optim.
    config.scale_batch = 1.0
    config.eval_batch_size = placeholder(int)  # None: as batch_size, or a part of it

    # softmax; for images with several labels (csv:PATH, voc, coco) sigmoid or asymmetric.
    config.loss = "softmax"
    config.asymmetric = ConfigDict()  # for loss=asymmetric; see noah_jax/tasks/multi_label.py
    config.asymmetric.gamma_positive = 0.0
    config.asymmetric.gamma_negative = 4.0
    config.asymmetric.margin = 0.05

    # On the device, after the transforms of the data; see noah_jax/train/mixing.py.
    config.smoothing = 0.0  # share of the target that is spread over all classes
    config.erase_prob = 0.0  # of erasing a random rectangle of an image
    config.mixup = 0.0  # alpha of Beta(alpha, alpha); 0: no mixup
    config.cutmix = 0.0  # likewise
    config.mix_prob = 1.0  # of mixing a group at all
    config.mix_switch_prob = 0.5  # of cutmix where both are on
    config.mix_group = placeholder(int)  # images that share a draw; None: the global batch

    config.ema_decay = placeholder(float)  # of the weights' moving average; None: no average

    config.optim = ConfigDict()
    config.optim.name = "sgd"  # or adamw
    config.optim.learning_rate = 0.1  # the peak
    config.optim.schedule = "cosine"  # cosine, linear, constant or step
    config.optim.per_epoch = False  # hold the learning rate during an epoch, as the originals
    config.optim.warmup_epochs = 0.0
    config.optim.warmup_learning_rate = 0.0  # where the warm-up starts
    config.optim.late_epochs = 0  # per_epoch: the first epoch's rate is held as many more
    config.optim.final_learning_rate = 0.0  # where cosine and linear end
    config.optim.step_epochs = (30.0, 60.0, 90.0)  # schedule=step: x0.1 at each
    config.optim.weight_decay = 1e-4
    # Whether weight decay takes every parameter (True) or spares biases, parameters of one
    # dimension and those the model names (False); None: as in the model's recipe.
    config.optim.decay_all = placeholder(bool)
    # In how many parts a batch is computed, one after another, where it does not fit at once.
    config.optim.accumulate = 1
    config.optim.momentum = 0.9  # sgd
    config.optim.nesterov = False  # sgd
    config.optim.clip_grad_norm = placeholder(float)  # global norm of the trained gradients
    # Regular expressions over the parameters' paths, see noah_jax/train/param_groups.py. Frozen
    # parameters stay as they are; BatchNorm's running statistics are still updated, as in PyTorch.
    config.optim.freeze = ()  # such as ("^(?!head/)",), all but the head
    config.optim.groups = ()  # factors of the learning rate, such as (("^head/", 10.0),)
    config.optim.beta1 = 0.9  # adamw
    config.optim.beta2 = 0.999  # adamw
    config.optim.epsilon = 1e-8  # adamw

    # The devices share parameters, average and optimizer state, of which each else holds all.
    config.shard_state = False

    # Steps between ...; None is once an epoch. These do not change what is learnt.
    config.log_every = 50
    config.eval_every = placeholder(int)
    config.checkpoint_every = placeholder(int)
    config.keep_checkpoints = 3
    config.try_next = ()  # commands to suggest when the run has finished
    # Of several processes only the first writes there: their default is in the run's folder.
    config.compilation_cache = DEFAULT_CACHE
    # Without a step, or a part of an evaluation, for so long the process ends as restartable.
    config.watchdog_seconds = 900.0
    return config


def sample_config() -> ConfigDict:
    """What the configurations of the embedded sample of Fashion-MNIST share."""
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
    """What all of the original's ImageNet-1k recipes share, for a backbone with either head.

    Args:
      variant: one of `backbones`, for the linear head, or `noah_` and one of them.
      backbones: what the calling file has.
      noah_drop_rate: dropout in the NOAH head; linear heads have none.

    Raises:
      ValueError: on another variant.
    """
    variants = [*backbones, *("noah_" + name for name in backbones)]
    if variant not in variants:
        near = difflib.get_close_matches(variant, variants, n=1)
        got = f"got {variant!r}" + (f", did you mean {near[0]}?" if near else "")
        raise InputError(
            "--config FILE:VARIANT needs one of the variants"
            f" {', '.join(backbones)}, or noah_ and one of them; {got if variant else 'got none'}"
        )
    config = default_config()
    config.model.name = variant
    if variant.startswith("noah_"):
        config.model.head_drop_rate = noah_drop_rate
    config.dataset = "imagenet2012"
    config.optim.per_epoch = True
    return config


# Keys that a resumed run may change: they alter neither the weights nor the metrics, or as the
# number of devices does, by rounding.
OPERATIONAL_KEYS = frozenset(
    {
        "checkpoint_every",
        "keep_checkpoints",
        "optim.accumulate",
        "shard_state",
        "compilation_cache",
        "try_next",
        "watchdog_seconds",
        "data.cache",
        "data.dir",
        "data.num_threads",
        "data.num_workers",
        "data.on_damage",
    }
)


# Keys that may differ between the hosts of a run.
HOST_KEYS = frozenset({"data.cache", "data.dir", "data.num_threads", "data.num_workers"})


def scaled(config: ConfigDict) -> ConfigDict:
    """The configuration with `scale_batch` carried out (Goyal et al., 2017), where it is not 1.

    All learning rates of the schedule are multiplied as the batch is; what is counted in epochs
    stays, and so does what is set in steps.

    Raises:
      ValueError: if the batch would not be a whole number of images.
    """
    factor = config.scale_batch
    if factor == 1:
        return config
    batch_size = config.batch_size * factor
    if batch_size < 1 or batch_size != int(batch_size):
        raise InputError(
            f"scale_batch={factor:g} makes batch_size={config.batch_size} into {batch_size:g};"
            " it must be a whole number of images"
        )
    config = copy.deepcopy(config)
    config.scale_batch = 1.0
    config.batch_size = int(batch_size)
    for key in ("learning_rate", "warmup_learning_rate", "final_learning_rate"):
        config.optim[key] *= factor
    return config


def parse_command_line(argv: list[str], **own: Any) -> tuple[ConfigDict, dict[str, Any]]:
    """`--config FILE[:VARIANT] [--config.KEY=VALUE ...]` and a program's own flags.

    Args:
      argv: the command line, the program's name first.
      **own: the program's own flags and their defaults, of type bool, int or str; `None` is a
        string that must be given.

    Returns:
      The configuration and the values of the own flags.

    Raises:
      UsageError: on an unknown flag or key, a value of another type, a missing file.
    """
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values)
    define = {bool: flags.DEFINE_boolean, int: flags.DEFINE_integer}
    for name, default in own.items():
        define.get(type(default), flags.DEFINE_string)(name, default, "", flag_values=values)
    own_argv = sys.argv
    try:
        sys.argv = argv  # where config_flags looks for the single keys, whatever is parsed
        rest = values(argv)[1:]
        if rest:
            raise UsageError(f"unexpected argument {rest[0]!r}; flags are --name=value")
        if config.value is None:
            raise UsageError("--config FILE is needed, such as --config configs/quickstart.py")
        _ = config.value.is_locked  # a file that failed to load raises here
    except AttributeError as error:
        cause = error.args[0]
        text = cause.args[0] if isinstance(cause, KeyError) else str(cause)
        words = text.replace('"', "").replace("'", "").split()
        near = f"; did you mean {words[4]}?" if words[1:4] == ["Did", "you", "mean"] else ""
        raise UsageError(f"the configuration has no key {words[0]}{near}") from error
    except OSError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UsageError(f"the configuration file cannot be read: {reason}") from error
    except (flags.Error, ValueError, TypeError, KeyError) as error:
        # A failing file comes with its traceback: the last line says why.
        text = str(error)
        raise UsageError(text.splitlines()[-1] if "Traceback" in text else text) from error
    finally:
        sys.argv = own_argv
    given = {name: values[name].value for name in own}
    if missing := [name for name, value in given.items() if value is None]:
        raise UsageError(f"--{missing[0]} is needed")
    return config.value, given
