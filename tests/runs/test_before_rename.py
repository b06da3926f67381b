"""A run and a converted folder that were made before configuration keys were renamed.

`tests/data/runs/before_rename.zip` was written by commit 8b25734 on Python 3.11 with jax 0.10.2:

- `images/` holds class folders of 3 x 8 training and 3 x 3 evaluation images, 7x7 random pixels
  enlarged to 28x28 (`np.random.RandomState(0)`).
- `run/` is a training run with the configuration of `_config` below, under the keys' old names,
  started as `train(config, "run")` in the folder of `images/`. It was finished (12 steps) and then
  cut back to step 6: `results.json`, the other checkpoints, TensorBoard's events and the lines of
  `metrics.jsonl` after step 6 were deleted.
- `converted/` was written by `convert_torch_weights.py c.pth converted --set image_size=28`, where
  `c.pth` held the golden weights of noah_resnet18 with width=2, num_classes=3 and head_num=2.
- `expected.json` holds what the uninterrupted run left, of the run's last step and of the converted
  folder: results, metrics, and of each array the sum and the L2 norm in float64.
"""

import json
import pathlib
import zipfile

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from noah_jax import load_model
from noah_jax.config import default_config
from noah_jax.config_flags import parse_config
from noah_jax.config_names import RENAMED_KEYS
from noah_jax.errors import InputError, UsageError
from noah_jax.train import train
from noah_jax.train.setup import build
from tests.helpers import ROOT, make_tiny_config

ARCHIVE = ROOT / "tests" / "data" / "runs" / "before_rename.zip"
# Another version of XLA rounds differently; six steps with BatchNorm over four images enlarge it.
TOLERANCE = 1e-4


# What was pinned was computed by optimised programs.
pytestmark = pytest.mark.optimised


def _config():
    """The run's configuration, under the present names of the keys."""
    config = make_tiny_config("folder:images")
    config.data.crop = "random_resized"
    config.data.num_threads = 1
    config.data.area = (0.5, 1.0)
    config.data.approximate_decode = True
    config.data.on_corrupt_image = "stop"
    config.epochs = 4.0
    config.log_every = 2
    config.optim.learning_rate = 0.01
    config.optim.per_epoch = True
    config.optim.lr_delay_epochs = 1
    config.optim.weight_decay = 1e-3
    config.optim.freeze = ("^conv1/",)
    config.optim.param_groups = (("^head/", 3.0), ("^layer4/", 0.5))
    return config


@pytest.fixture
def folder(tmp_path, monkeypatch) -> pathlib.Path:
    """The unpacked archive, which is the current folder, as it was when the run was made."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _sums_and_norms(path: str, **arguments) -> dict[str, list[float]]:
    _, params, stats = load_model(path, **arguments)
    flat = flatten_dict({"params": params, "stats": stats}, sep="/")
    arrays = {key: np.asarray(leaf, np.float64) for key, leaf in flat.items()}
    return {key: [float(x.sum()), float(np.sqrt((x**2).sum()))] for key, x in arrays.items()}


def _assert_close(actual, expected, **tolerance):
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, str):
            assert actual[key] == value
        else:
            np.testing.assert_allclose(actual[key], value, err_msg=key, **tolerance)


def test_an_old_run_resumes_and_ends_as_it_did(folder, capsys):
    pytest.importorskip("cv2")  # for data.approximate_decode
    expected = json.loads((folder / "expected.json").read_text())
    old_config = flatten_dict(json.loads((folder / "run/config.json").read_text()), sep=".")
    assert RENAMED_KEYS.keys() <= old_config.keys()
    defaults = flatten_dict(default_config().to_dict(), sep=".")
    assert all(old_config[old] != defaults[new] for old, new in RENAMED_KEYS.items())

    results = train(_config(), "run")
    captured = capsys.readouterr()
    assert "going on after step 6 of 12" in captured.out
    warnings = [line for line in captured.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert all(f"{old} is now {new}" in warnings[0] for old, new in RENAMED_KEYS.items())

    assert results.pop("num_classes") == 3  # results have it since
    _assert_close(results, expected["results"], rtol=TOLERANCE)
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    for line, wanted in zip(lines, expected["metrics"], strict=True):
        _assert_close({key: line[key] for key in wanted}, wanted, rtol=TOLERANCE)
    for key, arguments in (("run", {}), ("run_ema", {"ema": True})):
        actual = _sums_and_norms("run", **arguments)
        _assert_close(actual, expected[key], rtol=TOLERANCE, atol=TOLERANCE)

    # Its configuration has the present names now, so that nobody is warned again.
    new_config = flatten_dict(json.loads((folder / "run/config.json").read_text()), sep=".")
    assert not RENAMED_KEYS.keys() & new_config.keys()
    train(_config(), "run")
    assert "warning" not in capsys.readouterr().err


def test_another_value_under_an_old_name_is_another_run(folder):
    for section, key, value in (("optim", "param_groups", ()), ("optim", "lr_delay_epochs", 0)):
        config = _config()
        config[section][key] = value
        with pytest.raises(InputError, match=f"{section}.{key} is .* there and .* here"):
            train(config, "run")


def test_old_folders_load(folder):
    expected = json.loads((folder / "expected.json").read_text())
    model, _, _ = load_model("run")
    assert model.name == "noah_resnet18" and model.num_classes == 3
    _assert_close(_sums_and_norms("converted"), expected["converted"], rtol=1e-12)


@pytest.mark.parametrize("old", RENAMED_KEYS)
def test_old_names_are_refused_in_new_configurations(old, tmp_path):
    words = f"no key {old}: it was renamed to {RENAMED_KEYS[old]}"
    with pytest.raises(UsageError, match=words):
        parse_config(["--config=configs/quickstart.py", f"--config.{old}=1"])
    section, _, key = old.partition(".")
    source = "from noah_jax.config import default_config as get_config\n"
    source += f"def get_config(make=get_config):\n    c = make()\n    c.{section}.{key} = 1\n"
    (tmp_path / "c.py").write_text(source + "    return c\n")
    with pytest.raises(UsageError, match=words):
        parse_config([f"--config={tmp_path}/c.py"])
    config = _config()
    config[section][key] = 1
    with pytest.raises(InputError, match=words):
        build(config)
