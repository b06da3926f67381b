"""Tensors in files of torch.save: values, views and bounds."""

import pathlib
import random
import struct
import zipfile

import ml_dtypes
import numpy as np
import pytest

from noah_jax.errors import ReadError
from noah_jax.pytorch.files import torch_file
from noah_jax.pytorch.files.placeholders import Opaque
from noah_jax.pytorch.files.torch_file import read_checkpoint
from tests.helpers import ROOT
from tests.pytorch.files import torch_bytes as tb

FILES = ROOT / "tests" / "data" / "torch"
ROW = np.arange(6, dtype=np.float32).reshape(2, 3)
SHARED = np.arange(24, dtype=np.float32)
DTYPES = [
    *(ml_dtypes.bfloat16, np.float16, np.float32, np.float64),
    *(np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.bool_),
]
# What `scripts/make_torch_fixtures.py` saved.
EXPECTED = {
    **{np.dtype(dtype).name: ROW.astype(dtype) for dtype in DTYPES},
    "parameter": ROW + 1,
    "attribute": ROW + 7,
    "scalar": np.float32(2.5),
    "empty": np.zeros((0, 3), np.float32),
    "transposed": ROW.T,
    "channels_last": SHARED.reshape(1, 2, 3, 4),
    "expanded": np.broadcast_to(np.arange(3, dtype=np.float32), (4, 3)),
    "first": SHARED[:6],
    "last": SHARED[18:].reshape(2, 3),
    "strided": SHARED[1::5],
}


@pytest.mark.parametrize("name", ["tensors.pth", "tensors_protocol5.pth", "legacy.pth"])
def test_every_dtype_and_view_of_torch(name):
    found = {key: value.numpy() for key, value in read_checkpoint(FILES / name).items()}
    assert found.keys() == EXPECTED.keys()
    for key, value in EXPECTED.items():
        assert found[key].dtype == value.dtype and found[key].shape == value.shape, key
        np.testing.assert_array_equal(found[key], value, err_msg=key)
        assert not found[key].flags.writeable
    # Mapped from the file: views of one storage share their memory, strides are kept.
    assert np.shares_memory(found["strided"], found["first"])
    assert not np.shares_memory(found["last"], found["first"])
    assert found["transposed"].strides == (4, 12) and found["expanded"].strides == (0, 4)


def test_what_has_no_array_is_a_placeholder():
    tree = read_checkpoint(FILES / "no_arrays.pth")
    np.testing.assert_array_equal(tree["dense"].numpy(), ROW)
    assert [key for key, value in tree.items() if type(value) is Opaque] == [
        "sparse", "quantized", "complex", "float8", "meta",
    ]  # fmt: skip


def test_script_files_name_the_way_out():
    with pytest.raises(ReadError, match=r"TorchScript.*torch\.jit\.load"):
        read_checkpoint(FILES / "torchscript.pt")


def test_an_old_file_that_is_cut_or_changed_is_refused(tmp_path):
    whole, path = (FILES / "legacy.pth").read_bytes(), tmp_path / "old.pth"
    for size in range(15, len(whole), 61):
        path.write_bytes(whole[:size])
        with pytest.raises(ReadError):
            read_checkpoint(path)
    for old, new, problem in (
        (b"little_endianq\x02\x88", b"little_endianq\x02\x89", "big-endian"),
        (b"\xe9\x03.", b"\xe8\x03.", "in a form not known"),
    ):
        assert old in whole
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(ReadError, match=problem):
            read_checkpoint(path)


def test_a_file_without_checksums():
    tree = read_checkpoint(FILES / "no_checksums.pth")
    np.testing.assert_array_equal(tree["weight"].numpy(), ROW)


def _read(path: pathlib.Path) -> np.ndarray:
    return read_checkpoint(path)["weight"].numpy()


