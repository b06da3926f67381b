"""Layer-wise learning-rate decay: the order of layers, the updates, and a run that goes on."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from noah_jax import create_model, load_model
from noah_jax.config import default_config
from noah_jax.models import FAMILIES, get_family
from noah_jax.train import main as train_program
from noah_jax.train.layer_decay import layer_scales, number_layers
from noah_jax.train.optimizer import make_optimizer
from noah_jax.train.param_groups import find_param_groups


def _config(**values):
    config = default_config().optim
    config.update(values)
    return config


def _numbers(name, **arguments):
    model = create_model(name, **arguments)
    paths = flatten_dict(model.abstract()[0], sep="/")
    return number_layers(paths, get_family(name).layers)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "deit_tiny_050_patch16_224",
            {
                "cls_token": 0, "pos_embed": 0, "patch_embed/proj/kernel": 0,
                "blocks/0/attn/qkv/kernel": 1, "blocks/11/norm2/scale": 12,
                "norm/scale": 13, "pre_logits/kernel": 13, "head/linear/bias": 13,
            },
        ),
        (
            "noah_vit_small_patch14_reg4_dinov2",
            {
                "reg_token": 0, "blocks/9/ls1": 10, "blocks/10/ls2": 11, "norm/bias": 13,
                "head/query/kernel": 13,
            },
        ),
        (
            "pvt_tiny",
            {
                "pos_embed1": 0, "block1/0/norm1/scale": 1, "block1/1/mlp/fc1/kernel": 2,
                "patch_embed2/norm/scale": 3, "block2/0/attn/sr/kernel": 4,
                "cls_token": 9, "pos_embed4": 9, "block4/1/norm2/bias": 11, "head/linear/bias": 12,
            },
        ),
        (
            "noah_mixer_s16_224",
            {"stem/proj/bias": 0, "blocks/7/norm1/scale": 8, "norm/bias": 9, "head/value/bias": 9},
        ),
        (
            "resnet18",
            {
                "conv1/kernel": 0, "bn1/scale": 0, "layer1/0/conv1/kernel": 1,
                "layer1/1/bn2/bias": 2, "layer2/0/downsample/conv/kernel": 3,
                "layer4/1/conv2/kernel": 8, "head/linear/kernel": 9,
            },
        ),
        (
            "mobilenetv2_035",
            {"layers/0/conv/kernel": 0, "layers/10/expand/conv/kernel": 10, "layers/18/bn/bias": 18,
             "head/linear/kernel": 19},
        ),
        (
            "shufflenetv2_050",
            {"conv1/bn/scale": 0, "stage2/0/branch1/0/conv/kernel": 1,
             "stage3/7/branch2/0/conv/kernel": 12, "stage4/3/branch2/0/conv/kernel": 16,
             "conv5/conv/kernel": 17, "head/linear/bias": 18},
        ),
    ],
)  # fmt: skip
def test_the_order_of_layers(name, expected):
    numbers = _numbers(name)
    assert {path: numbers[path] for path in expected} == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_has_its_place(family):
    """Only what follows the last block is in the last layer, and no number is left out."""
    name = next(iter(FAMILIES[family].architectures))
    for head in ("linear", "noah"):
        numbers = _numbers(name, head=head)
        last = max(numbers.values())
        assert set(numbers.values()) == set(range(last + 1))
        after = {path.split("/")[0] for path, number in numbers.items() if number == last}
        before = {path.split("/")[0] for path, number in numbers.items() if number != last}
        assert "head" in after and after <= {"head", "norm", "pre_logits"} and not before & after


def _toy_params():
    random = np.random.RandomState(0)

    def array(*shape):
        return jnp.asarray(random.standard_normal(shape), jnp.float32)

    block = {"attn": {"kernel": array(2, 3), "bias": array(3)}}
    return {
        "patch_embed": {"kernel": array(2, 2)},
        "blocks": {"0": block, "1": jax.tree.map(jnp.sin, block)},
        "norm": {"scale": array(3)},
        "head": {"kernel": array(3, 2)},
    }


# decay ** (3 - layer), for a decay of 0.7
SCALES = {
    "patch_embed/kernel": 0.343,
    "blocks/0/attn/kernel": 0.49,
    "blocks/0/attn/bias": 0.49,
    "blocks/1/attn/kernel": 0.7,
    "blocks/1/attn/bias": 0.7,
    "norm/scale": 1.0,
    "head/kernel": 1.0,
}
VIT = get_family("deit_tiny_patch16_224").layers


def test_the_scales():
    assert layer_scales(0.7, SCALES, VIT) == pytest.approx(SCALES)
    assert set(layer_scales(1.0, SCALES, VIT).values()) == {1.0}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_an_update_by_hand(name):
    """Scale and group multiply the whole update, weight decay included; frozen ones have none."""
    config = _config(
        name=name,
        layer_decay=0.7,
        weight_decay=0.3,
        decay_all=False,
        param_groups=(("^head/", 10.0), ("blocks/1/.*kernel", 0.5)),
        freeze=("norm",),
    )
    params = _toy_params()
    param_groups = find_param_groups(config, params, layers=VIT)
    optimizer = make_optimizer(
        config, optax.constant_schedule(0.1), decay_all=False, factors=param_groups.rates
    )
    assert param_groups.frozen == {"norm/scale"}
    del params["norm"]
    grads = jax.tree.map(jnp.cos, params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    updates, params, grads = (flatten_dict(tree, sep="/") for tree in (updates, params, grads))
    for path, update in updates.items():
        rate = 0.1 * SCALES[path]
        rate *= {"head/kernel": 10.0, "blocks/1/attn/kernel": 0.5}.get(path, 1.0)
        decayed = 0.0 if path.endswith("bias") else 0.3 * params[path]
        # AdamW's first step is the sign of the gradient.
        step = grads[path] if name == "sgd" else np.sign(grads[path])
        np.testing.assert_allclose(update, -rate * (step + decayed), rtol=1e-4)
    assert list(param_groups.describe(_toy_params()))[-1] == (
        "layer by layer, 4 in all, the learning rate rises from 0.343 to 1 times the schedule's,"
        " times that"
    )


def test_nothing_changes_without():
    params = _toy_params()
    param_groups = find_param_groups(_config(), params, layers=VIT)
    assert param_groups.rates == {} and list(param_groups.describe(params)) == []


def test_an_unknown_order_is_refused():
    with pytest.raises(ValueError, match=r"optim.layer_decay: nobody said.*resnet.*deit"):
        find_param_groups(_config(layer_decay=0.5), _toy_params())


CONFIG = """
from noah_jax.config import default_config

