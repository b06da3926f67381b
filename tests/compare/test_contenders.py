"""Tests which configurations are compared: heads, settings, and that nothing else differs."""

import pytest

from noah_jax.compare.__main__ import DEFAULT_CONFIGS
from noah_jax.compare.contenders import find_contenders, head_of_key, labels, variant_for
from noah_jax.compare.sweep import combinations, parse_sweep
from noah_jax.errors import InputError, UsageError
from tests.helpers import ROOT

QUICKSTART = str(ROOT / "configs/quickstart.py")
BOTH = ("linear", "noah")


@pytest.mark.parametrize(
    ("config", "linear", "noah"),
    [
        ("q.py", "q.py:linear", "q.py:noah"),
        ("q.py:noah", "q.py:linear", "q.py:noah"),
        ("c/deit.py:deit_x", "c/deit.py:deit_x", "c/deit.py:noah_deit_x"),
        ("c/deit.py:noah_deit_x", "c/deit.py:deit_x", "c/deit.py:noah_deit_x"),
    ],
)
def test_the_variants_of_the_heads(config, linear, noah):
    assert variant_for(config, "linear") == linear
    assert variant_for(config, "noah") == noah


@pytest.mark.parametrize("config", ["quickstart.py", "sample.py:deit", "resnet.py:noah_resnet18"])
def test_the_heads_of_the_configurations_differ_in_the_head_alone(config):
    linear, noah = find_contenders(str(ROOT / "configs" / config), BOTH, {})
    assert noah.flat["model.name"] == "noah_" + linear.flat["model.name"]
    assert noah.flat["seed"] == linear.flat["seed"]
    assert noah.flat["batch_size"] == linear.flat["batch_size"]


def test_the_recipe_for_own_photographs_has_both_heads():
    linear, noah = find_contenders(str(ROOT / "configs" / "finetune.py"), BOTH, {})
    assert (linear.flat["model.name"], linear.flat["model.head"]) == (None, "linear")
    assert noah.flat == {**linear.flat, "model.head": "noah"}


UNFAIR = """
from noah_jax.config import default_config
def get_config(head):
    config = default_config()
    config.model.name = 'noah_resnet18' if head == 'noah' else 'resnet18'
    config.epochs = 3.0 if head == 'noah' else 2.0
    return config
"""


def test_heads_that_differ_in_more_are_refused(tmp_path):
    path = tmp_path / "unfair.py"
    path.write_text(UNFAIR)
    with pytest.raises(UsageError, match="differ in more than the head: epochs"):
        find_contenders(str(path), BOTH, {})
    assert find_contenders(str(path), BOTH, {}, ["--config.epochs=1"])
    assert find_contenders(str(path), BOTH, {"epochs": ["1", "2"]})
    with pytest.raises(
        UsageError, match="should have the linear head, but its model is noah_resnet18"
    ):
        find_contenders(str(path), ["linear"], {}, ["--config.model.name=noah_resnet18"])


def test_the_packaged_configurations_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for config in DEFAULT_CONFIGS:
        assert find_contenders(config, BOTH, {})[1].flat["model.name"].startswith("noah_")


def test_folders_of_heads_are_called_as_ever():
    linear, noah = find_contenders("quickstart.py", BOTH, {})
    assert linear.folder(0) == "quickstart-linear-seed0"
    assert noah.folder(12) == "quickstart-noah-seed12"
    deit = find_contenders("configs/sample.py:deit", ["noah"], {})[0]
    assert deit.folder(1) == "sample-deit-noah-seed1"


def test_every_combination_is_a_contender():
    sweep = parse_sweep(["config.model.head_num=4,2", "config.model.key_ratio=.25,0.5"])
    contenders = find_contenders("quickstart.py", None, sweep)
    assert [contender.setting for contender in contenders] == [
        {"model.head_num": 4, "model.key_ratio": 0.25},
        {"model.head_num": 4, "model.key_ratio": 0.5},
        {"model.head_num": 2, "model.key_ratio": 0.25},
        {"model.head_num": 2, "model.key_ratio": 0.5},
    ]
    assert labels(contenders)[0] == "head_num=4, key_ratio=0.25"
    assert contenders[1].folder(0) == ("quickstart-noah-model.head_num=4-model.key_ratio=0.5-seed0")
    assert contenders[1].flat["model.name"] == "noah_resnet18"


def test_a_setting_that_a_head_lacks_is_left_out_for_it():
    sweep = parse_sweep(["config.model.head_num=1,2", "config.optim.learning_rate=0.1,0.2"])
    contenders = find_contenders("quickstart.py", BOTH, sweep)
    assert labels(contenders) == [
        "linear, learning_rate=0.1",
        "linear, learning_rate=0.2",
        "noah, head_num=1, learning_rate=0.1",
        "noah, head_num=1, learning_rate=0.2",
        "noah, head_num=2, learning_rate=0.1",
        "noah, head_num=2, learning_rate=0.2",
    ]


