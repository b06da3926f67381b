"""Writes `tests/data/torch/`: small files of real torch.save, for tests without PyTorch.

    python scripts/make_torch_fixtures.py tests/data/torch

Needs PyTorch and NumPy 2. `test_torch_file.py` and `test_layouts.py` in `tests/pytorch/files` state
the values, which are rows of whole numbers because every dtype holds these exactly.
"""

from noah_jax.cli import show_help

if __name__ == "__main__":
    show_help(__doc__)  # before the imports that take seconds

import argparse
import collections
import pathlib
import sys

import numpy as np
import torch

_DTYPES = [
    *("bfloat16", "float16", "float32", "float64"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "bool"),
]


def main(folder: pathlib.Path) -> None:
    """Writes every file into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors(), folder / "tensors.pth")
    torch.save(tensors(), folder / "tensors_protocol5.pth", pickle_protocol=5)
    torch.save(no_arrays(), folder / "no_arrays.pth")
    torch.save(tensors(), folder / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.jit.script(torch.nn.Linear(2, 1)).save(str(folder / "torchscript.pt"))
    torch.serialization.set_crc32_options(False)
    torch.save({"weight": row(0)}, folder / "no_checksums.pth")
    torch.serialization.set_crc32_options(True)
    for name, content in checkpoints().items():
        torch.save(content, folder / name)


def row(start: int) -> torch.Tensor:
    """Returns six numbers from `start` on, as [2, 3]."""
    return torch.arange(start, start + 6, dtype=torch.float32).reshape(2, 3)


def tensors() -> dict:
    """Returns tensors of every dtype, and every way to view a storage."""
    shared = torch.arange(24, dtype=torch.float32)
    with_attribute = row(7)
    with_attribute.tag = "kept by torch.save"
    return {
        **{name: torch.arange(6).reshape(2, 3).to(getattr(torch, name)) for name in _DTYPES},
        "parameter": torch.nn.Parameter(row(1)),
        "attribute": with_attribute,
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "transposed": row(0).T,
        "channels_last": torch.arange(24.0)
        .reshape(1, 2, 3, 4)
        .to(memory_format=torch.channels_last),
        "expanded": torch.arange(3.0).expand(4, 3),
        "first": shared[:6],
        "last": shared[18:].reshape(2, 3),
        "strided": shared[1::5],
    }


def no_arrays() -> dict:
    """Returns tensors that NumPy has no array for, and one that it has."""
    return {
        "dense": row(0),
        "sparse": row(0).to_sparse(),
        "quantized": torch.quantize_per_tensor(row(0), 0.5, 0, torch.qint8),
        "complex": torch.ones(2, dtype=torch.complex64),
        "float8": torch.ones(2).to(torch.float8_e4m3fn),
        "meta": torch.zeros(2, device="meta"),
    }


def checkpoints() -> dict[str, dict]:
    """Returns a tiny checkpoint in each training program's layout.

    The numbers of the exponential moving average are 100 higher.
    """
    names = ("stem.weight", "head.query.weight")
    raw = {name: row(10 * i) for i, name in enumerate(names)}
    average = {name: value + 100 for name, value in raw.items()}
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 60])
    args = argparse.Namespace(
        model="noah_tiny", lr=5e-4, output_dir=pathlib.PurePosixPath("/runs/1"), sizes=[1, 2],
        device=torch.device("cuda:0"), decay=np.float32(0.5), resume=None, dtype=torch.float16,
    )  # fmt: skip
    state = {"optimizer": optimizer.state_dict(), "epoch": 3}
    return {
        "cnn.pth.tar": {
            **state,
            "state_dict": {f"module.{name}": value for name, value in raw.items()},
            "acc": torch.tensor(71.5, dtype=torch.float64),
            "best_acc": np.float64(71.75),
        },
        "deit.pth": {
            **state,
            "model": collections.OrderedDict(raw),
            "lr_scheduler": schedule.state_dict(),
            "model_ema": average,
            "scaler": {"scale": 65536.0, "_growth_tracker": 0},
            "args": args,
        },
        "pvt.pth": {**state, "model": raw, "lr_scheduler": schedule.state_dict(), "args": args},
        "timm.pth.tar": {
            **state,
            "arch": "noah_tiny",
            "state_dict": raw,
            "state_dict_ema": {f"module.{name}": value for name, value in average.items()},
            "args": args,
            "version": 2,
            "metric": np.float64(70.25),
        },
        "bare.pth": torch.nn.BatchNorm2d(3).state_dict(),
    }


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
