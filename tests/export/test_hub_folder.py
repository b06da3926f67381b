"""Runs export --hub on small models; what was written loads here as it was, and in PyTorch."""

import contextlib
import functools
import importlib
import json
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from noah_jax import load_model
from noah_jax.convert.__main__ import main as convert
from noah_jax.evaluate.__main__ import main as evaluate
from noah_jax.export.__main__ import main
from noah_jax.export.hub_folder import hub_files, without_local_paths
from noah_jax.inference.trained import load_one
from noah_jax.models import create_model
from noah_jax.predict.__main__ import main as predict
from noah_jax.pytorch.reference import HEADS_IN_PYTORCH, example_weights
from noah_jax.runs.model_folder import write_model_folder
from tests.helpers import ROOT

_TINY_VIT = dict(num_classes=3, image_size=32, width=24, num_heads=3, depth=1)
# Models that timm has, its names for them, what it has to know besides, and some of its keys.
IN_TIMM = {
    "resnet18": (
        dict(num_classes=3, image_size=32, depths=(1, 1, 1, 1)),
        ("resnet18", {"layers": [1, 1, 1, 1]}, {"fc.weight", "layer4.0.bn2.num_batches_tracked"}),
        ("conv1", "fc"),
    ),
    "mobilenetv2_035": (
        dict(num_classes=3, image_size=32),
        ("mobilenetv2_035", {}, {"conv_stem.weight", "blocks.6.0.bn3.running_var", "bn2.bias"}),
        ("conv_stem", "classifier"),
    ),
    "deit_tiny_patch16_224": (
        dict(_TINY_VIT, pre_logits=False),
        (
            "deit_tiny_patch16_224",
            {"embed_dim": 24, "depth": 1, "img_size": 32},
            {"blocks.0.attn.qkv.weight", "head.bias"},
        ),
        ("patch_embed.proj", "head"),
    ),
    "vit_small_patch14_reg4_dinov2": (
        dict(_TINY_VIT, image_size=28, registers=2),
        (
            "vit_small_patch14_reg4_dinov2",
            {"embed_dim": 24, "num_heads": 3, "depth": 1, "reg_tokens": 2, "img_size": 28},
            {"reg_token"},
        ),
        ("patch_embed.proj", "head"),
    ),
    "resmlp_12_distilled_224": (
        dict(num_classes=3, image_size=48),
        ("resmlp_12_224", {"img_size": 48}, {"blocks.11.ls2", "norm.alpha"}),
        ("stem.proj", "head"),
    ),
}
NOT_IN_TIMM = {
    "noah_resnet18": dict(num_classes=3, image_size=32, width=8),
    "resnet50": dict(num_classes=3, image_size=32, width=8, depths=(1, 1, 1, 1)),
    "resnet34": dict(num_classes=3, image_size=32, stem="small", depths=(1, 1, 1, 1)),
    "mobilenetv3_small": dict(num_classes=3, image_size=32, width_mult=0.5),
    "shufflenetv2_050": dict(num_classes=3, image_size=32, depths=(1, 1, 1)),
    "deit_tiny_050_patch16_224": dict(num_classes=3, image_size=32, depth=1),
    "mixer_s16_050_224": dict(num_classes=3, image_size=32, depth=1),
    "noah_gmlp_ti16_224": dict(
        **dict(num_classes=3, image_size=(32, 48), depth=1),
        head_options={"merge": "max", "attention": "uniform"},
    ),
    "pvt_tiny_050": dict(num_classes=3, image_size=32, depths=(1, 1, 1, 1)),
}


def _folder(path: pathlib.Path, name: str, **arguments) -> str:
    """Writes the folder of a model in which every layer matters to the logits."""
    model = create_model(name, **arguments)
    known = model.arguments["head"] in HEADS_IN_PYTORCH
    params, stats = example_weights(model) if known else model.init(jax.random.key(0))
    description = {
        "name": model.name,
        "arguments": model.arguments,
        "class_names": ["ant", "bee", "cat"],
        "source": {"file": "x.pth", "num_batches_tracked": 7},
    }
    write_model_folder(path, description, {"params": params, "stats": stats})
    return str(path)


