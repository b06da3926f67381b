"""The model card of an exported model."""

import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from noah_jax.inference.trained import TrainedModel
from noah_jax.models.published import published
from noah_jax.runs import run_dir as workdirs


def model_card(trained: TrainedModel, facts: dict[str, Any]) -> str:
    """Markdown for people: provenance, metrics, configuration, how to run it."""
    return "\n".join(_lines(trained, facts)) + "\n"


def _lines(trained: TrainedModel, facts: dict[str, Any]) -> Iterator[str]:
    model, preprocessing = trained.model, trained.preprocessing
    height, width = preprocessing.size
    head = model.arguments["head"]
    yield f"# {model.name}"
    yield ""
    yield (
        f"An image classifier of {model.num_classes} classes and {model.num_params:,} parameters,"
        f" with the {'NOAH' if head == 'noah' else head} head, exported from noah_jax."
    )
    yield ""
    yield "## Use"
    yield ""
    yield "With `pip install jax flatbuffers pillow`; this package is not needed."
    yield ""
    yield "```python"
    yield "import pathlib, jax.export, numpy, PIL.Image, PIL.ImageOps"
    yield ""
    yield 'program = jax.export.deserialize(pathlib.Path("model.stablehlo").read_bytes())'
    yield 'image = PIL.Image.open("photo.jpg").convert("RGB")'
    yield f"image = PIL.ImageOps.fit(image, ({width}, {height}))  # roughly; see below"
    yield "logits = program.call(numpy.asarray(image)[None])"
    yield "```"
    yield ""
    resized = (
        f"resized so that the shorter side has {preprocessing.resize} pixels"
        if preprocessing.resize is not None
        else f"resized so that the image just covers {width} x {height} pixels"
    )
    yield (
        f"Images are RGB, uint8, {resized} ({preprocessing.interpolation}, as Pillow does it), and"
        f" the central {width} x {height} are cut out. The program takes any number of them,"
        f" `[batch, {height}, {width}, 3]`, normalises them itself (mean"
        f" {_numbers(preprocessing.mean)}, standard deviation {_numbers(preprocessing.std)}) and"
        f" gives logits `[batch, {model.num_classes}]`. It holds"
        f" {', '.join(facts['platforms'])}; `model.json` has all this for programs."
    )
    yield ""
    yield "## Provenance"
    yield ""
    weights = "the moving average of the weights" if trained.ema else "the weights"
    yield f"- from `{trained.path}`, {weights} after step {trained.step}"
    for key, value in trained.metadata.get("source", {}).items():
        if isinstance(value, str | int):
            yield f"- source {key}: `{value}`"
    if trained.config:
        yield f"- trained on `{trained.config['dataset']}` with seed {trained.config['seed']}"
    yield f"- exported by JAX {facts['jax_version']}"
    yield ""
    yield "## Metrics"
    yield ""
    yield from _metrics(trained)
    yield ""
    yield (
        "The exported program's logits are within"
        f" {facts['difference_from_the_model']:.1e} of their standard deviation of the model's own"
        " (random images, on the machine that exported it)."
    )
    yield ""
    yield "## Configuration"
    yield ""
    yield "```json"
    yield json.dumps(trained.config or {"model": facts["arguments"]}, indent=2)
    yield "```"


def _metrics(trained: TrainedModel) -> Iterator[str]:
    """What was measured of these very weights, or that nothing was."""
    found = _recorded(trained)
    if found is None:
        yield "None are recorded of these weights; `python -m noah_jax.evaluate` measures them."
    else:
        columns = {"mAP": "map", "CF1": "cf1", "OF1": "of1"}
        if not trained.multi_label:
            columns = {"top-1": "top1", "top-5": "top5"}
        percentages = " | ".join(f"{found[key]:.2f} %" for key in columns.values())
        yield f"| {' | '.join(columns)} | loss | images |"
        yield "|---" * (len(columns) + 2) + "|"
        yield f"| {percentages} | {found['loss']:.4f} | {found['examples']:,} |"
    name = trained.model.name
    if "source" in trained.metadata and name in published():
        yield ""
        yield f"Published for {name}: top-1 {published()[name].top1} % on ImageNet-1k."


def _recorded(trained: TrainedModel) -> dict[str, Any] | None:
    """The evaluation that the training recorded at the checkpoint's step."""
    folder = epath.Path(trained.path)
    if trained.path.endswith(f"/{workdirs.CHECKPOINTS}/{trained.step}"):
        folder = folder.parent.parent
    path = folder / "metrics.jsonl"
    split = "eval_ema" if trained.ema else "eval"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    rows = [row for row in rows if (row["step"], row["split"]) == (trained.step, split)]
    return rows[-1] if rows else None


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
