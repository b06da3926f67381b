"""Writes the model card of a folder for Hugging Face's hub: metadata in YAML, then Markdown."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from noah_jax.export.card import (
    describe_resize,
    introduction,
    metrics_table,
    recorded_metrics,
)
from noah_jax.hub.names import HUGGING_FACE, parse_hub_name
from noah_jax.inference.trained import TrainedModel
from noah_jax.models.pretrained import pretrained_weights
from noah_jax.pytorch.timm_layout import TimmLayout

TASK = "image-classification"
# The hub's names of datasets that have other names here.
_DATASETS = {
    "imagenet2012": "ILSVRC/imagenet-1k",
    "fashion_mnist_sample": "zalando-datasets/fashion_mnist",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
    "mnist": "ylecun/mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
}
_OF_THE_HUB = "hf:"
# What was measured, by its key in a run's metrics: the hub's type and a name for people.
_METRICS = {
    "top1": ("accuracy", "Top-1 accuracy"),
    "map": ("mean_average_precision", "Mean average precision"),
    "of1": ("f1", "Overall F1"),
}


def hub_card(
    trained: TrainedModel,
    layout: TimmLayout | None,
    *,
    modeling: bool,
    training: Mapping[str, Any],
    licence: str | None = None,
    repository: str | None = None,
) -> str:
    """Returns the card: metadata, how to load the model, preprocessing, metrics, configuration.

    Args:
      trained: The model.
      layout: How timm makes it, if timm can.
      modeling: Whether `modeling_noah.py` lies beside the card.
      training: The configuration of the training, without paths of this machine.
      licence: The identifier of the licence; `None` takes that of published weights, if known.
      repository: The name of the repository, if it has one.
    """
    metadata = _metadata(trained, layout, training, licence)
    header = "\n".join(["---", *_yaml(metadata), "---"])
    sections = (
        introduction(trained),
        _use(trained, layout, modeling, repository or "USER/NAME"),
        _images(trained),
        metrics_table(trained),
        _provenance(trained, training),
    )
    return "\n\n".join([header, *("\n".join(lines) for lines in sections)]) + "\n"


def _metadata(
    trained: TrainedModel,
    layout: TimmLayout | None,
    training: Mapping[str, Any],
    licence: str | None,
) -> dict[str, Any]:
    """Returns the metadata by the hub's keys; what is not known is left out."""
    source = (trained.metadata.get("source") or {}).get("from") or trained.path
    start = str(training.get("init_from") or source)
    dataset = _dataset(training)
    metadata: dict[str, Any] = {
        "license": licence or _licence(source),
        "library_name": "timm" if layout else "noah_jax",
        "pipeline_tag": TASK,
        "tags": [TASK, "noah_jax", "jax", "pytorch", *(["timm"] if layout else [])],
        "base_model": (
            parse_hub_name(start).repository if start.startswith(HUGGING_FACE) else None
        ),
        "datasets": [dataset] if dataset else None,
    }
    if trained.model.arguments["head"] == "noah":
        metadata["tags"].append("noah")
    recorded = recorded_metrics(trained)
    if recorded is not None:
        measured = {key: x for key, x in _METRICS.items() if isinstance(recorded.get(key), float)}
        metadata["metrics"] = [kind for kind, _ in measured.values()]
        name = str(training.get("dataset"))
        metadata["model-index"] = [
            {
                "name": trained.model.name,
                "results": [
                    {
                        "task": {"type": TASK},
                        "dataset": {"name": name, "type": dataset or name},
                        "metrics": [
                            {"type": kind, "name": title, "value": round(recorded[key] / 100, 6)}
                            for key, (kind, title) in measured.items()
                        ],
                    }
                ],
            }
        ]
    return {key: value for key, value in metadata.items() if value}


def _licence(source: str) -> str | None:
    """Returns the licence of published weights; `None` if nobody says."""
    name = source.partition("@")[0]
    return next((row.licence for row in pretrained_weights() if row.source == name), None)


