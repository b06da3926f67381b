"""Writes noah_jax/models/pretrained.json: the published weights that fit the architectures here.

    python scripts/make_pretrained_table.py results-imagenet.csv

No figure stands here. Names, licences and sizes are those that the installed timm and torchvision
say, torchvision's top-1 is in its enums of weights, and timm's in `results/results-imagenet.csv` of
its repository, for images of the size that `pretrained_cfg` says. Which arguments of `create_model`
differ from the architecture's own is found from the shapes of the weights. Needs PyTorch, timm and
torchvision; nothing is downloaded.
"""

from noah_jax.cli import Parser, run, show_help

if __name__ == "__main__":
    show_help(__doc__)  # before the imports that take seconds

import argparse
import csv
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import timm
import torch
import torchvision

from noah_jax.models import get_architecture
from noah_jax.pytorch.infer import find_model
from noah_jax.pytorch.timm_names import NAMES

_OUTPUT = pathlib.Path(__file__).parent.parent / "noah_jax" / "models" / "pretrained.json"

# Names that timm had for the weights of one tag, which are names of their own here.
_OLD_NAMES = {
    "mixer_b16_224_in21k": "mixer_b16_224.goog_in21k",
    "mixer_b16_224_miil": "mixer_b16_224.miil_in21k_ft_in1k",
    "mixer_b16_224_miil_in21k": "mixer_b16_224.miil_in21k",
    "mixer_l16_224_in21k": "mixer_l16_224.goog_in21k",
    "resmlp_12_distilled_224": "resmlp_12_224.fb_distilled_in1k",
    "resmlp_24_distilled_224": "resmlp_24_224.fb_distilled_in1k",
    "resmlp_36_distilled_224": "resmlp_36_224.fb_distilled_in1k",
    "resmlp_big_24_distilled_224": "resmlp_big_24_224.fb_distilled_in1k",
    "resmlp_big_24_224_in22ft1k": "resmlp_big_24_224.fb_in22k_ft_in1k",
}
_TORCHVISION = {
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "resnet152": "resnet152",
    "mobilenet_v2": "mobilenetv2_100",
    "shufflenet_v2_x0_5": "shufflenetv2_050",
    "shufflenet_v2_x1_0": "shufflenetv2_100",
    "shufflenet_v2_x1_5": "shufflenetv2_150",
    "shufflenet_v2_x2_0": "shufflenetv2_200",
}


def _timm_rows(results: dict[tuple[str, int], dict[str, str]]) -> Iterator[dict[str, Any]]:
    for timm_name, name in NAMES.items():
        if timm_name in _OLD_NAMES:
            yield _timm_row(name, _OLD_NAMES[timm_name], results)
        elif timm_name in timm.list_models():
            tags = timm.list_pretrained(f"{timm_name}.*")
            default = f"{timm_name}.{timm.get_pretrained_cfg(timm_name).tag}"
            for tag in sorted(tags, key=lambda tag: (tag != default, tag)):
                if timm.get_pretrained_cfg(tag).hf_hub_id:
                    yield _timm_row(name, tag, results)


def _timm_row(
    name: str, tag: str, results: dict[tuple[str, int], dict[str, str]]
) -> dict[str, Any]:
    cfg = timm.get_pretrained_cfg(tag)
    result = results.get((tag, cfg.input_size[-1]))
    row = {
        "name": name,
        "source": f"hf://{cfg.hf_hub_id.rstrip('/')}/{tag}"
        if cfg.hf_hub_id.endswith("/")
        else f"hf://{cfg.hf_hub_id}",
        "licence": cfg.license,
        "num_classes": cfg.num_classes or None,
        "image_size": cfg.input_size[-1],
        "crop_pct": float(result["crop_pct"]) if result else cfg.crop_pct,
        "top1": float(result["top1"]) if result else None,
    }
    with torch.device("meta"):
        model = timm.create_model(tag)
    if arguments := _arguments(name, model.state_dict()):
        row["arguments"] = arguments
    return row


def _torchvision_rows() -> Iterator[dict[str, Any]]:
    for builder, name in _TORCHVISION.items():
        for weights in torchvision.models.get_model_weights(builder):
            transform = weights.transforms()
            (crop,), (resize,) = transform.crop_size, transform.resize_size
            yield {
                "name": name,
                "source": weights.url,
                "licence": "bsd-3-clause",  # the library's; the enums of weights name none
                "num_classes": len(weights.meta["categories"]),
                "image_size": crop,
                "crop_pct": round(crop / resize, 3),
                "top1": weights.meta["_metrics"]["ImageNet-1K"]["acc@1"],
                "preprocessing": {
                    "mean": transform.mean,
                    "std": transform.std,
                    "resize": resize,
                    "crop": crop,
                    "interpolation": transform.interpolation.value,
                },
            }


def _arguments(name: str, state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Returns the arguments of `create_model` that differ from the architecture's own."""
    arrays = {key: np.broadcast_to(np.float32(0), tuple(x.shape)) for key, x in state.items()}
    found = find_model(arrays, hint=name).model
    published = get_architecture(name)
    own = {**published.dimensions, "image_size": published.image_size}
    return {key: found.arguments[key] for key in own if found.arguments[key] != own[key]}


def _write(args: argparse.Namespace) -> int:
    with args.results.open(newline="") as file:
        results = {(row["model"], int(row["img_size"])): row for row in csv.DictReader(file)}
    rows = [*_timm_rows(results), *_torchvision_rows()]
    lines = ",\n".join(f" {json.dumps(row)}" for row in rows)
    _OUTPUT.write_text(f"[\n{lines}\n]\n")
    print(
        f"{len(rows)} weights in {_OUTPUT}, by timm {timm.__version__} and torchvision"
        f" {torchvision.__version__}"
    )
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = Parser("python scripts/make_pretrained_table.py", __doc__)
    parser.add_argument("results", type=pathlib.Path, help="timm's results-imagenet.csv")
    return run(_write, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
