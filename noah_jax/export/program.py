"""Exports a trained model into a folder that is used without this package."""

import importlib.util
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.export
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save

from noah_jax.console import say, working
from noah_jax.data.interpolation import SQUASH
from noah_jax.errors import MissingPackageError
from noah_jax.export.card import model_card
from noah_jax.export.loading import load_to_export
from noah_jax.export.stablehlo import PLATFORMS, check_exported, export_forward
from noah_jax.files import whole
from noah_jax.inference.trained import TrainedModel
from noah_jax.runs.destination import free_destination

ARTIFACT, DESCRIPTION = "model.stablehlo", "model.json"
WEIGHTS, CARD = "weights.safetensors", "README.md"


def export(
    source: str,
    destination: str,
    *,
    ema: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Exports a trained model into a new folder, and says what is there.

    Args:
      source: Path of the model, see `noah_jax.inference.trained.load_one`.
      destination: A folder, local or `gs://`, that does not exist or is empty. It appears whole or
        not at all.
      ema: Use the exponential moving average of the weights.
      settings: Preprocessing that replaces what is stored with the weights, see
        `noah_jax.data.preprocessing.check_setting`.

    Raises:
      MissingPackageError: If flatbuffers is not installed.
      WriteError: If the folder cannot be written.
      ValueError: If the folder is taken, or the exported program's logits are not the model's.
      FileNotFoundError, CheckpointError: See `load_one`.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise MissingPackageError(
            "jax.export needs flatbuffers, which is not installed; pip install 'noah-jax[export]'"
        )
    target = free_destination(destination, folder=True)
    trained = load_to_export(source, ema=ema, settings=settings)
    with working(f"exporting {trained.model.name}"):
        exported = export_forward(trained)
    with working("comparing the exported program with the model"):
        difference = check_exported(trained, exported)
    description = describe(trained, exported, difference)
    tree = {"params": trained.params, "stats": trained.stats}
    weights = {key: np.asarray(x) for key, x in flatten_dict(tree, sep="/").items()}
    with whole(target, last=DESCRIPTION) as folder:
        folder.mkdir()
        (folder / ARTIFACT).write_bytes(exported.serialize())
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
        (folder / WEIGHTS).write_bytes(save(weights, metadata={"model": trained.model.name}))
        (folder / CARD).write_text(model_card(trained, description))
    megabytes = len(exported.mlir_module_serialized) / 1e6
    say(
        f"{destination}: {trained.model.name}, {megabytes:.1f} MB for {', '.join(PLATFORMS)}; its"
        f" logits differ from the model's by at most {difference:.1e} of their standard deviation"
    )


def describe(
    trained: TrainedModel, exported: jax.export.Exported, difference: float
) -> dict[str, Any]:
    """Describes an exported model for programs; the contents of `model.json`.

    Args:
      trained: The model.
      exported: The exported program.
      difference: How far its logits are from the model's, see `check_exported`.
    """
    model, preprocessing = trained.model, trained.preprocessing
    height, width = preprocessing.size
    squashes = preprocessing.resize == SQUASH
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
            "resize_shorter_side": None if squashes else preprocessing.resize,
            "resize_to_cover": preprocessing.resize is None,
            "resize_whole": squashes,
            "interpolation": preprocessing.interpolation,
            "center_crop": [height, width],
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "normalised_by_the_program": True,
            "source": dict(preprocessing.sources),
        },
        "output": {"dtype": "float32", "shape": ["batch", model.num_classes], "is": "logits"},
        "classes": list(trained.class_names) if trained.class_names else None,
        "class_names": trained.display_names() if trained.class_names else None,
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "jax_version": jax.__version__,
        "difference_from_the_model": difference,
    }