def get_config():
    config = default_config()
    config.update(dict(dataset="{folder}", batch_size=20, eval_batch_size=20, epochs=1.34))
    config.update(dict(log_every=1, checkpoint_every=2, eval_every=4, compilation_cache=""))
    config.model.name, config.model.image_size = "mixer_s16_224", 32
    config.model.width, config.model.depth = 8, 2
    config.optim.update(dict(name="adamw", learning_rate=0.01, layer_decay=0.25))
    return config
"""


def test_a_run_goes_on_as_it_began(class_folders, tmp_path, capsys):
    (tmp_path / "config.py").write_text(CONFIG.format(folder=class_folders))
    command = [f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/run"]
    assert train_program(command) == 0
    said = capsys.readouterr().out
    assert "layer by layer, 4 in all, the learning rate rises from 0.0156 to 1 times" in said
    run = tmp_path / "run"
    _, whole, _ = load_model(str(run))
    shutil.rmtree(run / "checkpoints/4")
    (run / "results.json").unlink()
    assert train_program(command) == 0
    assert "going on after step 2" in capsys.readouterr().out
    _, again, _ = load_model(str(run))
    jax.tree.map(np.testing.assert_array_equal, whole, again)
    assert train_program([*command, "--config.optim.layer_decay=0.5"]) == 1
    assert "optim.layer_decay is 0.25 there and 0.5 here" in capsys.readouterr().err
    assert json.loads((run / "config.json").read_text())["optim"]["layer_decay"] == 0.25