def _check_refused(path: pathlib.Path, problem: str) -> None:
    with pytest.raises(ReadError) as raised:
        _read(path)
    message = str(raised.value)
    assert message.startswith(f"{path}: record 'archive/data.pkl': opcode")
    assert "\n" not in message and problem in message, message


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "expected"),
    [
        ((), (), 4, 4),
        ((2,), (5,), 0, [0, 5]),
        ((3, 2), (0, 1), 2, [[2, 3]] * 3),
        ((1, 2), (10**9, 1), 4, [[4, 5]]),  # the stride along a single element says nothing
        ((0, 5), (1, 1), 0, np.zeros((0, 5))),
        ((0,), (1,), 10**6, np.zeros(0)),
        ((2, 2, 2), (2, 1, 1), 1, [[[1, 2], [2, 3]], [[3, 4], [4, 5]]]),
    ],
)
def test_views_by_hand(tmp_path, shape, strides, offset, expected):
    path = tb.write(tmp_path / "file.pth", tb.tensor(shape, strides, offset))
    np.testing.assert_array_equal(_read(path), np.array(expected, np.float32))


@pytest.mark.parametrize(
    ("tensor", "problem"),
    [
        (tb.tensor((2, 3), (3, 1), 1), "reaches element 6, there are 6"),
        (tb.tensor((2,), (6,)), "reaches element 6, there are 6"),
        (tb.tensor((), (), 6), "reaches element 6, there are 6"),
        (tb.tensor((7,), (1,)), "reaches element 6"),
        (tb.tensor((2, 2), (-1, 1), 3), "strides must be whole numbers"),
        (tb.tensor((-1,), (1,)), "shape must be whole numbers"),
        (tb.tensor((2,), (1,), -1), "offset ?"),
        (tb.tensor((2,), (1, 1)), "1 dimensions with 2 strides"),
        (tb.tensor((1,) * 33, (1,) * 33), "33 dimensions"),
        (tb.tensor((2**62,), (1,)), "shape must be whole numbers"),
        (tb.tensor((2**47, 2**47), (0, 0)), "more elements than the storage"),
        (tb.tensor((2**40,), (0,)), "more elements than the storage"),
        (tb.tensor((0, 2**40), (1, 1)), "more elements than the storage"),
        (tb.tensor((2,), (2**47,)), "reaches element"),
        (tb.tensor(where=tb.storage(numel=7)), "has 24 bytes, expected 7 x 4"),
        (tb.tensor(where=tb.storage(numel=5)), "has 24 bytes, expected 5 x 4"),
        (tb.tensor(where=tb.storage(numel=-1)), "not the id of a storage"),
        (tb.tensor(where=tb.storage(kind="DoubleStorage")), "expected 6 x 8"),
        (tb.tensor(where=tb.storage("1")), "expected record 'archive/data/1'"),
        (tb.NONE + b"Q", "not the id of a storage"),
        (tb.tup(tb.text("module")) + b"Q", "not the id of a storage"),
    ],
)
def test_tensors_outside_their_storage_are_refused(tmp_path, tensor, problem):
    _check_refused(tb.write(tmp_path / "file.pth", tensor), problem)


def test_other_truth_values_than_0_and_1(tmp_path):
    where = tb.storage("b", 4, "BoolStorage")
    path = tb.write(
        tmp_path / "file.pth", tb.tensor((4,), (1,), 0, where), {"data/b": b"\0\1\2\xff"}
    )
    tensor = read_checkpoint(path)["weight"]
    assert tensor.numpy().tobytes() == b"\0\1\1\1"
    # Copied from the file, but once: a thousand views must not take a thousand times its size.
    assert np.shares_memory(tensor.numpy(), tensor.numpy())


def test_an_untyped_storage_with_a_byte_left_over(tmp_path):
    where = tb.storage("b", 5, "UntypedStorage")
    args = [where, tb.number(0), tb.numbers((2,)), tb.numbers((1,)), b"\x89", tb.NONE]
    args.append(tb.name("torch", "uint16"))
    tensor = tb.call(tb.name("torch._utils", "_rebuild_tensor_v3"), *args)
    path = tb.write(tmp_path / "file.pth", tensor, {"data/b": struct.pack("<2HB", 7, 8, 9)})
    assert _read(path).tolist() == [7, 8]


