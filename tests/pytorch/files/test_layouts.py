"""Weights and metadata in the files of the training programs."""

import json
import pathlib
import struct

import numpy as np
import pytest
from ml_dtypes import bfloat16
from safetensors.numpy import save_file

from noah_jax.errors import ReadError
from noah_jax.pytorch.files.layouts import load_weights
from tests.helpers import ROOT
from tests.pytorch.files import torch_bytes as tb

FILES = ROOT / "tests" / "data" / "torch"
ROW = np.arange(6, dtype=np.float32).reshape(2, 3)
ARGS = {
    "model": "noah_tiny",
    "lr": 5e-4,
    "output_dir": "/runs/1",
    "sizes": [1, 2],
    "device": "cuda:0",
    "decay": 0.5,
    "resume": None,
    "dtype": "<torch.float16>",
}


@pytest.mark.parametrize(
    ("name", "layout", "has_ema", "metadata"),
    [
        ("cnn.pth.tar", "cnn", False, {"epoch": 3, "acc": 71.5, "best_acc": 71.75}),
        ("deit.pth", "deit", True, {"epoch": 3, "args": ARGS}),
        ("pvt.pth", "pvt", False, {"epoch": 3, "args": ARGS}),
        (
            "timm.pth.tar",
            "timm",
            True,
            {"epoch": 3, "arch": "noah_tiny", "args": ARGS, "version": 2, "metric": 70.25},
        ),
    ],
)
def test_files_of_the_training_programs(name, layout, has_ema, metadata):
    found = load_weights(FILES / name)
    assert (found.layout, found.has_ema, found.weights) == (layout, has_ema, "raw")
    assert found.metadata == metadata and json.dumps(found.metadata)
    assert list(found.state_dict) == ["stem.weight", "head.query.weight"]
    np.testing.assert_array_equal(found.state_dict["stem.weight"], ROW)
    np.testing.assert_array_equal(found.state_dict["head.query.weight"], ROW + 10)
    if has_ema:
        found = load_weights(FILES / name, ema=True)
        assert found.weights == "ema" and found.metadata == metadata
        np.testing.assert_array_equal(found.state_dict["stem.weight"], ROW + 100)
        assert list(found.state_dict) == ["stem.weight", "head.query.weight"]
    else:
        with pytest.raises(ReadError, match=r"no EMA weights in it, only raw ones; it has 'o"):
            load_weights(FILES / name, ema=True)


def test_a_bare_state_dict():
    found = load_weights(FILES / "bare.pth")
    assert (found.layout, found.has_ema, found.metadata) == ("bare", False, {})
    assert list(found.state_dict) == [
        "weight", "bias", "running_mean", "running_var", "num_batches_tracked",
    ]  # fmt: skip
    assert found.state_dict["num_batches_tracked"] == 0


def _write(tmp_path, tree: bytes) -> pathlib.Path:
    return tb.write(tmp_path / "file.pth", records={"data.pkl": tb.pickled(tree)})


def _state(*keys: str) -> bytes:
    """A state dict whose i-th tensor holds numbers from i on."""
    return b"}(" + b"".join(tb.text(k) + _row(i) for i, k in enumerate(keys)) + b"u"


def _row(start: int) -> bytes:
    return tb.tensor((2,), (1,), start)


def _first(array: np.ndarray) -> float:
    return float(array[0])


def test_prefixes_in_any_order_and_nested(tmp_path):
    keys = [
        "module.a.w",
        "_orig_mod.module.b.w",
        "module._orig_mod.module.c.w",
        "model.d._orig_mod.w",
    ]
    path = _write(tmp_path, tb.dictionary(state_dict=_state(*keys)))
    found = load_weights(path).state_dict
    assert {key: _first(value) for key, value in found.items()} == {
        "a.w": 0, "b.w": 1, "c.w": 2, "d.w": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    "tree",
    [
        tb.dictionary(module=_state("w")),
        tb.dictionary(module=tb.dictionary(model=_state("module.w"))),
        tb.dictionary(model=tb.dictionary(state_dict=_state("w"), epoch=tb.number(2))),
        tb.dictionary(model=tb.dictionary(module=_state("w"), ema=_state("x", "y"))),
        tb.dictionary(model_state_dict=_state("w"), loss=_row(1)),
        tb.dictionary(model=tb.text("noah_tiny"), state_dict=_state("w")),
    ],
)
def test_nested_state_dicts(tmp_path, tree):
    found = load_weights(_write(tmp_path, tree))
    assert {key: _first(value) for key, value in found.state_dict.items()} == {"w": 0}
    assert found.layout == "wrapped"


@pytest.mark.parametrize(
    "average",
    [
        _state("x", "w"),
        _state("n_averaged", "module.w"),
        _state("n_averaged", "ema.module.w"),
        tb.dictionary(ema=_state("x", "w"), decay=tb.number(1)),
        tb.dictionary(state_dict_ema=tb.dictionary(module=_state("x", "w")), n_averaged=_row(0)),
        tb.dictionary(module=_state("x", "model.w"), decay=_row(0)),
    ],
)
def test_moving_averages_of_every_shape(tmp_path, average):
    path = _write(tmp_path, tb.dictionary(model=_state("w"), model_ema=average))
    assert _first(load_weights(path).state_dict["w"]) == 0
    found = load_weights(path, ema=True)
    assert _first(found.state_dict["w"]) == 1 and "n_averaged" not in found.state_dict


