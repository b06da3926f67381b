"""Weight decay: what it does to parameters of every kind; `test_every_model.py` tells which."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from noah_jax.config import default_config
from noah_jax.train.optimizer import make_optimizer
from tests.models.torch_rules import (
    GOLDEN,
    cached_model,
    torch_keys,
    undecayed_keys,
    undecayed_text,
)

STEPS, RATE, DECAY, MOMENTUM = 3, 0.1, 1.0, 0.9
# One model for every rule and kind of parameter.
MODELS = [
    "noah_resnet18",
    "noah_mobilenetv3_small",
    "deit_tiny_050_patch16_224",
    "pvt_tiny_050",
    "resmlp_12_224",
]


def test_the_golden_text_follows_the_recipes():
    undecayed = undecayed_keys()
    assert undecayed_text() == (GOLDEN / "undecayed.txt").read_text()
    # By hand, from the original's code.
    assert undecayed["resnet50"] == undecayed["noah_mobilenetv2_100"] == set()
    assert {"classifier.query.bias", "features.0.1.weight"} <= undecayed["noah_mobilenetv3_large"]
    assert {"pos_embed", "cls_token", "norm.weight"} <= undecayed["deit_base_patch16_384"]
    assert "cls_token" in undecayed["pvt_large"]
    assert not undecayed["pvt_large"] & {f"pos_embed{stage}" for stage in (1, 2, 3, 4)}
    assert "blocks.0.ls1" in undecayed["resmlp_24_224"]
    assert not {"norm.alpha", "blocks.0.norm1.beta"} & undecayed["resmlp_24_224"]


def _after_decay(model, name):
    """Random parameters of the model's ranks before and after steps without a gradient."""
    random = np.random.RandomState(0)
    before = jax.tree.map(
        lambda x: random.standard_normal((2,) * x.ndim).astype(np.float32), model.abstract()[0]
    )
    config = default_config().optim
    config.update(name=name, weight_decay=DECAY, momentum=MOMENTUM)
    optimizer = make_optimizer(
        config,
        optax.constant_schedule(RATE),
        decay_all=model.architecture.decay_all,
        no_decay=model.architecture.no_decay,
    )
    after, state = before, optimizer.init(before)
    zeros = jax.tree.map(jnp.zeros_like, before)
    for _ in range(STEPS):
        updates, state = optimizer.update(zeros, state, after)
        after = optax.apply_updates(after, updates)
    return flatten_dict(before, sep="/"), flatten_dict(after, sep="/")


def _factor(name):
    """What is left of a decayed parameter, by PyTorch's formulas."""
    if name == "adamw":
        return (1 - RATE * DECAY) ** STEPS
    value, velocity = 1.0, 0.0
    for _ in range(STEPS):
        velocity = MOMENTUM * velocity + DECAY * value
        value -= RATE * velocity
    return value


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", MODELS)
def test_decay_moves_what_it_should_and_nothing_else(name, optimizer):
    model = cached_model(name)
    before, after = _after_decay(model, optimizer)
    for path, key in torch_keys(name, model.abstract()[0]).items():
        if key in undecayed_keys()[name]:
            np.testing.assert_array_equal(after[path], before[path], err_msg=path)
        else:
            expected = _factor(optimizer) * before[path]
            np.testing.assert_allclose(after[path], expected, rtol=1e-5, atol=1e-7, err_msg=path)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", MODELS)
def test_decay_is_that_of_torch_optim(name, optimizer):
    torch = pytest.importorskip("torch")
    model = cached_model(name)
    before, after = _after_decay(model, optimizer)
    keys = torch_keys(name, model.abstract()[0])
    tensors = {path: torch.nn.Parameter(torch.tensor(x)) for path, x in before.items()}
    spared = [x for path, x in tensors.items() if keys[path] in undecayed_keys()[name]]
    decayed = [x for path, x in tensors.items() if keys[path] not in undecayed_keys()[name]]
    groups = [
        {"params": params, "weight_decay": decay}
        for params, decay in ((spared, 0.0), (decayed, DECAY))
        if params
    ]
    if optimizer == "sgd":
        steps = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM)
    else:
        steps = torch.optim.AdamW(groups, lr=RATE)
    for tensor in tensors.values():
        tensor.grad = torch.zeros_like(tensor)
    for _ in range(STEPS):
        steps.step()
    for path, tensor in tensors.items():
        expected = tensor.detach().numpy()
        np.testing.assert_allclose(after[path], expected, rtol=1e-5, atol=1e-7, err_msg=path)