def test_big_endian_files(tmp_path):
    path = tb.write(tmp_path / "file.pth", records={"byteorder": b"big"})
    with pytest.raises(ReadError, match="byte order b'big', expected b'little'"):
        _read(path)
    # Files from before PyTorch 2.1 do not say.
    data = tb.pickled(tb.dictionary(weight=tb.tensor()))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/data/0", tb.SIX_FLOATS)
    np.testing.assert_array_equal(_read(path), ROW)


def test_a_pickle_of_another_scale(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_file, "MAX_PICKLE", 100)
    with pytest.raises(ReadError, match="expected at most 100: the file holds much besides"):
        _read(tb.write(tmp_path / "file.pth"))


# With PyTorch installed.


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def _check_equal(found, expected, torch) -> None:
    if isinstance(expected, torch.Tensor):
        array = found.numpy()
        copy = expected.detach().clone(memory_format=torch.contiguous_format)
        raw = copy.flatten().view(torch.uint8).numpy()
        assert array.shape == tuple(expected.shape)
        assert str(expected.dtype) == f"torch.{array.dtype.name}"
        assert array.tobytes() == raw.tobytes()
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            _check_equal(found[key], value, torch)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            _check_equal(one, other, torch)
    else:
        assert found == expected


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_random_views_of_torch(torch, tmp_path, protocol):
    rng = random.Random(protocol)
    generator = torch.Generator().manual_seed(protocol)
    tensors = {}
    for i in range(60):
        dtype = getattr(torch, np.dtype(rng.choice(DTYPES)).name)
        shape = [rng.randrange(4 if rng.random() < 0.2 else 7) for _ in range(rng.randrange(5))]
        x = torch.randint(0, 256, (*shape, 8), dtype=torch.uint8, generator=generator)
        x = (x > 127)[..., 0] if dtype == torch.bool else x.view(dtype)[..., 0]
        if rng.random() < 0.5 and x.ndim:
            x = x.transpose(0, -1)
        if rng.random() < 0.5 and x.ndim:
            x = x.narrow(0, x.shape[0] // 2, x.shape[0] - x.shape[0] // 2)
        if rng.random() < 0.3:
            x = x.expand(3, *x.shape)
        if rng.random() < 0.3 and x.is_floating_point():
            x = torch.nn.Parameter(x)
        tensors[str(i)] = x
        if rng.random() < 0.3:
            tensors[f"{i} again"] = x.detach()
    path = tmp_path / "file.pth"
    torch.save(tensors, path, pickle_protocol=protocol)
    _check_equal(read_checkpoint(path), tensors, torch)


def test_modules_and_optimizers_of_torch(torch, tmp_path):
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.BatchNorm2d(8),
        torch.nn.Flatten(),
        torch.nn.Linear(288, 5),
    ).to(memory_format=torch.channels_last)
    optimizers = [torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)]
    model(torch.randn(4, 3, 8, 8)).square().mean().backward()
    optimizers += [torch.optim.AdamW(model.parameters(), 0.1)]
    for optimizer in optimizers:
        optimizer.step()
    saved = {
        "model": model.state_dict(),
        "half": model.bfloat16().state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "rng": torch.get_rng_state(),
        "shape": torch.Size([2, 3]),
    }
    path = tmp_path / "file.pth"
    torch.save(saved, path)
    _check_equal(read_checkpoint(path), saved, torch)
    _check_equal(read_checkpoint(path), torch.load(path, weights_only=True), torch)


def test_a_whole_module_is_not_built(torch, tmp_path):
    path = tmp_path / "file.pth"
    torch.save(torch.nn.Linear(2, 2), path)
    found = read_checkpoint(path)
    assert type(found) is Opaque and found.name == "torch.nn.modules.linear.Linear"
