"""The models against the PyTorch forward pass, in settings that no golden vector has."""

import jax
import numpy as np
import pytest
from flax import nnx

from noah_jax.models import create_model
from noah_jax.pytorch.golden import golden_images
from noah_jax.pytorch.reference import example_weights, torch_forward, torch_state

torch = pytest.importorskip("torch")

QUICK = {"xla_backend_optimization_level": 0}
_DINOV2 = dict(num_classes=3, width=32, num_heads=2, depth=2, image_size=(42, 28))
SETTINGS = [
    ("noah_resnet18", dict(num_classes=7, head_num=2, key_ratio=1 / 8, width=8)),
    ("resnet50", dict(num_classes=7, stem="small", width=4, image_size=(24, 40))),
    ("noah_mobilenetv2_035", dict(num_classes=5, head_num=4, key_ratio=1 / 2)),
    ("mobilenetv3_small", dict(num_classes=5)),
    ("mobilenetv3_small", dict(num_classes=5, width_mult=0.5)),
    ("noah_mobilenetv3_small", dict(num_classes=5, head_split=False)),
    ("noah_shufflenetv2_050", dict(num_classes=5, kv_split=False)),
    ("deit_tiny_050_patch16_224", dict(num_classes=3, image_size=(32, 48))),
    ("deit_tiny_patch16_224", dict(width=32, num_heads=2, depth=2, patch_size=8, mlp_ratio=2)),
    ("noah_deit_tiny_050_patch16_224", dict(num_classes=3, head_num=2, image_size=(32, 48))),
    ("vit_small_patch14_dinov2", dict(_DINOV2)),
    ("noah_vit_small_patch14_reg4_dinov2", dict(_DINOV2, image_size=(28, 56))),
    ("pvt_tiny_050", dict(num_classes=3)),
    ("noah_pvt_tiny_050", dict(num_classes=3, head_num=8)),
    (
        "pvt_small",
        dict(
            widths=(16, 16, 32, 32),
            depths=(1, 1, 2, 1),
            num_heads=(2, 4, 4, 2),
            reductions=(4, 2, 2, 1),
            mlp_ratios=(2, 2, 1.5, 1),
        ),
    ),
    ("noah_mixer_s16_050_224", dict(num_classes=3, image_size=(32, 48))),
    ("noah_gmixer_12_224", dict(num_classes=3, image_size=(32, 48))),
    ("resmlp_12_224", dict(num_classes=3, image_size=(48, 32))),
    ("noah_gmlp_ti16_050_224", dict(num_classes=3, head_num=2, image_size=(48, 32))),
]


@pytest.mark.parametrize(("name", "arguments"), SETTINGS, ids=[name for name, _ in SETTINGS])
def test_pytorch_computes_the_same_logits(name, arguments):
    model = create_model(name, **{"image_size": (32, 64), **arguments})
    params, stats = example_weights(model)
    height, width = model.image_size
    if name.endswith("pvt_tiny_050"):  # of another size than the position embeddings
        height += 32
    if "dinov2" in name:
        width += 14
    images = golden_images(128)[:, :height, :width]
    apply = jax.jit(model.apply, static_argnames="train", compiler_options=QUICK)
    actual = np.asarray(apply(params, stats, images, train=False)[0])
    state = {key: tensor.double() for key, tensor in torch_state(model, params, stats).items()}
    with torch.inference_mode():
        pixels = torch.from_numpy(images.astype(np.float64)).permute(0, 3, 1, 2)
        expected = torch_forward(model)(state, pixels).numpy()
    assert actual.shape == expected.shape and expected.std() > 0
    np.testing.assert_allclose(actual, expected, atol=2e-4 * expected.std())


def test_a_head_of_the_users_own_is_refused():
    head = nnx.Linear(512, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="resnet18 has a Linear"):
        torch_forward(create_model("resnet18", head=head))
