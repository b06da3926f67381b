"""The conversion table in both directions; `test_every_model.py` takes it to every model."""

import gzip
import json

import numpy as np
import pytest

from noah_jax import create_model
from noah_jax.errors import ConversionError
from noah_jax.models import FAMILIES, get_family
from noah_jax.pytorch.golden import golden_state_dict
from noah_jax.pytorch.mapping import to_jax, to_torch
from tests.helpers import GOLDEN


def _abstract(name):
    params, stats = create_model(name).abstract()
    return {"params": params, "stats": stats}


@pytest.fixture(scope="module")
def specs():
    with gzip.open(GOLDEN / "models.json.gz", "rt") as file:
        return json.load(file)


@pytest.mark.parametrize("name", ["resnet18", "noah_resnet50"])
def test_round_trip_is_bit_exact(name, specs):
    state = golden_state_dict(specs[name]["state"])
    table = get_family(name).table
    back = to_torch(to_jax(state, table, _abstract(name)), table)
    counters = {key for key in state if key.endswith("num_batches_tracked")}
    assert back.keys() == state.keys() - counters
    for key, value in back.items():
        np.testing.assert_array_equal(value, state[key], err_msg=key)


def test_the_first_problems_are_listed_and_all_are_counted(specs):
    state = golden_state_dict(specs["resnet18"]["state"])
    del state["bn1.weight"]
    state["surplus.weight"] = np.zeros(3, np.float32)
    state["head.2.weight"] = state["head.2.weight"][:10]
    with pytest.raises(ConversionError) as raised:
        to_jax(state, FAMILIES["resnet"].table, _abstract("resnet18"))
    text = str(raised.value)
    assert "3 problem(s)" in text and "missing key bn1.weight" in text
    assert "extra key surplus.weight" in text
    assert "head.2.weight has shape (10, 512), the model needs (1000, 512)" in text
    for number in range(9):
        state[f"surplus.{number}"] = np.zeros(3, np.float32)
    with pytest.raises(ConversionError, match=r", 12 problem\(s\): .*; and 7 more$") as raised:
        to_jax(state, FAMILIES["resnet"].table, _abstract("resnet18"))
    assert str(raised.value).count(";") == 5