def _same(one: str, other: str) -> None:
    (model, *weights), (model2, *weights2) = load_model(one), load_model(other)
    assert (model.name, model.arguments) == (model2.name, model2.arguments)
    assert model.class_names == model2.class_names
    assert model.preprocessing == model2.preprocessing
    jax.tree.map(np.testing.assert_array_equal, weights, weights2)


@pytest.fixture(scope="module")
def exported(tiny_run, tmp_path_factory) -> pathlib.Path:
    """The folder of an exported run."""
    folder = tmp_path_factory.mktemp("hub") / "out"
    assert main(["--checkpoint", tiny_run, "--hub", str(folder), "--licence", "mit"]) == 0
    return folder


def test_a_run_is_read_back_as_it_was(exported, tiny_run, class_folders, tmp_path, capsys):
    assert sorted(path.name for path in exported.iterdir()) == [
        *("README.md", "config.json", "model.safetensors", "modeling_noah.py")
    ]
    _same(tiny_run, str(exported))
    assert convert([str(exported), str(tmp_path / "converted")]) == 0
    _same(tiny_run, str(tmp_path / "converted"))
    assert main(["--checkpoint", str(exported), "--hub", str(tmp_path / "again")]) == 0
    _same(tiny_run, str(tmp_path / "again"))
    image = f"{class_folders}/val/ant/00.png"
    said = []
    for path in (tiny_run, str(exported)):
        capsys.readouterr()
        assert predict(["--checkpoint", path, image]) == 0
        assert evaluate(["--checkpoint", path, "--dataset", class_folders, "--json"]) == 0
        out = capsys.readouterr().out.splitlines()
        row = json.loads(out.pop())
        said.append(([line.replace(path, "") for line in out], row["top1"], row["loss"]))
    assert said[0] == said[1] and "ant" in str(said[0])
    # The folder of the images is a matter of this machine.
    for path in (exported, tmp_path / "again"):
        assert evaluate(["--checkpoint", str(path)]) == 1
        assert "does not say its dataset; --dataset is needed" in capsys.readouterr().err