def _dataset(training: Mapping[str, Any]) -> str | None:
    """Returns the hub's name of the training's dataset; `None` if it has none."""
    name = str(training.get("dataset") or "")
    if name.startswith(_OF_THE_HUB):
        name = name.removeprefix(_OF_THE_HUB).partition("@")[0].partition(":")[0]
        return name if name.count("/") <= 1 else None
    return _DATASETS.get(name.partition(":")[0])


def _yaml(value: Any, indent: str = "") -> Iterator[str]:
    """Yields lines of YAML for nested dicts and lists; scalars are written as JSON."""
    items = value.items() if isinstance(value, Mapping) else ((None, item) for item in value)
    for key, item in items:
        start = f"{indent}-" if key is None else f"{indent}{key}:"
        if not isinstance(item, Mapping | list):
            yield f"{start} {json.dumps(item)}"
        elif key is None:  # a list's item starts on the line of its dash
            first, *others = _yaml(item, f"{indent}  ")
            yield f"{start} {first.lstrip()}"
            yield from others
        else:
            yield start
            yield from _yaml(item, f"{indent}  " if isinstance(item, Mapping) else indent)


def _use(
    trained: TrainedModel, layout: TimmLayout | None, modeling: bool, repository: str
) -> Iterator[str]:
    yield "## Use"
    yield ""
    if layout is not None:
        yield "In timm, whose names the weights have:"
        yield ""
        yield "```python"
        yield "import timm"
        yield ""
        yield f'model = timm.create_model("hf_hub:{repository}", pretrained=True).eval()'
        yield "data = timm.data.resolve_model_data_config(model)"
        yield "transform = timm.data.create_transform(**data, is_training=False)"
        yield "```"
    elif modeling:
        yield (
            "In PyTorch, by `modeling_noah.py` in this folder, which needs torch and safetensors"
            " alone. timm has no such model; the weights have the names of the authors' code."
        )
        yield ""
        yield "```python"
        yield "import sys"
        yield "from huggingface_hub import snapshot_download"
        yield "from PIL import Image"
        yield ""
        yield f'folder = snapshot_download("{repository}")'
        yield "sys.path.insert(0, folder)"
        yield "from modeling_noah import load"
        yield ""
        yield "model = load(folder)"
        yield 'logits = model(model.prepare(Image.open("photo.jpg"))[None])'
        yield "```"
    else:
        yield (
            "PyTorch has no code for this head here; the weights have the names of the authors'"
            " code, and the head's follow from its paths in noah_jax."
        )
    yield ""
    yield "In JAX:"
    yield ""
    yield "```python"
    yield "import noah_jax"
    yield ""
    yield f'model, params, stats = noah_jax.load_model("hf://{repository}")'
    yield "logits = model.predict(params, stats, images)  # uint8 [batch, height, width, 3]"
    yield "```"
    if layout is not None and modeling:
        yield ""
        yield "`modeling_noah.py` loads the folder in PyTorch without timm."


def _images(trained: TrainedModel) -> Iterator[str]:
    preprocessing = trained.preprocessing
    mean, std = (
        ", ".join(f"{x:g}" for x in values) for values in (preprocessing.mean, preprocessing.std)
    )
    yield "## Images"
    yield ""
    yield (
        f"RGB, {describe_resize(preprocessing)}. Pixels in 0..1 are normalised by mean {mean} and"
        f" standard deviation {std}. `config.json` has this for programs, and the names of the"
        f" {trained.model.num_classes} classes where they are known."
    )
    if trained.multi_label:
        yield ""
        yield "An image has any number of labels. A class's probability is its logit's sigmoid."


def _provenance(trained: TrainedModel, training: Mapping[str, Any]) -> Iterator[str]:
    weights = "The moving average of the weights" if trained.ema else "The weights"
    yield "## Training"
    yield ""
    if not training:
        yield f"{weights} were converted, not trained, by noah_jax."
        return
    dataset = f" on `{training['dataset']}`" if training.get("dataset") else ""
    yield f"{weights} after step {trained.step}, trained{dataset} with this configuration:"
    yield ""
    yield "```json"
    yield json.dumps(training, indent=2)
    yield "```"
