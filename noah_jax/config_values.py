"""Says which values every key of a configuration may have, in one table.

What one value tells is checked here: its kind, length, range and finiteness. What several keys tell
together, such as whether a batch can be cut, is checked by the part of the run that uses them.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol

from ml_collections import ConfigDict

from noah_jax.config import flat_config, left_open
from noah_jax.errors import InputError, did_you_mean


class Rule(Protocol):
    """What a key may be.

    Attributes:
      expected: What is expected, as a noun that follows "must be".
    """

    @property
    def expected(self) -> str: ...

    def fits(self, value: Any) -> bool:
        """Returns whether a value is one of them."""


@dataclasses.dataclass(frozen=True)
class Number:
    """A finite number, within bounds that are either included or not.

    Attributes:
      low: The lowest number, included.
      high: The highest number, included.
      above: A lower bound that is not included itself.
      below: An upper bound that is not included itself.
      whole: Whether it must be a whole number.
      note: What the number means, if its name does not say it.
    """

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    whole: bool = False
    note: str = ""

    @property
    def expected(self) -> str:
        kind = "a whole number" if self.whole else "a finite number"
        bounds = [
            f"{word} {bound:.10g}"
            for word, bound in (
                ("of at least", self.low),
                ("above", self.above),
                ("of at most" if math.isinf(self.low) else "and at most", self.high),
                ("below" if math.isinf(max(self.low, self.above)) else "and below", self.below),
            )
            if math.isfinite(bound)
        ]
        return " ".join([kind, *bounds]) + (f" ({self.note})" if self.note else "")

    def fits(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        within = self.low <= value <= self.high and self.above < value < self.below
        return math.isfinite(value) and within


@dataclasses.dataclass(frozen=True)
class Switch:
    """True or False."""

    expected = "True or False"

    def fits(self, value: Any) -> bool:
        return isinstance(value, bool)


@dataclasses.dataclass(frozen=True)
class Text:
    """A text that is not empty, or one of a few.

    Attributes:
      choices: The texts to choose from; any text if there are none.
      may_be_empty: Whether an empty text is one too.
    """

    choices: tuple[str, ...] = ()
    may_be_empty: bool = False

    @property
    def expected(self) -> str:
        return f"one of {', '.join(self.choices)}" if self.choices else "a text"

    def fits(self, value: Any) -> bool:
        if not isinstance(value, str):
            return False
        return value in self.choices if self.choices else bool(value) or self.may_be_empty


@dataclasses.dataclass(frozen=True)
class Several:
    """A sequence of values that each fit another rule.

    Attributes:
      rule: The rule of each.
      length: How many there must be; any number by default.
      rising: Whether none may be below the one before it.
      example: What to write, for the message.
    """

    rule: Rule
    length: int | None = None
    rising: bool = False
    example: str = ""

    @property
    def expected(self) -> str:
        count = f"{self.length} values" if self.length else "a list"
        order = ", none below the one before" if self.rising else ""
        such_as = f", such as {self.example}" if self.example else ""
        return f"{count}, each {self.rule.expected}{order}{such_as}"

    def fits(self, value: Any) -> bool:
        if not isinstance(value, list | tuple) or not all(map(self.rule.fits, value)):
            return False
        if self.length is not None and len(value) != self.length:
            return False
        return not self.rising or list(value) == sorted(value)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A regular expression and a number; `noah_jax.train.param_groups` checks them."""

    expected = "a pair of an expression and a factor"

    def fits(self, value: Any) -> bool:
        return isinstance(value, list | tuple) and len(value) == 2


@dataclasses.dataclass(frozen=True)
class Either:
    """A value that fits one of two rules.

    Attributes:
      first: The usual rule.
      second: The other one.
    """

    first: Rule
    second: Rule

    @property
    def expected(self) -> str:
        return f"{self.first.expected}, or {self.second.expected}"

    def fits(self, value: Any) -> bool:
        return self.first.fits(value) or self.second.fits(value)


@dataclasses.dataclass(frozen=True)
class Optional:
    """None, or a value that fits another rule.

    Attributes:
      rule: The rule of any other value.
    """

    rule: Rule

    @property
    def expected(self) -> str:
        return f"{self.rule.expected}, or None"

    def fits(self, value: Any) -> bool:
        return value is None or self.rule.fits(value)


