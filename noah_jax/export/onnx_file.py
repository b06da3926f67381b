"""Exports a model's forward pass to ONNX by jax2onnx, checked by onnxruntime before it is written.

jax2onnx translates each of JAX's operations. Not every operation has a form in ONNX, and a
translation may be wrong, so the file is run on real images first.
"""

import importlib.util
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from noah_jax.console import say, working
from noah_jax.data.decoding import DecodedSource
from noah_jax.data.source import SAMPLE
from noah_jax.data.sources import open_eval_source
from noah_jax.errors import (
    CorruptImageError,
    InputError,
    MissingPackageError,
    NoahError,
    one_line,
)
from noah_jax.evaluation.dataset import DatasetChoice, open_dataset
from noah_jax.export.loading import load_to_export
from noah_jax.export.stablehlo import CHECKED_BATCHES, largest_difference
from noah_jax.files import write_bytes
from noah_jax.inference.step import make_predict_step
from noah_jax.inference.trained import TrainedModel
from noah_jax.runs.destination import free_destination

INPUT, OUTPUT = "images", "logits"
# How to install what it needs. jax2onnx from 0.13.1 on excludes the orbax-checkpoint that this
# package needs, though a translation does not use it; and earlier ones do not work with this JAX.
_PACKAGES = {
    "onnx": "pip install 'noah-jax[onnx]'",
    "onnx_ir": "pip install 'noah-jax[onnx]'",
    "onnxruntime": "pip install 'noah-jax[onnx]'",
    "jax2onnx": "pip install --no-deps jax2onnx",
}
_OPSET = 21  # of ONNX 1.16, which runtimes have had since 2024
_PRIMITIVE = re.compile(r"primitive '([\w.-]+)'")
# Primitives that only call another program, and the parameter that holds it.
_CALLS = {
    **{"jit": "jaxpr", "pjit": "jaxpr", "checkpoint": "jaxpr", "remat2": "jaxpr"},
    **{"closed_call": "call_jaxpr", "core_call": "call_jaxpr"},
    **{"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"},
}
_MOST_BYTES = 2**31  # of a protobuf message


