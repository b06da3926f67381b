"""bfloat16 as the compute dtype: what the programs multiply, and what it does to accuracy."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from noah_jax import create_model
from noah_jax.config import default_config
from noah_jax.data.decoding import DecodedSource
from noah_jax.data.sources import open_sources
from noah_jax.models import get_family
from noah_jax.pytorch.files.layouts import load_weights
from noah_jax.pytorch.mapping import to_jax
from noah_jax.train.optimizer import make_optimizer
from noah_jax.train.state import init_state
from noah_jax.train.step import make_train_step

PRODUCT = re.compile(r"stablehlo\.(dot_general|convolution)\b.* : \((.*)\) -> ")
TENSOR = re.compile(r"tensor<(?:\d+x)*(\w+)>")


def _train_step(name: str, **arguments) -> str:
    """The StableHLO of a training step, as it would be compiled for a TPU."""
    model = create_model(name, dtype="bfloat16", head_drop_rate=0.1, **arguments)
    schedule = optax.constant_schedule(0.1)
    optimizer = make_optimizer(default_config().optim, schedule, decay_all=True)
    step = make_train_step(model, optimizer, schedule, seed=0, mean=model.mean, std=model.std)
    state = jax.eval_shape(lambda: init_state(model, optimizer, 0))
    batch = {
        "image": jax.ShapeDtypeStruct((4, *model.image_size, 3), "uint8"),
        "label": jax.ShapeDtypeStruct((4,), "int32"),
    }
    return jax.jit(step).trace(state, batch).lower(lowering_platforms=("tpu",)).as_text()


RATES = dict(drop_rate=0.1, drop_path_rate=0.1)
SHALLOW = dict(RATES, depth=2)
SLOW = pytest.mark.slow  # compiles for 10 to 25 s


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("noah_resnet18", dict(depths=(1, 1, 1, 1))),
        pytest.param("resnet50", dict(remat=True), marks=SLOW),
        pytest.param("noah_mobilenetv2_035", {}, marks=SLOW),
        pytest.param("mobilenetv3_small", {}, marks=SLOW),
        pytest.param("noah_shufflenetv2_050", {}, marks=SLOW),
        ("noah_deit_tiny_050_patch16_224", SHALLOW),
        ("deit_tiny_050_patch16_224", SHALLOW),
        pytest.param("noah_pvt_tiny_050", RATES, marks=SLOW),
        ("noah_mixer_s32_224", SHALLOW),
        pytest.param("gmixer_12_224", RATES, marks=SLOW),
        pytest.param("noah_resmlp_12_224", RATES, marks=SLOW),
        pytest.param("noah_gmlp_ti16_050_224", RATES, marks=SLOW),
    ],
)
def test_no_float32_is_multiplied(name, arguments):
    # Neither forward nor backward; results may be float32.
    products = PRODUCT.findall(_train_step(name, **arguments))
    assert len(products) > 20
    for kind, operands in products:
        assert set(TENSOR.findall(operands)) == {"bf16"}, (kind, operands)


def _sample(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The embedded test images as the checkpoints were trained on them, and their labels."""
    _, source = open_sources("fashion_mnist_sample")
    images, labels = zip(*map(DecodedSource(source).__getitem__, range(len(source))), strict=True)
    pixels = np.stack([image[..., 0] for image in images])
    nearest = np.arange(size) * 28 // size
    normalised = (pixels[:, nearest][:, :, nearest].astype(np.float32) / 255 - 0.286) / 0.353
    return normalised[..., None].repeat(3, axis=-1), np.array(labels)


@pytest.mark.optimised
@pytest.mark.parametrize(
    "case",
    [
        pytest.param("mobilenetv2_035_noah", marks=SLOW),
        "deit_tiny_050_noah",
        "mixer_s16_050_noah",
    ],
)
def test_trained_weights_predict_the_same(case, golden):
    folder = golden / "checkpoints"
    facts = json.loads((folder / "checkpoints.json").read_text())[case]
    if not (folder / facts["file"]).exists():
        pytest.skip(f"{facts['file']} is not among the vectors; give them with --golden")
    state = load_weights(folder / facts["file"]).state_dict
    name = "noah_" + facts["arch"].removeprefix("noah_")
    arguments = {key: facts[key] for key in ("num_classes", "head_num", "key_ratio")}
    if "deit" in name:
        arguments["pre_logits"] = "pre_logits.fc.weight" in state
    images, labels = _sample(64)
    predictions = {}
    for dtype in ("float32", "bfloat16"):
        model = create_model(name, image_size=64, dtype=dtype, **arguments)
        params, stats = model.abstract()
        table = get_family(name).table
        tree = to_jax(state, table, {"params": params, "stats": stats})
        predict = jax.jit(
            lambda tree, images, model=model: model.apply(
                tree["params"], tree.get("stats", {}), images, train=False
            )[0].argmax(-1)
        )
        batches = np.split(images, 8)
        predictions[dtype] = np.concatenate([predict(tree, jnp.asarray(x)) for x in batches])
    assert (predictions["float32"] == predictions["bfloat16"]).mean() >= 0.99
    # Top-1 of all 10,000 test images by the original; these are 2,000 of them.
    accuracy = 100 * (predictions["float32"] == labels).mean()
    assert abs(accuracy - facts["top1"]) < 3
