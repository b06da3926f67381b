"""Writes the model card of an exported program; parts of it are those of the hub's card too."""

import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from noah_jax.data.interpolation import SQUASH
from noah_jax.data.preprocessing import Preprocessing
from noah_jax.heads.registry import unpublished_options
from noah_jax.hub.names import is_elsewhere
from noah_jax.inference.trained import TrainedModel
from noah_jax.models.published import published
from noah_jax.runs.run_dir import CHECKPOINTS
from noah_jax.tasks.task import has_top5


def model_card(trained: TrainedModel, description: dict[str, Any]) -> str:
    """Returns the card in Markdown: how to run the model, provenance, metrics, configuration.

    Args:
      trained: The model.
      description: What `noah_jax.export.program.describe` returns.
    """
    sections = (
        introduction(trained),
        _use(trained, description),
        _provenance(trained, description),
        _metrics(trained, description),
        _configuration(trained, description),
    )
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def introduction(trained: TrainedModel) -> Iterator[str]:
    """Yields the title, and what kind of model it is."""
    model = trained.model
    head = model.arguments["head"]
    options = unpublished_options(head, model.arguments["head_options"])
    named = ("NOAH" if head == "noah" else head) + " head" + (f" ({options})" if options else "")
    yield f"# {model.name}"
    yield ""
    yield (
        f"An image classifier with {model.num_classes} classes, {model.num_params:,} parameters"
        f" and the {named}, exported from noah_jax."
    )


def _use(trained: TrainedModel, description: dict[str, Any]) -> Iterator[str]:
    model, preprocessing = trained.model, trained.preprocessing
    height, width = preprocessing.size
    yield "## Use"
    yield ""
    yield "`pip install jax flatbuffers pillow` is all it needs."
    yield ""
    yield "```python"
    yield "import pathlib, jax.export, numpy, PIL.Image, PIL.ImageOps"
    yield ""
    yield 'program = jax.export.deserialize(pathlib.Path("model.stablehlo").read_bytes())'
    yield 'image = PIL.Image.open("photo.jpg").convert("RGB")'
    fit = "image.resize(" if preprocessing.resize == SQUASH else "PIL.ImageOps.fit(image, "
    yield f"image = {fit}({width}, {height}))  # roughly; see below"
    yield "logits = program.call(numpy.asarray(image)[None])"
    yield "```"
    yield ""
    yield (
        f"Images are RGB, uint8, {describe_resize(preprocessing)}. The program takes any number of"
        f" them, `[batch, {height}, {width}, 3]`, normalises them itself (mean"
        f" {_join(preprocessing.mean)}, standard deviation {_join(preprocessing.std)}) and"
        f" returns logits `[batch, {model.num_classes}]`. It runs on"
        f" {', '.join(description['platforms'])}. `model.json` has all this for programs."
    )
    yield ""
    yield (
        "JAX promises to read `model.stablehlo` for six months after the export, by JAX"
        f" {description['jax_version']}; later versions may refuse it. What lasts are the weights,"
        " in `weights.safetensors` by their paths, and the model's name and arguments in"
        " `model.json`, with which `noah_jax.create_model` makes the same model."
    )


def describe_resize(preprocessing: Preprocessing) -> str:
    """Says how images get their size."""
    height, width = preprocessing.size
    how = _interpolation(preprocessing)
    if preprocessing.resize == SQUASH:
        return f"resized to {width} x {height} pixels, whatever their shape ({how})"
    side = (
        f"the image just covers {width} x {height} pixels"
        if preprocessing.resize is None
        else f"the shorter side has {preprocessing.resize} pixels"
    )
    return f"resized so that {side} ({how}), and the central {width} x {height} pixels are cut out"


def _interpolation(preprocessing: Preprocessing) -> str:
    """Says by which rule images are resized."""
    if preprocessing.interpolation == "nearest":
        return "nearest: pixel i is the image's pixel floor(i * its size / the new size)"
    name = preprocessing.interpolation.removesuffix("-exact")
    return f"{name}, as Pillow does it"


def _provenance(trained: TrainedModel, description: dict[str, Any]) -> Iterator[str]:
    weights = "the moving average of the weights" if trained.ema else "the weights"
    yield "## Provenance"
    yield ""
    yield f"- from `{trained.path}`, {weights} after step {trained.step}"
    for key, value in trained.metadata.get("source", {}).items():
        if isinstance(value, str | int):
            yield f"- source {key}: `{value}`"
    if trained.config:
        seed = f" with seed {trained.config['seed']}" if "seed" in trained.config else ""
        yield f"- trained on `{trained.config['dataset']}`{seed}"
    yield f"- preprocessing: {trained.preprocessing.describe()}"
    yield f"- exported by JAX {description['jax_version']}"


def _metrics(trained: TrainedModel, description: dict[str, Any]) -> Iterator[str]:
    yield from metrics_table(trained)
    yield ""
    yield (
        "The exported program's logits differ from the model's own by at most"
        f" {description['difference_from_the_model']:.1e} of their standard deviation (random"
        " images, on the machine that exported it)."
    )


def metrics_table(trained: TrainedModel) -> Iterator[str]:
    """Yields the metrics of exactly these weights, if the training recorded them."""
    yield "## Metrics"
    yield ""
    recorded = recorded_metrics(trained)
    if recorded is None:
        yield ("None are recorded for these weights; `python -m noah_jax.evaluate` measures them.")
    else:
        columns = {"mAP": "map", "CF1": "cf1", "OF1": "of1"}
        if not trained.multi_label:
            columns = {"top-1": "top1"}
            if has_top5(trained.model.num_classes):
                columns["top-5"] = "top5"
        percentages = " | ".join(f"{recorded[key]:.2f} %" for key in columns.values())
        yield f"| {' | '.join(columns)} | loss | images |"
        yield "|---" * (len(columns) + 2) + "|"
        yield f"| {percentages} | {recorded['loss']:.4f} | {recorded['examples']:,} |"
    name = trained.model.name
    if "source" in trained.metadata and name in published():
        yield ""
        yield f"Published for {name}: top-1 {published()[name].top1} % on ImageNet-1k."


def _configuration(trained: TrainedModel, description: dict[str, Any]) -> Iterator[str]:
    yield "## Configuration"
    yield ""
    yield "```json"
    yield json.dumps(trained.config or {"model": description["arguments"]}, indent=2)
    yield "```"


def recorded_metrics(trained: TrainedModel) -> dict[str, Any] | None:
    """Returns the evaluation that the training recorded at the checkpoint's step."""
    if is_elsewhere(trained.path):
        return None
    folder = epath.Path(trained.path)
    if trained.path.endswith(f"/{CHECKPOINTS}/{trained.step}"):
        folder = folder.parent.parent
    path = folder / "metrics.jsonl"
    split = "eval_ema" if trained.ema else "eval"
    lines = path.read_text().splitlines() if path.exists() else []
    # A run that was killed may have left half a line.
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    rows = [row for row in rows if (row["step"], row["split"]) == (trained.step, split)]
    return rows[-1] if rows else None


def _join(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