def export_onnx(
    source: str,
    destination: str,
    *,
    ema: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Exports a trained model as an ONNX file, and says how well it agrees.

    Args:
      source: Path of the model, see `noah_jax.inference.trained.load_one`.
      destination: A new file, local or `gs://`. It appears whole or not at all.
      ema: Use the exponential moving average of the weights.
      settings: Preprocessing that replaces what is stored with the weights, see
        `noah_jax.data.preprocessing.check_setting`.

    Raises:
      MissingPackageError: If jax2onnx, onnx or onnxruntime is not installed.
      WriteError: If the file cannot be written.
      InputError: If the file exists or is not `NAME.onnx`, an operation has no form in ONNX, or the
        logits differ.
      FileNotFoundError, CheckpointError: See `load_one`.
    """
    if not destination.endswith(".onnx"):
        raise InputError(f"--onnx writes a file NAME.onnx, got {destination}")
    target = free_destination(destination, folder=False)
    _check_packages()
    trained = load_to_export(source, ema=ema, settings=settings)
    with working(f"translating {trained.model.name} to ONNX"):
        data = translate(trained)
    with working("comparing the file with the model"):
        images, name = check_images(trained)
        difference = largest_difference(trained, runner(data), images, "the ONNX file")
    write_bytes(target, data)
    say(
        f"{destination}: {trained.model.name}, {len(data) / 1e6:.1f} MB; its logits differ from the"
        f" model's by at most {difference:.1e} of their standard deviation ({name})"
    )


def _check_packages() -> None:
    for package, install in _PACKAGES.items():
        if importlib.util.find_spec(package) is None:
            raise MissingPackageError(f"--onnx needs {package}, which is not installed: {install}")


def translate(trained: TrainedModel) -> bytes:
    """Returns the ONNX file of a model, with the weights in it.

    Its input `images` is uint8 `[batch, height, width, 3]`, which it normalises, for any batch
    size, and its output `logits` float32 `[batch, num_classes]`. The metadata say how images are
    prepared and, where they are known, the names of the classes.

    Raises:
      InputError: If an operation has no form in ONNX, or the file would be too large.
    """
    # They say which of their parts do not apply here.
    for library in ("jax2onnx", "onnx_ir"):
        logging.getLogger(library).setLevel(logging.ERROR)
    from jax2onnx import to_onnx

    model, preprocessing = trained.model.portable(), trained.preprocessing
    predict = make_predict_step(model, mean=preprocessing.mean, std=preprocessing.std)

    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *preprocessing.size, 3), jnp.uint8)
    traced = jax.make_jaxpr(lambda x: predict(trained.params, trained.stats, x))(images)
    try:
        proto = to_onnx(
            lambda x: _evaluate(traced.jaxpr, traced.consts, [x])[0],
            [images],
            model_name=model.name,
            opset=_OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
        )
    except Exception as error:  # jax2onnx raises errors of many kinds for what it does not know
        raise InputError(
            f"{model.name} cannot be written as ONNX: jax2onnx has no form of"
            f" {_operation(error)} there ({type(error).__name__}: {one_line(error, 120)}); export"
            " it by --output or --hub"
        ) from error
    for key, value in _metadata(trained).items():
        proto.metadata_props.add(key=key, value=value)
    if (size := proto.ByteSize()) >= _MOST_BYTES:
        raise InputError(
            f"{model.name} would take {size / 1e9:.1f} GB as ONNX, and one file holds 2 GB; export"
            " it by --output or --hub"
        )
    return proto.SerializeToString()


def _operation(error: Exception) -> str:
    """Names the operation that jax2onnx was at when it failed."""
    if named := _PRIMITIVE.search(str(error)):
        return f"JAX's {named[1]}"
    found, place = "an operation", error.__traceback__
    while place is not None:
        primitive = getattr(place.tb_frame.f_locals.get("eqn"), "primitive", None)
        if primitive is not None:
            found = f"JAX's {primitive.name}"
        place = place.tb_next
    return found


def _evaluate(jaxpr: core.Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluates a traced program, and those that it calls, primitive by primitive.

    While jax2onnx traces a function it replaces functions of `jax.numpy`, some of which this
    package uses for more than numbers. So it gets a function that has primitives alone.
    """
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        primitive, operands = equation.primitive, [read(x) for x in equation.invars]
        parameters = equation.params
        called = parameters.get(_CALLS.get(primitive.name, ""))
        if primitive.name == "cond" and parameters.get("branches_platforms"):
            called, operands = _form(parameters), operands[1:]
        if isinstance(called, core.ClosedJaxpr):
            out = _evaluate(called.jaxpr, called.consts, operands)
        elif isinstance(called, core.Jaxpr):
            out = _evaluate(called, (), operands)
        elif primitive.name == "platform_index":  # what chooses a form; see `_form`
            out = [np.int32(0)]
        elif primitive.name == "reduce_window_max" and _pools_images(parameters):
            out = [_max_pool(operands[0], parameters)]
        elif primitive.name == "pad" and _only_widens(parameters):
            out = [_pad(operands[0], operands[1], parameters["padding_config"])]
        else:
            found = primitive.bind(*operands, **parameters)
            out = list(found) if primitive.multiple_results else [found]
        values.update(zip(equation.outvars, out, strict=True))
    return [read(x) for x in jaxpr.outvars]


def _form(parameters: Mapping[str, Any]) -> core.ClosedJaxpr:
    """Chooses among the forms that `jax.lax.platform_dependent` has for the platforms.

    They compute the same. One convolution is better in ONNX than the many products of a CPU's form.
    """
    forms = parameters["branches"]
    for form in forms:
        if any(x.primitive.name == "conv_general_dilated" for x in form.jaxpr.eqns):
            return form
    platforms = parameters["branches_platforms"]
    return next(
        form
        for form, names in zip(forms, platforms, strict=True)
        if names is None or "cpu" in names
    )


def _pools_images(parameters: Mapping[str, Any]) -> bool:
    """Says whether a pooling is over height and width of `[batch, height, width, channels]`."""
    return len(size := parameters["window_dimensions"]) == 4 and size[0] == size[3] == 1


def _max_pool(values: jax.Array, parameters: Mapping[str, Any]) -> jax.Array:
    """Computes `reduce_window_max` of images `[batch, height, width, channels]`.

    jax2onnx writes a pooling over all axes of an array, and onnxruntime pools over three at most.
    So batch and channels become one axis.
    """
    batch, height, width, channels = values.shape
    values = jax.lax.reshape(
        jax.lax.transpose(values, (1, 2, 0, 3)), (height, width, batch * channels)
    )
    pooled = jax.lax.reduce_window_max_p.bind(
        values, **{key: (*value[1:3], value[0]) for key, value in parameters.items()}
    )
    pooled = jax.lax.reshape(pooled, (*pooled.shape[:2], batch, channels))
    return jax.lax.transpose(pooled, (2, 0, 1, 3))


def _only_widens(parameters: Mapping[str, Any]) -> bool:
    """Says whether a padding only adds to the ends of axes."""
    return all(min(low, high) >= 0 == inner for low, high, inner in parameters["padding_config"])


def _pad(values: jax.Array, fill: jax.Array, config: Sequence[tuple[int, int, int]]) -> jax.Array:
    """Computes `pad` by concatenation: jax2onnx's form of it needs a known batch size."""
    for axis, (low, high, _) in enumerate(config):
        before, after = (
            [jax.lax.broadcast_in_dim(fill, _resized(values.shape, axis, n), ())] if n else []
            for n in (low, high)
        )
        if before or after:
            values = jax.lax.concatenate([*before, values, *after], axis)
    return values


def _resized(shape: Sequence[int], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _metadata(trained: TrainedModel) -> dict[str, str]:
    metadata = {
        "model": trained.model.name,
        "preprocessing": json.dumps(trained.preprocessing.to_json()),
    }
    if trained.class_names is not None:
        metadata["class_names"] = json.dumps(trained.display_names())
    return metadata


def runner(data: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function from images to logits that onnxruntime computes on the CPU.

    Raises:
      InputError: If onnxruntime cannot load the file. The function raises it if it cannot run it.
    """
    import onnxruntime

    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what is fatal; the rest is raised too
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own errors have no common class
        raise InputError(
            f"onnxruntime cannot load the ONNX file: {one_line(error, 200)}; nothing was written"
        ) from error

    def run(images: np.ndarray) -> np.ndarray:
        try:
            return session.run([OUTPUT], {INPUT: images})[0]
        except Exception as error:
            raise InputError(
                f"onnxruntime cannot run the ONNX file: {one_line(error, 200)}; nothing was written"
            ) from error

    return run


def check_images(trained: TrainedModel) -> tuple[np.ndarray, str]:
    """Returns images to compare logits on, and what they are.

    They are the first of the training's evaluation, where they are on this machine; otherwise those
    that come with this package.

    Returns:
      uint8 `[images, height, width, 3]`, as the model expects them, and a text for people.
    """
    try:
        encoded = open_dataset(DatasetChoice(), trained)
    except (NoahError, ImportError):
        encoded = open_eval_source(SAMPLE)
    source = DecodedSource(encoded)
    transform = trained.preprocessing.transform()
    found: list[np.ndarray] = []
    for index in range(len(source)):
        try:
            found.append(transform(source[index][0]))
        except CorruptImageError:
            continue
        if len(found) == sum(CHECKED_BATCHES):
            break
    return np.stack(found), f"{len(found)} images of {source.name}"
