"""The files of an exported model."""

import contextlib
import importlib.util
import json
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save

from noah_jax.console import say
from noah_jax.errors import InputError
from noah_jax.export.card import model_card
from noah_jax.files import whole
from noah_jax.inference.step import make_predict_step
from noah_jax.inference.trained import TrainedModel, load_one
from noah_jax.runs.destination import free_destination

PLATFORMS = ("cpu", "tpu", "cuda")
ARTIFACT, FACTS, WEIGHTS, CARD = "model.stablehlo", "model.json", "weights.safetensors", "README.md"

_CHECKED = (2, 3)  # images of the batches that the artifact is tried on
# Of the logits' standard deviation. The program is the same, but XLA may fuse it otherwise.
_AGREE = {"float32": 1e-4, "float64": 1e-4}
_AGREE_NARROW = 0.05


def export(source: str, destination: str, *, ema: bool = False) -> None:
    """Writes a trained model into a new folder, and says what there is.

    Args:
      source: what `noah_jax.inference.trained.load_one` takes.
      destination: a folder that does not exist or is empty.
      ema: take the moving average of the weights.

    Raises:
      ValueError: if the folder is taken, something needed is not installed, or the exported
        program's logits are not the model's.
      FileNotFoundError, CheckpointError: see `load_one`.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise InputError(
            "jax.export needs flatbuffers, which is not installed: pip install flatbuffers"
        )
    target = free_destination(destination, folder=True)
    trained = load_one(source, ema=ema)
    exported = export_program(trained)
    difference = _check(trained, exported)
    facts = _facts(trained, exported, difference)
    weights = {"params": trained.params, "stats": trained.stats}
    flat = {key: np.asarray(x) for key, x in flatten_dict(weights, sep="/").items()}
    with whole(target) as partial:
        partial.mkdir()
        (partial / ARTIFACT).write_bytes(exported.serialize())
        (partial / FACTS).write_text(json.dumps(facts, indent=2) + "\n")
        (partial / WEIGHTS).write_bytes(save(flat, metadata={"model": trained.model.name}))
        (partial / CARD).write_text(model_card(trained, facts))
    size = len(exported.mlir_module_serialized) / 1e6
    say(
        f"{destination}: {trained.model.name}, {size:.1f} MB for {', '.join(PLATFORMS)}; its logits"
        f" are within {difference:.1e} of their standard deviation of the model's own"
    )


def export_program(trained: TrainedModel) -> jax.export.Exported:
    """uint8 images `[batch, height, width, 3]` to float32 logits, of any batch, weights included.

    The head is in plain operations that every platform has: no kernel for one of them.
    """
    model = trained.model.portable()
    preprocessing = trained.preprocessing
    predict = make_predict_step(model, mean=preprocessing.mean, std=preprocessing.std)

    def logits(images):
        return predict(trained.params, trained.stats, images)

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *model.image_size, 3), jnp.uint8)
    return jax.export.export(jax.jit(logits), platforms=PLATFORMS)(images)


def _check(trained: TrainedModel, exported: jax.export.Exported) -> float:
    """How far the exported program is from the model, over the logits' standard deviation."""
    platform = jax.default_backend()
    if platform not in ("cpu", "tpu", "gpu"):
        raise InputError(f"the exported program cannot be tried on {platform}; export on a CPU")
    random = np.random.RandomState(0)
    worst = 0.0
    # Accelerators round float32 to fewer bits, in an order of their own.
    wide = (
        jax.default_matmul_precision("float32") if platform != "cpu" else contextlib.nullcontext()
    )
    with wide:
        for count in _CHECKED:
            images = random.randint(0, 256, (count, *trained.model.image_size, 3), np.uint8)
            expected = np.asarray(trained.predict(images))
            found = np.asarray(exported.call(images))
            scale = float(expected.std()) or 1.0
            worst = max(worst, float(np.abs(found - expected).max()) / scale)
    limit = _AGREE.get(str(jnp.dtype(trained.model.arguments["dtype"])), _AGREE_NARROW)
    if not worst <= limit:
        raise InputError(
            f"the exported program's logits differ by {worst:.1e} of their standard deviation from"
            f" the model's, {limit:.0e} is allowed; nothing was written"
        )
    return worst


def _facts(
    trained: TrainedModel, exported: jax.export.Exported, difference: float
) -> dict[str, Any]:
    model, preprocessing = trained.model, trained.preprocessing
    height, width = preprocessing.size
    return {
        "model": model.name,
        "arguments": model.arguments,
        "num_params": model.num_params,
        "checkpoint": {"path": trained.path, "step": trained.step, "ema": trained.ema},
        "input": {
            "dtype": "uint8",
            "shape": ["batch", height, width, 3],
            "channels": "RGB",
            "range": [0, 255],
        },
        "preprocessing": {
            "resize_shorter_side": preprocessing.resize,
            "resize_to_cover": preprocessing.resize is None,
            "interpolation": preprocessing.interpolation,
            "center_crop": [height, width],
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "normalised_by_the_program": True,
        },
        "output": {"dtype": "float32", "shape": ["batch", model.num_classes], "is": "logits"},
        "classes": list(trained.class_names) if trained.class_names else None,
        "class_names": trained.display_names() if trained.class_names else None,
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "jax_version": jax.__version__,
        "difference_from_the_model": difference,
    }
