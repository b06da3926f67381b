"""Tests starting from other weights: another head or image size, weights that do not fit."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from etils import epath
from flax.traverse_util import flatten_dict

from noah_jax import create_model, load_model
from noah_jax.inference.description import published_preprocessing
from noah_jax.inference.initial_weights import load_initial_weights
from noah_jax.models.positions import resize_bicubic
from noah_jax.runs.checkpoints import save_model
from noah_jax.runs.run_dir import CHECKPOINTS, prepare_folder
from noah_jax.train import main as train_program
from noah_jax.train import train
from noah_jax.train.finetune import take_over
from noah_jax.train.setup import build
from tests.helpers import make_tiny_config

CONFIG = """
from tests.helpers import make_tiny_config
from tests.train.test_finetune import shorten

def get_config():
    return shorten(make_tiny_config({folder!r}))
"""


def shorten(config):
    """A run of four steps without augmentation."""
    config.update(erase_prob=0.0, mixup=0.0, cutmix=0.0, mix_group=None)
    config.epochs = 4.0
    config.data.drop_last = True
    config.batch_size = 40
    config.checkpoint_every = 2
    config.log_every = config.eval_every = 4
    return config


@pytest.fixture(scope="module")
def pretrained(tiny_run):
    """The folder of a run on three classes."""
    return pathlib.Path(tiny_run)


@pytest.fixture(scope="module")
def two_classes(class_folders, tmp_path_factory):
    """The class folders without one of the classes."""
    folder = tmp_path_factory.mktemp("two") / "classes"
    return shutil.copytree(class_folders, folder, ignore=shutil.ignore_patterns("cat"))


def _flat(tree):
    return {k: np.asarray(v) for k, v in flatten_dict(tree, sep="/").items()}


def _save(folder, name, **arguments):
    """Saves a folder as the converter does; returns the model and its parameters."""
    model = create_model(name, **arguments)
    random = np.random.RandomState(1)
    params, stats = jax.tree.map(
        lambda leaf: random.standard_normal(leaf.shape).astype(np.float32), model.abstract()
    )
    names = [str(i) for i in range(model.num_classes)]
    prepare_folder(
        epath.Path(folder),
        {},
        model_name=model.name,
        model_arguments=model.arguments,
        class_names=names,
        preprocessing=published_preprocessing(model).to_json(),
        data={},
    )
    save_model(folder / CHECKPOINTS, {"params": params, "stats": stats})
    return model, _flat(params)


def test_fine_tuning_on_other_classes(pretrained, two_classes, tmp_path, capsys):
    source = shutil.copytree(pretrained, tmp_path / "source")
    (tmp_path / "config.py").write_text(CONFIG.format(folder=str(two_classes)))
    command = [f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/tuned"]
    command += [f"--config.init_from={source}", "--config.optim.freeze=^(?!head/)"]
    command += ["--config.optim.param_groups=('^head/query', 2.0),"]
    assert train_program(command) == 0
    said = capsys.readouterr().out
    old_model, *old = load_model(str(source))
    new_model, *new = load_model(str(tmp_path / "tuned"))
    size = old_model.num_params
    assert f"starting from noah_resnet18, {size:,} parameters, in {source} after step 12" in said
    words = "the head is fresh: NOAH with N=2, r=0.5 of {} classes there, {} here"
    assert words.format(3, "NOAH with N=2, r=0.5 of 2 classes") in said
    old_params, old_stats, params, stats = map(_flat, (*old, *new))
    trained = sum(x.size for key, x in params.items() if key.startswith("head/"))
    assert f"{new_model.num_params - trained:,} parameters are frozen, {trained:,} are" in said
    assert "parameters is 2 times the schedule's" in said
    assert params["head/query/bias"].shape == (2, 2)
    for key in params:
        if not key.startswith("head/"):
            np.testing.assert_array_equal(params[key], old_params[key])
    # Statistics go on from where they were, frozen or not, as in PyTorch.
    assert not np.array_equal(stats["bn1/mean"], old_stats["bn1/mean"])
    # Resumed half-way it needs the folder no more, and ends up the same.
    tuned, whole = tmp_path / "tuned", json.loads((tmp_path / "tuned/results.json").read_text())
    shutil.rmtree(source)
    shutil.rmtree(tuned / "checkpoints/4")
    (tuned / "results.json").unlink()
    assert train_program(command) == 0
    assert "going on after step 2" in capsys.readouterr().out
    assert json.loads((tuned / "results.json").read_text()) == whole
    for a, b in zip(_flat(load_model(str(tuned))[1]).values(), params.values(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("ema", [False, True])
def test_the_state_starts_at_the_weights(pretrained, class_folders, ema):
    config = shorten(make_tiny_config(class_folders))
    config.init_from, config.init_ema = str(pretrained), ema
    setup = build(config)
    state = take_over(setup.states.create(), setup.load_initial_weights())
    _, params, stats = load_model(str(pretrained), ema=ema)
    weights = {"params": params, "stats": stats}
    for got in ({key: state[key] for key in weights}, state["ema"]):
        assert jax.tree.structure(got) == jax.tree.structure(weights)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(weights), strict=True):
            np.testing.assert_array_equal(a, b)
    assert state["step"] == 0
    abstract = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), setup.states.abstract())
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state) == abstract


def test_bicubic_is_pytorchs(golden):
    with np.load(golden / "bicubic.npz") as arrays:
        resized = [key for key in arrays if "/" in key]
        assert len(resized) > 5
        for key in resized:
            sizes, antialias = key.removesuffix("/antialiased"), key.endswith("/antialiased")
            old, new = (tuple(map(int, size.split("x"))) for size in sizes.split("/"))
            got = resize_bicubic(arrays[key.partition("/")[0]], old, new, antialias=antialias)
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, arrays[key], rtol=0, atol=1e-6)


def test_bicubic_beside_pytorch():
    torch = pytest.importorskip("torch")
    x = np.random.RandomState(0).randn(1, 15, 4).astype(np.float32)
    image = torch.from_numpy(x).double().reshape(1, 5, 3, 4).permute(0, 3, 1, 2)
    for new in ((9, 4), (2, 8), (5, 6)):
        want = torch.nn.functional.interpolate(image, size=new, mode="bicubic", align_corners=False)
        want = want.permute(0, 2, 3, 1).flatten(1, 2)
        np.testing.assert_allclose(resize_bicubic(x, (5, 3), new), want, rtol=0, atol=1e-6)


DEIT = dict(width=12, depth=1, num_heads=3, patch_size=8, num_classes=3)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "noah_deit_tiny_patch16_224"])
def test_position_embeddings_at_another_size(tmp_path, name):
    _, saved = _save(tmp_path / "deit", name, image_size=32, **DEIT)
    model = create_model(name, image_size=(40, 56), **DEIT)
    initial = load_initial_weights(str(tmp_path / "deit"), model)
    token = saved["pos_embed"].shape[1] - 16
    assert token == (not name.startswith("noah"))
    got = initial.params["pos_embed"]
    assert got.shape == (1, token + 5 * 7, 12)
    np.testing.assert_array_equal(got[:, :token], saved["pos_embed"][:, :token])
    grid = resize_bicubic(saved["pos_embed"][:, token:], (4, 4), (5, 7))
    np.testing.assert_array_equal(got[:, token:], grid)
    assert "pos_embed resized bicubically from 4x4 to 5x7 positions" in initial.lines
    assert initial.params.keys() == saved.keys()  # the head too: it is the same
    shapes = {k: x.shape for k, x in flatten_dict(model.abstract()[0], sep="/").items()}
    assert {k: x.shape for k, x in initial.params.items()} == shapes


def test_dinov2_at_another_size_and_under_a_new_head(tmp_path):
    sizes = dict(width=12, depth=1, num_heads=3, num_classes=3)
    name = "vit_small_patch14_dinov2"
    _, saved = _save(tmp_path / "dinov2", name, image_size=56, features_only=True, **sizes)
    model = create_model(f"noah_{name}", image_size=(28, 70), head_num=2, **sizes)
    initial = load_initial_weights(str(tmp_path / "dinov2"), model)
    got = initial.params["pos_embed"]
    np.testing.assert_array_equal(got[:, :1], saved["pos_embed"][:, :1])
    grid = resize_bicubic(saved["pos_embed"][:, 1:], (4, 4), (2, 5), antialias=True)
    np.testing.assert_array_equal(got[:, 1:], grid)
    lines = " ".join(initial.lines)
    assert "pos_embed resized bicubically, antialiased, from 4x4 to 2x5 positions" in lines
    assert "the head is fresh: none there" in lines
    assert initial.params.keys() == saved.keys()


@pytest.mark.slow
def test_pvt_at_another_size(tmp_path):
    sizes = dict(widths=(4, 4, 4, 4), depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    _, saved = _save(tmp_path / "pvt", "pvt_tiny", image_size=64, num_classes=3, **sizes)
    model = create_model("pvt_tiny", image_size=96, num_classes=3, **sizes)
    initial = load_initial_weights(str(tmp_path / "pvt"), model)
    for stage, (old, new) in enumerate(((16, 24), (8, 12), (4, 6), (2, 3)), start=1):
        key, token = f"pos_embed{stage}", int(stage == 4)
        grid = resize_bicubic(saved[key][:, token:], (old, old), (new, new))
        np.testing.assert_array_equal(initial.params[key][:, token:], grid)
        np.testing.assert_array_equal(initial.params[key][:, :token], saved[key][:, :token])


def test_another_kind_of_head_and_the_class_token(tmp_path):
    linear, noah = "deit_tiny_patch16_224", "noah_deit_tiny_patch16_224"
    _, saved = _save(tmp_path / "linear", linear, image_size=32, **DEIT)
    initial = load_initial_weights(
        str(tmp_path / "linear"), create_model(noah, image_size=32, **DEIT)
    )
    assert "left out, because only the head there needs them: cls_token" in initial.lines
    np.testing.assert_array_equal(initial.params["pos_embed"], saved["pos_embed"][:, 1:])
    assert not any(key.startswith("head/") for key in initial.params)

    _, saved = _save(tmp_path / "noah", noah, image_size=32, **DEIT)
    initial = load_initial_weights(
        str(tmp_path / "noah"), create_model(linear, image_size=32, **DEIT)
    )
    assert "fresh as well, because only this head needs them: cls_token" in initial.lines
    assert "cls_token" not in initial.params and not initial.params["pos_embed"][:, 0].any()
    np.testing.assert_array_equal(initial.params["pos_embed"][:, 1:], saved["pos_embed"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(width=24), "width is 12 there and 24 here; .* of another shape, such as blocks/0/"),
        (dict(depth=2), r"depth is 1 there and 2 here; 12 missing there, such as blocks/1/attn"),
        (dict(num_heads=4), "num_heads is 3 there and 4 here$"),
        (dict(pre_logits=False), "unknown here, such as pre_logits/bias, pre_logits/kernel"),
        (dict(patch_size=16, image_size=48), "patch_size is 8 there and 16 here"),
        (dict(name="noah_resnet18"), "deit_tiny_patch16_224 there does not fit noah_resnet18 here"),
    ],
)
def test_another_backbone_is_refused(tmp_path, change, words):
    _save(tmp_path / "deit", "deit_tiny_patch16_224", image_size=32, **DEIT)
    arguments = dict(name="deit_tiny_patch16_224", image_size=32, **DEIT) | change
    if arguments["name"] == "noah_resnet18":
        arguments = dict(name="noah_resnet18", width=4)
    with pytest.raises(ValueError, match=words) as caught:
        load_initial_weights(str(tmp_path / "deit"), create_model(**arguments))
    assert "\n" not in str(caught.value)


def test_token_mixing_keeps_its_image_size(tmp_path):
    sizes = dict(width=8, depth=1, num_classes=3)
    _save(tmp_path / "mixer", "mixer_s16_224", image_size=32, **sizes)
    model = create_model("mixer_s16_224", image_size=48, **sizes)
    words = "blocks/0/mlp_tokens/.* mix the tokens of images of 32x32 pixels .* here 48x48, to that"
    with pytest.raises(ValueError, match=words):
        load_initial_weights(str(tmp_path / "mixer"), model)


def test_what_cannot_be_read_leaves_no_folder(pretrained, class_folders, tmp_path):
    config = shorten(make_tiny_config(class_folders))
    config.init_ema = True
    with pytest.raises(ValueError, match="init_ema=True needs init_from"):
        train(config, str(tmp_path / "new"))
    config.init_from = str(pretrained.with_name("rum"))
    with pytest.raises(ValueError, match=r"init_from=.* holds no model\.json.*did you mean .*run"):
        train(config, str(tmp_path / "new"))
    config.init_from = str(pretrained)
    config.model.width = 8
    with pytest.raises(ValueError, match="width is 4 there and 8 here"):
        train(config, str(tmp_path / "new"))
    config.model.width = 4
    config.optim.freeze = ("haed/",)
    with pytest.raises(ValueError, match="'haed/' matches no parameter"):
        train(config, str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
