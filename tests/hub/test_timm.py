"""Files that timm and torchvision write themselves, from the hub and from the web; needs both.

`pytest tests/hub/test_timm.py -n 0 -s` prints the largest errors of the logits, over their standard
deviation, beside PyTorch's own in float32.
"""

import hashlib
import json

import numpy as np
import pytest

from noah_jax import load_model
from noah_jax.parity.models import FACTOR, FLOOR
from tests.hub.fake_hub import Repository

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

CLASSES = 7
# timm's architectures, the names that they have here, and timm's arguments for smaller images.
TIMM = {
    "resnet18": ("resnet18", {}),
    "resnet26": ("resnet50", {}),
    "resnet50": ("resnet50", {}),
    "mobilenetv2_050": ("mobilenetv2_050", {}),
    "mobilenetv2_140": ("mobilenetv2_100", {}),
    "deit_tiny_patch16_224": ("deit_tiny_patch16_224", {"img_size": 64}),
    "vit_tiny_patch16_384": ("deit_tiny_patch16_224", {"img_size": 96}),
    "mixer_s32_224": ("mixer_s32_224", {"img_size": 64}),
    "gmixer_12_224": ("gmixer_12_224", {"img_size": 64}),
    "resmlp_12_224": ("resmlp_12_224", {"img_size": 64}),
    "gmlp_ti16_224": ("gmlp_ti16_224", {"img_size": 64}),
    "vit_small_patch14_dinov2": ("vit_small_patch14_dinov2", {"img_size": 56}),
    "vit_small_patch14_reg4_dinov2": ("vit_small_patch14_reg4_dinov2", {"img_size": 56}),
}
TORCHVISION = {
    "resnet18": "resnet18",
    "mobilenet_v2": "mobilenetv2_100",
    "shufflenet_v2_x0_5": "shufflenetv2_050",
}


def _randomised(model):
    """Gives norms, layer scales and what starts at 0 values that a mistake would show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, x in [*model.named_parameters(), *model.named_buffers()]:
            if not x.dtype.is_floating_point:
                continue
            if x.ndim <= 1 or name.endswith((".alpha", ".beta")):
                x.add_(torch.rand(x.shape, generator=generator) * 0.5)
            elif not x.any():
                x.add_(torch.randn(x.shape, generator=generator) * 0.05)
    return model.eval()


def _check(model, name: str, source: str, label: str, side: int) -> None:
    loaded, params, stats = load_model(source)
    assert loaded.name == name and loaded.num_classes == CLASSES
    images = np.random.RandomState(0).randn(2, side, side, 3).astype(np.float32)
    actual = np.asarray(loaded.predict(params, stats, images), np.float64)
    channels_first = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        own = model(channels_first).numpy().astype(np.float64)
        expected = model.double()(channels_first.double()).numpy()
    error, torch_error = (np.abs(x - expected).max() / expected.std() for x in (actual, own))
    print(f"| {label} | {loaded.name} | {error:.1e} | {torch_error:.1e} |")
    assert error <= FACTOR * torch_error + FLOOR


@pytest.mark.parametrize("timm_name", TIMM)
def test_timm(timm_name, hub, tmp_path):
    name, arguments = TIMM[timm_name]
    model = _randomised(timm.create_model(timm_name, num_classes=CLASSES, **arguments))
    timm.models.save_for_hf(model, tmp_path / "out", safe_serialization=True)
    contents = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    hub.repositories[f"timm/{timm_name}.mine"] = Repository(contents)
    source = f"hf://timm/{timm_name}.mine"
    side = arguments.get("img_size", 64)
    _check(model, name, source, f"timm {timm_name}", side)
    preprocessing = load_model(source)[0].preprocessing
    saved = json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]
    wanted = timm.data.resolve_data_config(pretrained_cfg=saved)
    assert preprocessing.size == tuple(wanted["input_size"][1:])
    assert preprocessing.mean == tuple(wanted["mean"])
    assert preprocessing.std == tuple(wanted["std"])
    assert preprocessing.interpolation == wanted["interpolation"]
    assert preprocessing.resize == int(preprocessing.size[0] / wanted["crop_pct"])
    assert set(preprocessing.sources.values()) == {"timm pretrained_cfg"}


@pytest.mark.parametrize("builder", TORCHVISION)
def test_torchvision(builder, hub, tmp_path):
    model = _randomised(torchvision.models.get_model(builder, num_classes=CLASSES))
    torch.save(model.state_dict(), tmp_path / "out.pth")
    data = (tmp_path / "out.pth").read_bytes()
    path = f"/models/{builder}-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    hub.plain[path] = data
    _check(model, TORCHVISION[builder], hub.url + path, f"torchvision {builder}", 64)


def test_a_pickle_of_timm(hub, tmp_path):
    model = _randomised(timm.create_model("resnet18", num_classes=CLASSES))
    timm.models.save_for_hf(model, tmp_path / "out", safe_serialization=False)
    contents = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert "pytorch_model.bin" in contents
    hub.repositories["timm/x"] = Repository(contents)
    _check(model, "resnet18", "hf://timm/x", "timm resnet18, pytorch_model.bin", 64)
