"""The weights of a PyTorch NOAH head in the Flax module, against the original's logits."""

import json

import numpy as np
import pytest
from flax import nnx

from noah_jax import NOAH
from noah_jax.errors import InputError
from noah_jax.pytorch.golden import golden_tensor
from tests.heads.quick import draw_head, logits


@pytest.fixture(scope="module")
def state_dict():
    head = NOAH(16, num_classes=5, head_num=2, key_ratio=0.25, rngs=nnx.Rngs(params=0))
    return head, {
        "query.weight": np.ones((10, 2, 1, 1)),
        "query.bias": np.zeros(10),
        "value.weight": np.ones((10, 6, 1, 1)),
        "value.bias": np.zeros(10),
    }


@pytest.mark.optimised
@pytest.mark.parametrize("index", range(11))
def test_logits_are_the_originals(index, golden):
    case = json.loads((golden / "head.json").read_text())[index]
    state = {
        key: golden_tensor(f"head{index}.{key}", shape) for key, shape in case["state"].items()
    }
    head = draw_head(
        lambda: NOAH(
            case["channels"],
            case["num_classes"],
            case["head_num"],
            case["key_ratio"],
            head_split=case["head_split"],
            kv_split=case["kv_split"],
            rngs=nnx.Rngs(params=0),
        )
    )
    head.load_torch(state)
    random = np.random.RandomState(1000 + index)
    shape = (3, case["channels"], case["height"], case["width"])
    features = random.standard_normal(shape).astype(np.float32).transpose(0, 2, 3, 1)
    with np.load(golden / "head.npz") as arrays:
        want = arrays[f"{index}/logits"]
    got = np.asarray(logits(head, features))
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"query.bias": None}, r"query\.bias is missing"),
        ({"head.query.bias": np.zeros(10)}, r"head\.query\.bias is another one"),
        ({"value.weight": np.zeros((10, 5, 1, 1))}, r"value\.weight has shape \(10, 5, 1, 1\)"),
        ({"query.bias": np.zeros(5)}, r"query\.bias has shape \(5,\), this head needs \(10,\)"),
    ],
)
def test_what_does_not_fit_changes_nothing(state_dict, change, words):
    head, state = state_dict
    before = np.asarray(head.query.kernel[...])
    state = {key: x for key, x in {**state, **change}.items() if x is not None}
    with pytest.raises(InputError, match=words):
        head.load_torch(state)
    np.testing.assert_array_equal(head.query.kernel[...], before)
