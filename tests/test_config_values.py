"""What every key of a configuration may be, and what is said of anything else."""

import pytest

from noah_jax.cli import Parser
from noah_jax.config import default_config, flat_config
from noah_jax.config_flags import parse_config
from noah_jax.config_values import RULES, check_values
from noah_jax.errors import InputError, NoahError, UsageError
from noah_jax.train.setup import build

NAN, INFINITE = float("nan"), float("inf")
WRONG = {
    "seed": (-1, 2**32),
    "epochs": (NAN, INFINITE, 0.0, -1.0),
    "batch_size": (0, -8),
    "eval_batch_size": (0,),
    "scale_batch": (NAN, 0.0),
    "smoothing": (-0.1, 1.1, NAN),
    "mixup": (-1.0, INFINITE),
    "cutmix": (NAN,),
    "mix_group": (0,),
    "ema_decay": (0.0, 1.0, 2.0),
    "log_every": (0,),
    "keep_checkpoints": (0, None),
    "watchdog_seconds": (0.0, NAN),
    "loss": ("softmx",),
    "dataset": ("",),
    "model.key_ratio": (0.0, 1.0),
    "model.head_num": (0,),
    "model.drop_rate": (-0.1, 1.0),
    "model.drop_path_rate": (NAN,),
    "model.head_drop_rate": (1.5,),
    "model.batch_norm_group": (0,),
    "model.dtype": ("bfloat",),
    "data.mean": ((0.5,), (0.5, 0.5, NAN), (128.0, 128.0, 128.0)),
    "data.std": ((0.0, 0.0, 0.0), (0.5, 0.5), (0.5, 0.5, INFINITE)),
    "data.area": ((0.5,), (0.9, 0.1), (0.5, 1.5)),
    "data.ratio": ((0.0, 1.0), (2.0, 1.0)),
    "data.crop": ("center",),
    "data.rand_augment.magnitude": (99.0, -1.0),
    "data.rand_augment.num_ops": (-1,),
    "data.num_threads": (0,),
    "data.eval_resize": (0,),
    "optim.learning_rate": (-1.0, NAN, INFINITE),
    "optim.weight_decay": (-1e-4,),
    "optim.momentum": (1.0, -0.1),
    "optim.beta2": (1.0,),
    "optim.epsilon": (0.0,),
    "optim.clip_grad_norm": (0.0, NAN),
    "optim.one_cycle.pct_start": (0.0, 1.0),
    "optim.one_cycle.div_factor": (0.5,),
    "optim.one_cycle.momentum": ((0.95, 0.85), (0.9, 1.0)),
    "optim.step_epochs": ((60.0, 30.0), (NAN,)),
    "optim.accumulate": (0,),
    "optim.schedule": ("cosin",),
}
CASES = [(key, value) for key, values in WRONG.items() for value in values]


def test_every_key_has_a_rule_and_its_default_fits():
    assert set(RULES) == set(flat_config(default_config()))
    check_values(default_config())


@pytest.mark.parametrize(("key", "value"), CASES, ids=str)
def test_a_wrong_value_is_named_with_its_full_key(key, value):
    config = default_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(InputError, match=rf"^{key} must be .*, got ") as error:
        check_values(config)
    assert repr(value) in str(error.value)
    with pytest.raises(InputError, match=rf"^{key} must be "):
        build(config)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "data.mean=0.5",
            r"data.mean must be 3 values, .* such as 0.485,0.456,0.406, or None, got \(0.5,\)",
        ),
        ("epochs=nan", "epochs must be a finite number above 0, got nan"),
        ("eval_batch_size=0", "eval_batch_size must be a whole number of at least 1, or None"),
        ("optim.schedule=cosin", "optim.schedule must be one of .*; did you mean cosine"),
        ("optim.lr=1", r"no key optim.lr; did you mean optim.learning_rate\?"),
        ("weight_decay=1", r"no key weight_decay; did you mean optim.weight_decay\?"),
        ("data.workers=1", r"did you mean data.num_workers\?"),
        ("qqqq=1", "noah_jax/config.py lists all keys"),
        (
            "keep_checkpoints=None",
            "keep_checkpoints must be a whole number of at least 1, got None",
        ),
    ],
)
def test_the_command_line_says_what_fits(word, said):
    with pytest.raises(NoahError, match=said):
        parse_config(["--config=quickstart.py", f"--config.{word}"])


def test_none_unsets_a_key_in_either_form():
    resnet = "--config=resnet.py:noah_resnet50"
    assert parse_config([resnet]).model.batch_norm_group == 32
    config = parse_config(
        [
            *(resnet, "--config.model.batch_norm_group=None", "--config.data.eval_resize", "None"),
            *("--config.init_from=None", "--config.optim.decay_all=None", "--config.data.flip"),
            *("--config.ema_decay=0.9", "--config.ema_decay=None", "--config.data.mean=None"),
            *("--config.mix_group=None", "--config.mix_group=4"),
        ]
    )
    assert config.model.batch_norm_group is None and config.data.eval_resize is None
    assert config.init_from is None and config.optim.decay_all is None
    assert config.ema_decay is None and config.data.mean is None and config.mix_group == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--epochs", "3"], r"did you mean --config.epochs=...\?"),
        (["--lr=0.1"], r"did you mean --config.optim.learning_rate=...\?"),
        (["--batch-size", "3"], r"did you mean --config.batch_size=...\?"),
        (["--workdri", "a"], r"did you mean --workdir\?"),
        (["extra"], "unrecognized arguments: extra; --help"),
    ],
)
def test_a_wrong_flag_gets_a_near_one_or_the_key(words, said):
    parser = Parser("test")
    parser.add_config()
    parser.add_argument("--workdir")
    with pytest.raises(UsageError, match=said):
        parser.parse_args(["--config", "quickstart.py", *words])