def test_what_the_card_says(exported, tiny_run, class_folders):
    from huggingface_hub import ModelCard

    text = (exported / "README.md").read_text()
    data = ModelCard(text).data
    results = json.loads((pathlib.Path(tiny_run) / "results.json").read_text())
    assert (data.license, data.library_name, data.pipeline_tag) == (
        *("mit", "noah_jax", "image-classification"),
    )
    assert data.metrics == ["accuracy"] and data.datasets is None
    (result,) = data.eval_results
    assert result.metric_value == pytest.approx(results["top1"] / 100)
    assert f"| {results['top1']:.2f} % |" in text and "after step 12" in text
    assert "from modeling_noah import load" in text and "timm has no such model" in text
    for file in exported.glob("*.*"):
        assert str(pathlib.Path(class_folders).parent).encode() not in file.read_bytes()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Makes the folder of a model once, and exports it; returns both folders."""

    @functools.cache
    def make(name: str) -> tuple[str, pathlib.Path]:
        arguments = IN_TIMM[name][0] if name in IN_TIMM else NOT_IN_TIMM[name]
        root = tmp_path_factory.mktemp(name)
        source = _folder(root / "in", name, **arguments)
        assert main(["--checkpoint", source, "--hub", str(root / "out")]) == 0
        return source, root / "out"

    return make


@pytest.mark.parametrize("name", IN_TIMM)
def test_what_timm_has_is_written_by_its_names(name, folders, tmp_path):
    _, (timm_name, timm_arguments, keys), (first, classifier) = IN_TIMM[name]
    source, out = folders(name)
    _same(source, str(out))
    config = json.loads((out / "config.json").read_text())
    assert config["architecture"] == timm_name
    assert config.get("model_args", {}) == timm_arguments
    assert config["label_names"] == ["ant", "bee", "cat"]
    cfg = config["pretrained_cfg"]
    assert (cfg["first_conv"], cfg["classifier"]) == (first, classifier)
    state = load_file(out / "model.safetensors")
    assert keys <= state.keys() and {f"{first}.weight", f"{classifier}.weight"} <= state.keys()
    assert {int(x) for key, x in state.items() if key.endswith("batches_tracked")} <= {7}
    assert "timm.create_model" in (out / "README.md").read_text()
    # Without this package's section it is a folder of timm's.
    del config["noah_jax"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(out / "model.safetensors")
    model, *weights = load_model(source)
    other, *weights2 = load_model(str(tmp_path))
    assert model.class_names == other.class_names
    jax.tree.map(np.testing.assert_array_equal, weights, weights2)


@pytest.mark.parametrize("name", NOT_IN_TIMM)
def test_what_timm_has_not_is_written_by_the_original_names(name, folders):
    source, out = folders(name)
    _same(source, str(out))
    config = json.loads((out / "config.json").read_text())
    assert config["architecture"] == name and config["modeling_noah"]["renamed"] == {}
    state = load_file(out / "model.safetensors")
    cfg = config["pretrained_cfg"]
    layers = [cfg["classifier"]] if isinstance(cfg["classifier"], str) else cfg["classifier"]
    assert {f"{layer}.weight" for layer in (cfg["first_conv"], *layers)} <= state.keys()


def test_other_heads_are_for_this_package_alone(tmp_path, capsys):
    options = dict(head="csra", head_options={"lam": 0.3}, width=8)
    source = _folder(tmp_path / "in", "resnet18", num_classes=3, image_size=32, **options)
    assert main(["--checkpoint", source, "--hub", str(tmp_path / "out")]) == 0
    assert "modeling_noah.py knows the heads linear and noah" in capsys.readouterr().err
    assert not (tmp_path / "out" / "modeling_noah.py").exists()
    _same(source, str(tmp_path / "out"))


def test_several_labels(multi_label_run, csv_folder, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["--checkpoint", multi_label_run, "--hub", out]) == 0
    assert load_one(out).multi_label
    said = []
    for path in (multi_label_run, out):
        capsys.readouterr()
        assert evaluate(["--checkpoint", path, "--dataset", f"csv:{csv_folder}", "--json"]) == 0
        row = json.loads(capsys.readouterr().out)
        said.append((row["map"], row["of1"]))
    assert said[0] == said[1]
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'type: "mean_average_precision"' in card and "is its logit's sigmoid" in card


@pytest.mark.parametrize(("resize", "size"), [(256, 224), (232, 224), (73, 64), (None, 64)])
def test_timm_resizes_to_the_same_side(resize, size, tmp_path):
    """timm rounds the quotient of side and crop_pct down."""
    source = _folder(tmp_path / "in", "noah_resnet18", num_classes=3, image_size=size, width=4)
    settings = {"resize": resize, "crop": size, "interpolation": "nearest-exact"}
    trained = load_one(source, settings=settings)
    cfg = json.loads(hub_files(trained)["config.json"])["pretrained_cfg"]
    assert int(size / cfg["crop_pct"]) == (resize or size) and cfg["crop_mode"] == "center"
    assert cfg["interpolation"] == "nearest"
    trained = load_one(source, settings={**settings, "resize": "squash"})
    cfg = json.loads(hub_files(trained)["config.json"])["pretrained_cfg"]
    assert (cfg["crop_pct"], cfg["crop_mode"]) == (1.0, "squash")


def test_paths_of_this_machine_stay_here():
    config = {"a": ["/home/me/x", "csv:~/y", "gs://bucket/z", "hf:me/birds"], "b": {"c": 1}}
    shown = {"a": ["x", "csv:y", "gs://bucket/z", "hf:me/birds"], "b": {"c": 1}}
    assert without_local_paths(config) == shown


def test_a_taken_folder_is_left_alone(exported, tiny_run, capsys):
    before = {path: path.stat().st_mtime_ns for path in exported.iterdir()}
    assert main(["--checkpoint", tiny_run, "--hub", str(exported)]) == 1
    assert "exists already; choose another destination, or remove it" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in exported.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "nothing to write: give --output DIR, --hub FOLDER, --push USER/NAME or --onnx FILE"),
        (["--output", "x", "--private"], "--private is for --push"),
        (["--output", "x", "--licence", "mit"], "--licence is for --hub and --push"),
    ],
)
def test_options_that_do_not_fit(words, problem, capsys):
    assert main(["--checkpoint", "runs/none", *words]) == 1
    assert problem in capsys.readouterr().err


def _modeling(folder: pathlib.Path, monkeypatch):
    """Imports `modeling_noah.py` of an exported folder, as a user does."""
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(importlib.sys.modules, "modeling_noah", raising=False)
    return importlib.import_module("modeling_noah")


@pytest.mark.parametrize("name", [*IN_TIMM, *NOT_IN_TIMM])
def test_the_folder_is_the_same_model_in_pytorch(name, folders, monkeypatch):
    torch = pytest.importorskip("torch")
    source, out = folders(name)
    net = _modeling(out, monkeypatch).load(out)
    assert net.class_names == ["ant", "bee", "cat"]
    model, params, stats = load_model(source)
    images = np.random.RandomState(0).randint(0, 256, (2, *model.image_size, 3), np.uint8)
    expected = np.asarray(model.predict(params, stats, images))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    with torch.inference_mode():
        actual = net(pixels).numpy()
        mean, std = (torch.tensor(x)[:, None, None] for x in (net.mean, net.std))
        of_floats = net((pixels / 255 - mean) / std).numpy()
    np.testing.assert_allclose(actual, expected, atol=2e-4 * expected.std())
    np.testing.assert_allclose(of_floats, expected, atol=2e-4 * expected.std())
    # It is an ordinary module: every parameter learns, and BatchNorm's averages move.
    before = {key: x.clone() for key, x in net.named_buffers()}
    net.train()(pixels).square().sum().backward()
    assert all(x.grad is not None for x in net.parameters())
    moved = [not torch.equal(x, before[k]) for k, x in net.named_buffers() if "running" in k]
    assert all(moved) and len(moved) == len(jax.tree.leaves(stats))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"resize": "squash", "interpolation": "bicubic"},
        {"resize": None, "crop": (40, 20), "interpolation": "nearest"},
        {"resize": 50, "crop": (20, 40), "interpolation": "nearest-exact"},
    ],
)
def test_pytorch_prepares_images_as_the_model_does(settings, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    from PIL import Image

    source = _folder(tmp_path / "in", "noah_resnet18", num_classes=3, image_size=32, width=4)
    trained = load_one(source, settings=settings)
    (tmp_path / "out").mkdir()
    for name, data in hub_files(trained).items():
        (tmp_path / "out" / name).write_bytes(data)
    net = _modeling(tmp_path / "out", monkeypatch).load()
    photograph = sorted((ROOT / "tests" / "data").rglob("*.jpg"))[0]
    with contextlib.closing(Image.open(photograph)) as image:
        expected = trained.preprocessing.transform()(np.asarray(image.convert("RGB")))
        np.testing.assert_array_equal(net.prepare(image).permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("name", IN_TIMM)
def test_timm_loads_the_folder(name, folders):
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    source, out = folders(name)
    net = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    model, params, stats = load_model(source)
    images = np.random.RandomState(0).randn(2, *model.image_size, 3).astype(np.float32)
    expected = np.asarray(model.predict(params, stats, images))
    with torch.inference_mode():
        actual = net(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(actual, expected, atol=2e-4 * expected.std())
    data = timm.data.resolve_model_data_config(net)
    assert tuple(data["input_size"]) == (3, *model.preprocessing.size)
    assert (tuple(data["mean"]), tuple(data["std"])) == (model.mean, model.std)
    assert data["interpolation"] == model.preprocessing.interpolation
    assert net.pretrained_cfg["label_names"] == ["ant", "bee", "cat"]