def test_values_are_parsed_as_the_flags_of_the_configuration():
    sweep = parse_sweep(
        [
            "config.data.area=(0.08,1.0),(0.5,1.0)",
            "config.optim.nesterov=True,False",
            "config.model.batch_norm_group=None,8",
        ]
    )
    assert [len(values) for values in sweep.values()] == [2, 2, 2]
    first, *_, last = find_contenders("quickstart.py", ["linear"], sweep)
    assert first.flat["data.area"] == [0.08, 1.0] and last.flat["data.area"] == [0.5, 1.0]
    assert (first.flat["optim.nesterov"], last.flat["optim.nesterov"]) == (True, False)
    assert (first.flat["model.batch_norm_group"], last.flat["model.batch_norm_group"]) == (None, 8)
    assert first.folder(0) == (
        "quickstart-linear-data.area=0.08,1-optim.nesterov=True-model.batch_norm_group=None-seed0"
    )


def test_a_comma_in_quotes_separates_no_values():
    sweep = parse_sweep(["config.optim.freeze=(),('^a,b',)"])
    assert sweep == {"optim.freeze": ["()", "('^a,b',)"]}
    assert combinations({}) == [{}]


def test_a_file_without_variants_can_be_swept(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(UNFAIR.replace("(head)", "()").replace("head == 'noah'", "True"))
    contenders = find_contenders(str(path), None, {"model.head_num": ["1", "2"]})
    assert [contender.head for contender in contenders] == ["noah", "noah"]
    assert contenders[0].words[0] == f"--config={path}"


def test_a_warm_up_that_does_not_fit_is_shortened(capsys):
    contenders = find_contenders("quickstart.py", BOTH, {}, ["--config.epochs=0.2"])
    assert [each.flat["optim.warmup_epochs"] for each in contenders] == [0.025, 0.025]
    assert "--config.optim.warmup_epochs=0.025" in contenders[0].words
    assert "epochs=0.2 leaves no room for the warm-up of 0.5 epochs" in capsys.readouterr().err
    # One that fits stays, as does one that the command line sets.
    swept = find_contenders("quickstart.py", ["noah"], {"epochs": ["2", "0.4"]})
    assert [each.flat["optim.warmup_epochs"] for each in swept] == [0.5, 0.05]
    words = ["--config.epochs=0.2", "--config.optim.warmup_epochs=0.3"]
    assert find_contenders("quickstart.py", ["noah"], {}, words)[0].words[-1] == words[-1]


@pytest.mark.parametrize(
    ("key", "head"),
    [
        ("model.key_ratio", "noah"),
        ("head.merge", "noah"),
        ("head.csra.lam", "csra"),
        ("model.width", None),
        ("epochs", None),
    ],
)
def test_which_head_has_a_key(key, head):
    assert head_of_key(key) == head


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["config.model.head_num"], "--sweep takes config.KEY=VALUE,VALUE,..."),
        (["config.model.head_num=1,,2"], "--sweep takes config.KEY=VALUE,VALUE,..."),
        (["config.=1"], "--sweep takes config.KEY=VALUE,VALUE,..."),
        (["config.seed=1,2"], "--sweep cannot vary seed; --seeds does"),
        (["config.model.head=gem,map"], "--sweep cannot vary model.head; --heads does"),
        (["config.epochs=1", "config.epochs=2"], "--sweep names epochs twice"),
        (["config.epochs=1,2,1"], "--sweep repeats a value: config.epochs=1,2,1"),
        (["config.batch_size=1,2"], "batch_size is set by --config.batch_size and varied"),
    ],
)
def test_mistakes_in_a_sweep(words, message):
    with pytest.raises(UsageError, match=message.replace("...", ".*")):
        parse_sweep(words, ["--config.batch_size=8"])


@pytest.mark.parametrize(
    ("config", "heads", "words", "error", "message"),
    [
        ("quickstart.py", None, ["epoch=1"], UsageError, "no key epoch; did you mean epochs"),
        ("quickstart.py", None, ["epochs=much"], UsageError, "much"),
        (
            "quickstart.py",
            None,
            ["batch_size=0,8"],
            InputError,
            "batch_size must be a whole number",
        ),
        ("quickstart.py", None, ["model.head_num=1,3"], InputError, "head_num"),
        ("quickstart.py", None, ["epochs=1,1.0"], UsageError, "is the same twice with epochs=1"),
        (
            "sample.py:deit",
            None,
            ["model.head_num=1"],
            UsageError,
            "of the noah head alone.*give --heads noah",
        ),
        ("quickstart.py", ["linear"], ["head.merge=sum"], UsageError, "give --heads noah"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_any_training(
    config, heads, words, error, message
):
    with pytest.raises(error, match=message):
        find_contenders(config, heads, parse_sweep([f"config.{word}" for word in words]))