@pytest.mark.parametrize("wrap", [lambda tree: tree, lambda tree: tb.dictionary(state_dict=tree)])
def test_averages_among_the_keys_of_one_dict(tmp_path, wrap):
    path = _write(tmp_path, wrap(_state("model.w", "model_ema.module.w")))
    raw, average = load_weights(path), load_weights(path, ema=True)
    assert raw.has_ema and list(raw.state_dict) == list(average.state_dict) == ["w"]
    assert (_first(raw.state_dict["w"]), _first(average.state_dict["w"])) == (0, 1)


@pytest.mark.parametrize("name", ["net", "network", "weights", "model_state", "generator.ema"])
def test_a_state_dict_under_a_name_of_the_users_own(tmp_path, name):
    adam = tb.dictionary(state=tb.dictionary(first=tb.dictionary(exp_avg=_row(1))))
    state = tb.dictionary(**{"module.a.w": _row(0), "module.a.b": _row(0)})
    tree = tb.dictionary(**{"epoch": tb.number(3), "optimizer": adam, name: state})
    found = load_weights(_write(tmp_path, tree), ema="ema" in name)
    assert list(found.state_dict) == ["a.w", "a.b"] and found.prefix == "module."
    twice = tb.dictionary(one=state, two=state)
    with pytest.raises(ReadError, match=r"no state dict in it; it has 'one' \(dict\)"):
        load_weights(_write(tmp_path, twice))


def test_a_file_with_averages_only(tmp_path):
    for tree in (tb.dictionary(state_dict_ema=_state("w")), _state("ema.w")):
        path = _write(tmp_path, tree)
        assert _first(load_weights(path, ema=True).state_dict["w"]) == 0
        with pytest.raises(ReadError, match="only EMA weights in it, ask for them"):
            load_weights(path)


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        (tb.dictionary(state_dict=_state("w", "module.w")), "'w' and 'module.w' both name 'w'"),
        (tb.dictionary(state_dict=_state("module.", "module")), "2 problem(s)"),
        (tb.dictionary(w=_row(0), b=tb.NONE), "'b' is a NoneType, expected a dense real tensor"),
        (b"}(" + tb.number(1) + _row(0) + b"u", "key 1 is not the name of a parameter"),
        (_row(0), "holds a Tensor, expected a dict"),
        (b"]", "holds a list, expected a dict"),
        (tb.name("a", "Net") + b")\x81", "holds a.Net, expected a dict; save model.state_dict()"),
        (b"}", "no state dict in it; it is empty"),
        (tb.dictionary(epoch=tb.number(1)), "no state dict in it; it has 'epoch' (int)"),
        (
            tb.dictionary(model=tb.name("a", "Net") + b")\x81", optimizer=b"}"),
            "it has 'model' (a.Net), 'optimizer' (dict)",
        ),
        (b"}q\x00" + tb.text("model") + b"h\x00s", "no state dict in it"),
    ],
)
def test_what_is_no_state_dict(tmp_path, tree, problem):
    path = _write(tmp_path, tree)
    with pytest.raises(ReadError) as raised:
        load_weights(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: ") and problem in message and "\n" not in message


def test_every_tensor_without_an_array_is_listed():
    with pytest.raises(ReadError) as raised:
        load_weights(FILES / "no_arrays.pth")
    message = str(raised.value)
    for part in (
        "5 problem(s)",
        "'sparse' is a sparse tensor",
        "'quantized' is a quantized tensor",
        "'complex' is a tensor of ComplexFloatStorage",
        "'float8' is a tensor of torch.float8_e4m3fn",
        "'meta' is a meta tensor",
    ):
        assert part in message


# safetensors.


def test_safetensors(tmp_path):
    path = tmp_path / "file.weights"  # recognised by its content, not by its name
    saved = {
        "module.bfloat16": ROW.astype(bfloat16),
        "module.scalar": np.array(7, np.int64),
        "module.empty": np.zeros((0, 3), np.float16),
        "module.truth": np.array([True, False, True]),
        "module.row": ROW,
    }
    save_file(saved, path, metadata={"epoch": "3"})
    found = load_weights(path)
    assert (found.layout, found.weights, found.has_ema) == ("safetensors", "raw", False)
    assert found.metadata == {"metadata": {"epoch": "3"}}
    assert found.state_dict.keys() == {key.removeprefix("module.") for key in saved}
    for key, value in saved.items():
        array = found.state_dict[key.removeprefix("module.")]
        assert array.dtype == value.dtype and array.shape == value.shape
        assert array.tobytes() == value.tobytes() and not array.flags.writeable
    with pytest.raises(ReadError, match="no EMA weights"):
        load_weights(path, ema=True)


def _header(shape: list, end: int, dtype: str = "F32") -> dict:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


@pytest.mark.parametrize(
    ("header", "data", "problem"),
    [
        (_header([2], 8), bytes(7), "corrupt or truncated"),
        (_header([3], 8), bytes(8), "corrupt or truncated"),
        (_header([2**40, 2**40], 8), bytes(8), "corrupt or truncated"),
        (_header([0, 2**62], 0), b"", "which no array can have"),
        (_header([1] * 70, 4), bytes(4), "which no array can have"),
        (_header([2], 2, "F8_E4M3"), bytes(2), "dtype F8_E4M3"),
        ({"w": 1}, b"", "corrupt or truncated"),
        ({}, b"", "no state dict in it; it is empty"),
    ],
)
def test_broken_safetensors(tmp_path, header, data, problem):
    path = tmp_path / "file.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    with pytest.raises(ReadError) as raised:
        load_weights(path)
    assert str(raised.value).startswith(f"{path}: ") and problem in str(raised.value)
