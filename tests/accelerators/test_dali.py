"""DALI's graph on NVIDIA GPUs, beside the host's loader."""

import functools

import jax
import numpy as np
import pytest

from noah_jax import distributed
from noah_jax.data.batches import train_batches as host_batches
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.decoding import DecodedSource
from noah_jax.data.sampler import Sampler
from noah_jax.data.transforms import TrainTransform
from noah_jax.train.setup import build
from tests.data.dali.images import Source

pytestmark = pytest.mark.gpu
pytest.importorskip("nvidia.dali")

STEPS = 4


def _batches(make, crop, **options):
    source = Source()
    arguments = dict(start_step=0, total_steps=STEPS, num_threads=4) | options
    return list(
        make(
            DecodedSource(source),
            TrainTransform(crop, (96, 128), interpolation="random"),
            Sampler(3, len(source), 8 * jax.local_device_count()),
            corrupt_images=CorruptImages("replace", lambda text: None),
            **arguments,
        )
    )


def _dali(crop="random_resized", **options):
    from noah_jax.data.dali.loader import train_batches

    mesh = distributed.make_mesh()
    put = functools.partial(distributed.put_batch, mesh=mesh)
    return _batches(train_batches, crop, mesh=mesh, put=put, **options)


@pytest.mark.parametrize("crop", ["random_resized", "pad", "none"])
def test_pixels_are_nearly_the_hosts(crop):
    expected = _batches(host_batches, crop, put=lambda batch: batch)
    differences = []
    for got, host in zip(_dali(crop), expected, strict=True):
        np.testing.assert_array_equal(got["label"], host["label"])
        assert got["image"].dtype == np.uint8
        assert got["image"].sharding.is_equivalent_to(got["label"].sharding, 1)
        differences.append(np.abs(np.asarray(got["image"]).astype(int) - host["image"]))
    differences = np.stack(differences)
    # nvJPEG's cosine transform and its colours are not libjpeg's.
    assert differences.mean() < 1
    assert differences.mean((2, 3, 4)).max() < 3  # of every single image


def test_a_batch_stays_as_it_is_and_comes_again_after_resuming():
    whole = _dali()  # All are held at once: none of DALI's buffers may be written to again.
    for step in range(STEPS):
        for one, other in zip(_dali(start_step=step), whole[step:], strict=True):
            np.testing.assert_array_equal(one["image"], other["image"])


def test_a_step_trains_on_the_batches(tiny_config):
    tiny_config.data.loader, tiny_config.data.color_jitter = "dali", 0.4
    setup = build(tiny_config)
    train_step, _ = setup.steps.compile()
    state = setup.states.create()
    for _, batch in zip(range(3), setup.inputs.train_batches(0), strict=False):
        state, metrics = train_step(state, batch)
        assert np.isfinite(float(metrics.loss.total))
