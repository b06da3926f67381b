"""Rematerialisation of the convolutional families; `test_blocks.py` has the others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noah_jax import create_model
from noah_jax.pytorch.golden import golden_images
from tests.models.cnn_checks import weights

QUICK = {"xla_backend_optimization_level": 0}


def _step(model):
    def loss(params, stats, images):
        logits, stats = model.apply(params, stats, images, train=True)
        return jnp.square(logits).mean(), stats

    return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)


@pytest.mark.optimised  # the rounding of other programs depends on the CPU
def test_the_same_numbers():
    results = []
    for remat in (False, True):
        small = dict(num_classes=5, image_size=32, width=8, depths=(1, 1, 1, 1))
        model = create_model("noah_resnet18", **small, remat=remat)
        params, stats = weights(model)
        results.append(_step(model)(params, stats, golden_images(32, batch=4)))
    largest = max(np.abs(x).max() for x in jax.tree.leaves(results[0]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * largest), *results
    )


@pytest.mark.parametrize(
    "name",
    [
        "resnet50",
        pytest.param("noah_mobilenetv2_100", marks=pytest.mark.slow),
        pytest.param("mobilenetv3_large", marks=pytest.mark.slow),
        pytest.param("noah_shufflenetv2_100", marks=pytest.mark.slow),
    ],
)
def test_less_is_kept(name):
    def kept(remat):
        model = create_model(name, remat=remat)
        images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)

        def forward(params, stats, images):
            apply = lambda p: model.apply(p, stats, images, train=True)[0]  # noqa: E731
            return jax.vjp(apply, params)[1]

        residuals = jax.eval_shape(forward, *model.abstract(), images)
        return sum(leaf.size for leaf in jax.tree.leaves(residuals))

    assert kept(True) < 0.5 * kept(False)