_COUNT = Number(low=1, whole=True)
_ATTEMPTS = Number(low=0, whole=True)
_NOT_NEGATIVE = Number(low=0)
_POSITIVE = Number(above=0)
_FRACTION = Number(low=0, high=1)
_RATE = Number(low=0, below=1)  # of dropping; 1 would leave nothing
_BETA = Number(low=0, note="the alpha of a Beta distribution; 0 turns it off")
_SWITCH = Switch()
_TEXT = Text()
_INTERPOLATIONS = ("bilinear", "bicubic")

RULES: Mapping[str, Rule] = {
    "seed": Number(low=0, high=2**32 - 1, whole=True),
    "dataset": _TEXT,
    "init_from": Optional(_TEXT),
    "init_ema": _SWITCH,
    "model.name": _TEXT,
    "model.head": Optional(_TEXT),
    "model.image_size": Optional(Either(_COUNT, Several(_COUNT, 2, example="224,192"))),
    "model.head_num": Optional(_COUNT),
    "model.key_ratio": Optional(Number(above=0, below=1)),
    "model.head_split": Optional(_SWITCH),
    "model.kv_split": Optional(_SWITCH),
    "model.drop_rate": _RATE,
    "model.drop_path_rate": _RATE,
    "model.head_drop_rate": _RATE,
    "model.batch_norm_group": Optional(_COUNT),
    "model.remat": _SWITCH,
    "model.dtype": Text(("float32", "bfloat16", "float16", "float64")),
    "head.attention": Text(("softmax", "uniform")),
    "head.merge": Text(("sum", "mean", "max")),
    "head.gem.p": _POSITIVE,
    "head.map.num_heads": Optional(_COUNT),
    "head.map.mlp_ratio": _POSITIVE,
    "head.csra.num_heads": Number(low=1, high=8, whole=True),
    "head.csra.lam": _NOT_NEGATIVE,
    "head.simpool.num_heads": _COUNT,
    "head.simpool.gamma": Optional(_POSITIVE),
    "head.ep.queries": _COUNT,
    "head.ep.d_out": _COUNT,
    "head.ml_decoder.groups": _COUNT,
    "head.ml_decoder.width": _COUNT,
    "head.ml_decoder.hidden": _COUNT,
    "head.ml_decoder.num_heads": _COUNT,
    "head.ml_decoder.decoder_dropout": _RATE,
    "head.class_attention.depth": _COUNT,
    "head.class_attention.head_width": _COUNT,
    "head.class_attention.mlp_ratio": _POSITIVE,
    "head.class_attention.layer_scale": _NOT_NEGATIVE,
    "data.dir": Optional(_TEXT),
    "data.cache_dir": Optional(_TEXT),
    "data.cache_gb": _POSITIVE,
    "data.shuffle_window": Optional(_ATTEMPTS),
    "data.train_split": _TEXT,
    "data.eval_split": Optional(_TEXT),
    "data.eval_fraction": Number(above=0, below=1),
    "data.mean": Optional(Several(Number(low=0, high=1), 3, example="0.485,0.456,0.406")),
    "data.std": Optional(Several(Number(above=0), 3, example="0.229,0.224,0.225")),
    "data.repeats": _COUNT,
    "data.drop_last": _SWITCH,
    "data.crop": Text(("random_resized", "pad", "none")),
    "data.pad": _ATTEMPTS,
    "data.area": Several(Number(above=0, high=1), 2, rising=True, example="0.08,1.0"),
    "data.ratio": Several(_POSITIVE, 2, rising=True, example="0.75,1.33"),
    "data.flip": _SWITCH,
    "data.interpolation": Text((*_INTERPOLATIONS, "random")),
    "data.color_jitter": _NOT_NEGATIVE,
    "data.rand_augment.num_ops": _ATTEMPTS,
    "data.rand_augment.magnitude": Number(low=0, high=10),
    "data.rand_augment.magnitude_std": _NOT_NEGATIVE,
    "data.rand_augment.probability": _FRACTION,
    "data.augment_on_device": _SWITCH,
    "data.eval_interpolation": Optional(Text(_INTERPOLATIONS)),
    "data.eval_resize": Optional(_COUNT),
    "data.squash": _SWITCH,
    "data.allow_change": _SWITCH,
    "data.on_corrupt_image": Text(("replace", "stop")),
    "data.cache": _SWITCH,
    "data.approximate_decode": _SWITCH,
    "data.loader": Text(("host", "dali")),
    "data.num_threads": Optional(_COUNT),
    "data.num_workers": Optional(_ATTEMPTS),
    "epochs": _POSITIVE,
    "batch_size": _COUNT,
    "scale_batch": _POSITIVE,
    "eval_batch_size": Optional(_COUNT),
    "loss": Text(("softmax", "sigmoid", "asymmetric")),
    "asymmetric.gamma_positive": _NOT_NEGATIVE,
    "asymmetric.gamma_negative": _NOT_NEGATIVE,
    "asymmetric.margin": _FRACTION,
    "asymmetric.constant_focus": _SWITCH,
    "smoothing": _FRACTION,
    "cutout": _FRACTION,
    "erase_prob": _FRACTION,
    "mixup": _BETA,
    "cutmix": _BETA,
    "mix_prob": _FRACTION,
    "mix_switch_prob": _FRACTION,
    "mix_group": Optional(_COUNT),
    "ema_span": _FRACTION,
    "ema_decay": Optional(Number(above=0, below=1, note="such as 0.9999")),
    "optim.name": Text(("sgd", "adam", "adamw")),
    "optim.learning_rate": _NOT_NEGATIVE,
    "optim.schedule": Text(("cosine", "linear", "constant", "step", "one_cycle")),
    "optim.per_epoch": _SWITCH,
    "optim.warmup_epochs": _NOT_NEGATIVE,
    "optim.warmup_learning_rate": _NOT_NEGATIVE,
    "optim.lr_delay_epochs": _ATTEMPTS,
    "optim.final_learning_rate": _NOT_NEGATIVE,
    "optim.step_epochs": Several(_NOT_NEGATIVE, rising=True, example="30,60,90"),
    "optim.one_cycle.pct_start": Number(above=0, below=1),
    "optim.one_cycle.div_factor": Number(low=1),
    "optim.one_cycle.final_div_factor": Number(low=1),
    "optim.one_cycle.momentum": Optional(Several(_RATE, 2, rising=True, example="0.85,0.95")),
    "optim.weight_decay": _NOT_NEGATIVE,
    "optim.decay_all": Optional(_SWITCH),
    "optim.accumulate": _COUNT,
    "optim.momentum": _RATE,
    "optim.nesterov": _SWITCH,
    "optim.clip_grad_norm": Optional(_POSITIVE),
    "optim.freeze": Several(_TEXT, example="('^(?!head/)',)"),
    "optim.param_groups": Several(Pair(), example="(('^head/', 10.0),)"),
    "optim.layer_decay": Optional(Number(above=0, high=1)),
    "optim.beta1": _RATE,
    "optim.beta2": _RATE,
    "optim.epsilon": _POSITIVE,
    "shard_state": _SWITCH,
    "log_every": _COUNT,
    "eval_every": Optional(_COUNT),
    "checkpoint_every": Optional(_COUNT),
    "keep_checkpoints": _COUNT,
    "trackers": Several(Text(("wandb", "trackio", "mlflow")), example="('wandb',)"),
    "tracker_project": _TEXT,
    "compilation_cache": Optional(Text(may_be_empty=True)),
    "watchdog_seconds": _POSITIVE,
}


def check_values(config: ConfigDict) -> None:
    """Checks every value of a configuration by itself.

    Args:
      config: The configuration, see `noah_jax.config`. Arguments that only some models have
        (`model.stem`, ...) are left to `create_model`, and what is None because
        the run chooses it is left to the run.

    Raises:
      InputError: If a value does not fit, or a section is missing; the message has the full key.
    """
    flat = flat_config(config)
    for key, rule in RULES.items():
        if key not in flat:
            raise InputError(
                f"the configuration lacks the key {key}; start from"
                " noah_jax.config.default_config()"
            )
        if not rule.fits(flat[key]) and not left_open(key, flat):
            value = flat[key]
            choices = getattr(rule, "choices", ())
            near = did_you_mean(value, choices) if isinstance(value, str) else ""
            raise InputError(f"{key} must be {rule.expected}, got {value!r}{near}")
