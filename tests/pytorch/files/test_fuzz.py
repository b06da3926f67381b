"""Random corruption: the reader soon gives an error of its own or the right values.

`pytest -m slow tests/pytorch/files/test_fuzz.py` runs 50 times as many cases.
"""

import random
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from noah_jax.errors import ReadError
from noah_jax.pytorch.files.archive import Archive, map_file
from noah_jax.pytorch.files.layouts import load_weights
from noah_jax.pytorch.files.placeholders import NUMPY_CALLS, plain
from noah_jax.pytorch.files.tensors import TORCH_CALLS, Tensor, load_storage
from noah_jax.pytorch.files.unpickle import loads
from tests.helpers import ROOT
from tests.pytorch.files import torch_bytes as tb

FILES = ROOT / "tests" / "data" / "torch"
SECONDS = 5  # for one case; they take milliseconds

counts = pytest.mark.parametrize(
    "count", [1000, pytest.param(50_000, marks=pytest.mark.slow)], ids=["quick", "long"]
)


def _changed(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, size = rng.randrange(len(out)), rng.randrange(1, 12)
        match rng.randrange(6):
            case 0:
                out[at] = rng.randrange(256)
            case 1:
                out[at] ^= 1 << rng.randrange(8)
            case 2:
                del out[at : at + min(size, len(out) - 1)]
            case 3:
                out[at:at] = rng.randbytes(size)
            case 4:
                out[at : at + size] = rng.choice((b"\0", b"\xff", b"\x7f")) * size
            case _:
                start = rng.randrange(len(out))
                out[at : at + size] = out[start : start + size]
    return bytes(out)


def _look(value, depth: int = 0) -> None:
    """Uses everything in a value, as a caller would."""
    if isinstance(value, dict) and depth < 4:
        for inner in value.values():
            _look(inner, depth + 1)
    elif type(value) is Tensor:
        assert value.numpy().shape == value.shape
    plain(value)


def _run(count: int, case) -> int:
    """Runs `case(rng)` `count` times; returns how often it raised `ReadError`."""
    refused = 0
    for seed in range(count):
        start = time.process_time()
        try:
            case(random.Random(seed))
        except ReadError as error:
            assert "\n" not in str(error)
            refused += 1
        except BaseException as error:
            raise AssertionError(f"seed {seed}") from error
        assert time.process_time() - start < SECONDS, f"seed {seed}"
    return refused


@counts
@pytest.mark.parametrize("name", ["deit.pth", "tensors.pth", "tensors_protocol5.pth"])
def test_changed_pickles(name, count):
    archive = Archive(FILES / name, map_file(FILES / name))
    folder = name.removesuffix(".pth")
    whole = bytes(archive.read(archive.records[f"{folder}/data.pkl"]))

    def case(rng):
        calls = TORCH_CALLS | NUMPY_CALLS
        _look(loads(_changed(whole, rng), calls, lambda pid: load_storage(archive, folder, pid)))

    assert count / 3 < _run(count, case) < count


@counts
def test_changed_files_are_refused_or_read_right(tmp_path, count):
    """Every record has a checksum, so whatever is read was written."""
    name = "timm.pth.tar"
    whole = (FILES / name).read_bytes()
    expected = load_weights(FILES / name)
    path = tmp_path / name

    def case(rng):
        cut = rng.randrange(len(whole)) if rng.random() < 0.2 else len(whole)
        path.write_bytes(_changed(whole, rng)[:cut])
        found = load_weights(path)
        assert found.metadata == expected.metadata
        assert list(found.state_dict) == list(expected.state_dict)
        for key, value in expected.state_dict.items():
            np.testing.assert_array_equal(found.state_dict[key], value)

    assert count / 3 < _run(count, case) < count


@counts
def test_changed_pickles_with_right_checksums(tmp_path, count):
    state = tb.dictionary(**{"module.a": tb.tensor(), "b": tb.tensor((3, 2), (1, 3))})
    whole = tb.pickled(tb.dictionary(state_dict=state, epoch=tb.number(3), acc=tb.tensor((), ())))
    path = tmp_path / "file.pth"

    def case(rng):
        tb.write(path, records={"data.pkl": _changed(whole, rng)})
        for value in load_weights(path, ema=rng.random() < 0.1).state_dict.values():
            assert isinstance(value, np.ndarray) and value.size <= 6

    assert count / 3 < _run(count, case) < count


@counts
def test_changed_safetensors(tmp_path, count):
    path = tmp_path / "file.safetensors"
    save_file({"module.a": np.ones((2, 3), np.float16), "b": np.ones(3), "c": np.zeros(0)}, path)
    whole = path.read_bytes()

    def case(rng):
        path.write_bytes(_changed(whole, rng))
        for value in load_weights(path).state_dict.values():
            assert isinstance(value, np.ndarray) and value.nbytes <= len(whole)

    assert count / 3 < _run(count, case) < count
