"""Checks that checkpoints are exact and verified, and that older ones step in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noah_jax.errors import CheckpointError
from noah_jax.runs.checkpoints import (
    Checkpoints,
    checksums,
    host_checksums,
    restore_model,
    save_model,
)


def _state(step=0):
    return {
        "step": jnp.int32(step),
        "params": {
            "kernel": jax.random.normal(jax.random.key(step), (64, 48)),
            "bias": jnp.ones(7),
        },
        "stats": {"mean": jnp.arange(5, dtype=jnp.bfloat16)},
        "opt_state": (jnp.float32(3), {"trace": jnp.zeros((3, 3))}),
    }


def _abstract():
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), _state()
    )


def _saved(folder, steps=(1, 2, 3), keep=3):
    checkpoints = Checkpoints(folder, keep=keep)
    for step in steps:
        checkpoints.save(step, _state(step))
    checkpoints.close()


def _equal(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def _largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def _flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))


def test_restores_the_newest_exactly(tmp_path):
    _saved(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["2", "3"]
    restored = Checkpoints(tmp_path).restore(_abstract())
    assert _equal(restored, _state(3))
    assert jax.tree.structure(restored) == jax.tree.structure(_state())
    weights = {key: _abstract()[key] for key in ("params", "stats")}
    assert _equal(restore_model(tmp_path, weights)[1], {k: _state(3)[k] for k in weights})


def test_nothing_saved_is_no_error(tmp_path):
    assert Checkpoints(tmp_path / "new").restore(_abstract()) is None
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        restore_model(tmp_path / "none", {})


def test_a_flipped_bit_falls_back_to_the_older(tmp_path, capsys):
    _saved(tmp_path)
    _flip_a_bit(_largest_file(tmp_path / "3"))
    checkpoints = Checkpoints(tmp_path)
    assert _equal(checkpoints.restore(_abstract()), _state(2))
    said = capsys.readouterr().out
    assert "step 3 cannot be used" in said and "older checkpoint of step 2" in said
    assert (tmp_path / "damaged-3").is_dir()
    checkpoints.save(3, _state(3))  # the run goes on and saves that step anew
    checkpoints.close()
    assert _equal(Checkpoints(tmp_path).restore(_abstract()), _state(3))


def test_missing_files_fall_back_and_none_left_refuses(tmp_path, capsys):
    _saved(tmp_path, steps=(1, 2))
    _largest_file(tmp_path / "2").unlink()
    assert _equal(Checkpoints(tmp_path).restore(_abstract()), _state(1))
    _flip_a_bit(_largest_file(tmp_path / "1"))
    with pytest.raises(CheckpointError, match="can be used"):
        Checkpoints(tmp_path).restore(_abstract())
    weights = {key: _abstract()[key] for key in ("params", "stats")}
    with pytest.raises(CheckpointError, match="can be used"):
        restore_model(tmp_path, weights)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_any_single_bit_changes_the_checksum(dtype):
    size = 37
    values = np.arange(size) % 2 if dtype == "bool" else np.arange(size) - (dtype != "uint8")
    array = np.asarray(jnp.asarray(values).astype(dtype))
    reference = np.asarray(checksums({"x": jnp.asarray(array)})["x"])
    checksum = jax.jit(checksums)
    random = np.random.RandomState(0)
    for _ in range(60):
        raw = bytearray(array.tobytes())
        bit = 0 if dtype == "bool" else random.randint(8)
        raw[random.randint(len(raw))] ^= 1 << bit
        flipped = np.frombuffer(bytes(raw), array.dtype)
        changed = np.asarray(checksum({"x": jnp.asarray(flipped)})["x"])
        assert np.all(changed != reference)


def test_swapped_values_change_the_checksum():
    x = jnp.arange(12.0).reshape(3, 4)
    assert np.any(checksums({"x": x})["x"] != checksums({"x": x[::-1]})["x"])


def test_a_model_alone(tmp_path):
    state = {key: jax.device_get(_state(3)[key]) for key in ("params", "stats")}
    save_model(tmp_path / "new", state)
    abstract = {key: _abstract()[key] for key in state}
    assert _equal(restore_model(tmp_path / "new", abstract)[1], state)
    _flip_a_bit(_largest_file(tmp_path / "new"))
    with pytest.raises(CheckpointError, match="can be used"):
        restore_model(tmp_path / "new", abstract)


def test_checksums_of_host_and_device_are_the_same():
    random = np.random.RandomState(0)
    tree = {
        "wide": random.standard_normal((2**20 + 3, 2)).astype(np.float32),
        "half": random.standard_normal((3, 5)).astype(jnp.bfloat16),
        "turned": random.standard_normal((4, 6)).astype(np.float32).T,
        "bytes": np.arange(7, dtype=np.uint8),
        "scalar": np.float32(3),
        "truth": np.array([True, False]),
    }
    found = jax.device_get(jax.jit(checksums)(tree))
    assert {k: [int(v) for v in value] for k, value in found.items()} == host_checksums(tree)
