"""Checks that devices which share the state compute the same numbers in less memory."""

import json
import os
import subprocess
import sys

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from noah_jax import distributed
from tests.helpers import ROOT


@pytest.fixture(scope="module")
def found(class_folders, tmp_path_factory) -> dict:
    """Returns what `sharded_state.py` prints."""
    return _run(class_folders, str(tmp_path_factory.mktemp("checkpoints")))


def _run(*arguments: str) -> dict:
    """Runs `sharded_state.py` on eight devices."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "8",
    }
    command = [sys.executable, str(ROOT / "tests" / "train" / "sharded_state.py"), *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_sharing_the_state_changes_nothing(found):
    assert found["devices"] == 8
    assert found["first"] == 0
    assert found["state"] < 1e-5
    replicated, sharded = found["loss"]
    assert sharded == pytest.approx(replicated, rel=1e-5)


def test_nor_does_computing_the_batch_in_micro_batches(found):
    assert found["micro_batches"] < 1e-5


def test_norms_are_over_all_shards(found):
    replicated, sharded, accumulated = found["norms"]
    assert min(replicated) > 0
    assert sharded == pytest.approx(replicated, rel=1e-5)
    assert accumulated == pytest.approx(replicated, rel=1e-5)


@pytest.mark.slow
def test_batch_norm_groups_that_span_devices_are_the_same_in_micro_batches(class_folders):
    assert _run(class_folders)["micro_batches"] < 1e-5


def test_a_device_holds_less(found):
    replicated, sharded = found["bytes"]
    assert sharded < 0.25 * replicated
    assert found["real_bytes"] == sharded
    # So says XLA of the compiled step, whose batch is small.
    replicated, sharded = found["arguments"]
    assert sharded < 0.25 * replicated
    assert found["donated"][0] == found["donated"][1] > 0


def test_a_checkpoint_is_restored_however_the_devices_hold_it(found):
    replicated, sharded = found["bytes"]
    restored = found["restored"]
    assert [x["difference"] for x in restored.values()] == [0, 0, 0]
    assert restored["sharded to replicated"]["bytes"] == replicated
    assert restored["sharded to fewer"]["devices"] == 4
    assert sharded < restored["sharded to fewer"]["bytes"] < 0.4 * replicated
    assert restored["replicated to sharded"]["bytes"] == sharded


def test_large_arrays_are_split_along_the_longest_axis_that_divides():
    mesh = AbstractMesh((8,), ("data",), (AxisType.Auto,))
    shapes = {
        "kernel": (3, 3, 64, 128),
        "odd": (1001, 1000, 7),
        "small": (128,),
        "indivisible": (1001, 1003),
    }
    tree = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
    placed = distributed.sharded(tree, mesh)
    assert placed["kernel"].spec == PartitionSpec(None, None, None, "data")
    assert placed["odd"].spec == PartitionSpec(None, "data")
    assert placed["small"].spec == placed["indivisible"].spec == PartitionSpec()


def test_shards_that_each_device_has_are_a_batch(found):
    assert found["joined"]
