"""The interpreter of pickles: plain values, placeholders, bounds."""

import argparse
import collections
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest

from noah_jax.errors import ReadError
from noah_jax.pytorch.files.placeholders import NUMPY_CALLS, Global, Opaque, plain
from noah_jax.pytorch.files.unpickle import loads
from tests.helpers import ROOT
from tests.pytorch.files import torch_bytes as tb

PROTOCOLS = range(1, 6)


def _read(data: bytes):
    def no_storage(pid):
        raise ReadError(f"no storage for {pid}")

    return loads(data, NUMPY_CALLS, no_storage)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        [None, True, False, 1, -1, 255, 65535, -(2**31), 2**40, 2**70, -(2**70), 0.1, -1e300],
        ["", "a", "é" * 200, "\U0001f600", "x" * 70_000, "lone \ud800"],
        [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), ((1,), [2])],
        {"a": {"b": {1: {2.5: None, (1, "x"): True}}}},
        [set(), {1, 2}, {"a"}, frozenset({3})],
        [b"", b"ab", b"\xff" * 40],
        list(range(3000)),
        {str(i): i for i in range(3000)},
    ],
    ids=["numbers", "text", "tuples", "dicts", "sets", "bytes", "long list", "long dict"],
)
def test_plain_values_come_back(value, protocol):
    if protocol < 3 and isinstance(value, list) and value[0] == b"":
        value = value[1:]  # written as a call of `bytes`
    assert _read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ordered_and_default_dicts_are_dicts(protocol):
    ordered = collections.OrderedDict(b=1, a=2)
    ordered._metadata = {"version": 1}
    default = collections.defaultdict(list, {"x": [1]})
    back = _read(pickle.dumps([ordered, default], protocol))
    assert back == [{"b": 1, "a": 2}, {"x": [1]}]
    assert [type(value) for value in back] == [dict, dict] and list(back[0]) == ["b", "a"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("module", ["numpy._core", "numpy.core"])
def test_numpy_scalars_are_numbers(protocol, module):
    values = [np.float64(0.1), np.float32(1.5), np.float16(-2), np.bool_(True)]
    values += [np.dtype(code).type(7) for code in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")]
    values += [np.array(3, ">i4")[()], np.array(0.25, ">f8")[()]]
    data = pickle.dumps(values, protocol)
    if module == "numpy.core":  # as NumPy 1 wrote it; the text has its length before it
        data = data.replace(b"\x16numpy._core.multiarray", b"\x15numpy.core.multiarray")
        data = data.replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")
        if protocol >= 4:
            data = data[:2] + data[11:]  # without the frame, whose length has changed
    back = _read(data)
    assert back == [value.item() for value in values]
    assert all(type(value) in (int, float, bool) for value in back)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_unknown_objects_are_placeholders(protocol):
    args = argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("/runs/1"), act=os.getcwd)
    args.itself = args
    value = {"args": args, "counts": collections.Counter("aab"), "class": argparse.Action}
    back = _read(pickle.dumps(value, protocol))
    assert type(back["args"]) is Opaque and back["args"].name == "argparse.Namespace"
    assert back["args"].attributes["lr"] == 0.1
    assert back["args"].attributes["itself"] is back["args"]
    assert back["args"].attributes["act"].name in ("posix.getcwd", "nt.getcwd")
    assert back["counts"].args == ({"a": 2, "b": 1},)
    assert type(back["class"]) is Global and back["class"].name == "argparse.Action"
    description = plain(back)
    assert description["args"]["lr"] == 0.1 and description["args"]["out"] == "/runs/1"
    assert (
        description["counts"] == "<collections.Counter>"
        and description["class"] == "<argparse.Action>"
    )


class Series(list):
    """List with attributes."""


class Table(dict):
    """A dict with attributes."""


@pytest.mark.parametrize("protocol", range(2, 6))
def test_items_of_unknown_containers_are_kept(protocol):
    series, table = Series([1, 2]), Table(a=1)
    series.tag = "x"
    back_series, back_table = _read(pickle.dumps([series, table], protocol))
    assert back_series.items == [1, 2] and back_series.attributes == {"tag": "x"}
    assert back_table.items == [("a", 1)] and back_table.name.endswith(".Table")


def test_a_call_is_remembered_and_not_made(tmp_path):
    target = tmp_path / "owned"
    data = tb.pickled(tb.call(tb.name("os", "system"), tb.text(f"touch {target}")))
    back = _read(data)
    assert (back.name, back.args) == ("os.system", (f"touch {target}",))
    assert not target.exists()
    pickle.loads(data)  # it would have been
    assert target.exists()


def test_plain_values_are_bounded():
    value = ["x" * 5000]
    for _ in range(40):
        value = [value, value]
    value.append(value)
    assert len(repr(plain(value))) < 100_000
    assert plain(["x" * 5000])[0] == "x" * 1000 + "..."
    assert len(plain(list(range(50_000)))) < 20_000


def test_an_error_says_where():
    with pytest.raises(ReadError) as raised:
        _read(b"\x80\x02]\x97.")
    assert str(raised.value).startswith(r"opcode b'\x97' at byte 3 of the pickle: takes a buffer")


def test_hostile_pickles_within_the_systems_limits():
    pytest.importorskip("resource", reason="limits of memory and time need Unix")
    program = pathlib.Path(__file__).parent / "hostile.py"
    done = subprocess.run(
        [sys.executable, program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        timeout=300,
    )
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, f"{last}: {done.stderr[-2000:]}"
    assert last == ["NumPy scalar of no dtype"]
