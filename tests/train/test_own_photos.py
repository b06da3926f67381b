"""Tests `configs/finetune.py`: a folder of photographs becomes a model, from few images or many."""

import json
import shlex

import numpy as np
import pytest
from etils import epath
from flax.traverse_util import flatten_dict
from PIL import Image

from noah_jax import create_model
from noah_jax.__main__ import main as noah_jax
from noah_jax.config_flags import parse_config
from noah_jax.runs.run_dir import check_config
from noah_jax.train.choices import leaves_open, remember, settle_by_size, settle_model
from noah_jax.train.messages import few_images_warning
from noah_jax.train.program import closing_words
from noah_jax.train.setup import build
from tests.helpers import GOLDEN, ROOT

RECIPE = str(ROOT / "configs" / "finetune.py")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Class folders of 3 x 15 photographs: large parts of three, some of them on end."""
    root = tmp_path_factory.mktemp("own") / "my photos"
    random = np.random.RandomState(0)
    files = {"china": "china.jpg", "flower": "flower_png.JPEG", "rocket": "rocket_exif.jpg"}
    for name, file in files.items():
        (root / name).mkdir(parents=True)
        photo = Image.open(GOLDEN / "images" / file).convert("RGB")
        for i in range(15):
            width, height = (round(x * random.uniform(0.6, 0.95)) for x in photo.size)
            x = random.randint(0, photo.width - width)
            y = random.randint(0, photo.height - height)
            part = photo.crop((x, y, x + width, y + height))
            part = part.resize((120, 90) if i % 3 else (90, 120))
            part.save(root / name / f"IMG_{name}_{i}.jpg", quality=85)
    return root


def _run(words):
    """Runs a command line of `noah-jax`; returns its exit code."""
    with pytest.raises(SystemExit) as ended:
        noah_jax(words)
    return ended.value.code


def _recipe(*changes, variant=""):
    return parse_config([f"--config={RECIPE}{variant}", *(f"--config.{c}" for c in changes)])


def _values(config):
    """The keys of a configuration that are not None."""
    return {k: v for k, v in flatten_dict(config, sep=".").items() if v is not None}


def test_from_a_folder_to_accuracy_and_attention_maps(photos, tiny_run, tmp_path, capsys):
    run = tmp_path / "a run"
    command = ["train", f"--config={RECIPE}", f"--config.dataset=folder:{photos}"]
    command += [f"--config.init_from={tiny_run}", "--workdir", str(run)]
    assert _run([*command, "--config.epochs=40"]) == 0
    said, complaints = capsys.readouterr()
    assert "warning" not in complaints
    lines = said.splitlines()
    assert lines[0].startswith(f"{photos} is split: ") and "chosen by a hash" in lines[0]
    assert "chosen for" in said and "batch_size=8" in said
    # The important lines stand together before the first step, and the parameters in a file.
    first_step = next(i for i, line in enumerate(lines) if line.startswith("step "))
    assert first_step < 15
    head = "\n".join(lines[:first_step])
    for words in ("starting from", "the head is fresh", "steps of 8 images", "0.1 times"):
        assert words in head
    assert "head/query/kernel" in (run / "parameters.txt").read_text()
    results = json.loads((run / "results.json").read_text())
    assert max(results["top1"], results["ema_top1"]) >= 75  # 33 by chance

    # The commands that are proposed are about this run, and work.
    start = "try next     python -m noah_jax "
    commands = [shlex.split(x.removeprefix(start)) for x in lines if x.startswith(start)]
    assert [words[0] for words in commands] == ["evaluate", "predict", "explain"]
    for words in commands:
        assert _run(words) == 0, words
    report = json.loads((run / "report" / "report.json").read_text())
    assert report["examples"] == results["examples"]
    assert report["top1"] == pytest.approx(max(results["top1"], results["ema_top1"]), abs=15)
    assert (run / "explanation" / "index.html").exists()
    # The examples are evaluation images, in folders of their classes.
    split = json.loads((run / "split.json").read_text())
    examples = {f"{p.parent.name}/{p.name[7:]}" for p in (run / "examples").rglob("*.jpg")}
    assert examples and examples <= split["evaluation"].keys()

    # The same folder by its name is evaluated without the images that were trained on.
    capsys.readouterr()
    evaluate = ["evaluate", "--checkpoint", str(run), "--json", "--dataset"]
    assert _run([*evaluate, f"folder:{photos}"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == len(split["evaluation"])
    # Started again it knows what it chose, and another batch is another run.
    assert _run([*command, "--config.epochs=40"]) == 0
    assert "is finished" in capsys.readouterr().out
    assert _run([*command, "--config.epochs=40", "--config.batch_size=4"]) == 1
    assert "batch_size is 8 there and 4 here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("images", "batch_size", "epochs", "log_every", "warmup_steps"),
    [(5, 8, 60, 1, 4), (45, 8, 60, 1, 34), (1_000, 32, 16, 8, 50), (100_000, 128, 10, 50, 500)],
)
def test_the_recipe_fits_the_set(images, batch_size, epochs, log_every, warmup_steps):
    config = _recipe("init_from=somewhere")
    config = settle_by_size(config, num_images=images, num_devices=1)
    assert (config.batch_size, config.epochs, config.log_every) == (batch_size, epochs, log_every)
    steps_per_epoch = images / batch_size
    assert round(config.optim.warmup_epochs * steps_per_epoch) == warmup_steps
    steps = epochs * steps_per_epoch
    assert 1 / (1 - config.ema_decay) == pytest.approx(0.1 * steps, rel=0.1)
    assert config.optim.param_groups == (("^(?!head/)", 0.1),)
    assert not leaves_open(settle_model(_recipe("model.name=resnet18"))) or config.data.mean is None


def test_what_is_given_is_kept(photos):
    config = _recipe("batch_size=6", "epochs=3.0", "ema_decay=0.5", "optim.warmup_epochs=0.0")
    config = settle_by_size(config, num_images=45, num_devices=1)
    given = (config.batch_size, config.epochs, config.ema_decay, config.optim.warmup_epochs)
    assert given == (6, 3, 0.5, 0)
    assert config.optim.param_groups == ()  # Everything is fresh.
    # Three devices share a batch evenly; a published recipe stays as it is.
    assert settle_by_size(_recipe(), num_images=45, num_devices=3).batch_size == 9
    published = parse_config([f"--config={ROOT}/configs/resnet.py:noah_resnet18"])
    assert settle_by_size(settle_model(published), num_images=45, num_devices=1) == published


def test_the_model_is_that_of_the_weights(tiny_run, tmp_path):
    config = settle_model(_recipe(f"init_from={tiny_run}"))
    model = config.model
    assert (model.name, model.width, model.stem) == ("noah_resnet18", 4, "small")
    assert (model.image_size, model.head_num, model.get("num_classes")) == (28, 2, None)
    linear = settle_model(_recipe(f"init_from={tiny_run}", variant=":linear")).model
    assert linear.name == "resnet18" and "head_num" not in linear
    larger = settle_model(_recipe(f"init_from={tiny_run}", "model.image_size=64")).model
    assert larger.image_size == 64
    # A converted folder has no configuration; a linear backbone gets the published NOAH head.
    source = create_model("deit_tiny_patch16_224", width=64, depth=1, num_heads=1, num_classes=7)
    description = {"name": source.name, "arguments": source.arguments}
    (tmp_path / "model.json").write_text(json.dumps(description))
    config = settle_model(_recipe(f"init_from={tmp_path}"))
    assert (config.model.name, config.model.width) == ("noah_deit_tiny_patch16_224", 64)
    assert tuple(config.data.mean) == tuple(source.mean)
    created = create_model(num_classes=3, **{k: v for k, v in config.model.items() if v})
    assert created.arguments["head"] == "noah" and created.arguments["head_num"] == 4
    with pytest.raises(ValueError, match=r"init_from=.*/none: .* holds no model\.json"):
        settle_model(_recipe(f"init_from={tmp_path}/none"))


def test_a_resumed_run_takes_what_was_chosen(tiny_run, photos, tmp_path):
    config = _recipe(f"init_from={tiny_run}", f"dataset=folder:{photos}")
    chosen = json.loads(build(config).config.to_json_best_effort())
    (tmp_path / "config.json").write_text(json.dumps(chosen))
    again = json.loads(remember(config, chosen).to_json_best_effort())
    # Neither the number of images nor the weights to start with are looked at again.
    assert _values(again) == _values(chosen)
    check_config(epath.Path(tmp_path), again)
    check_config(epath.Path(tmp_path), json.loads(config.to_json_best_effort()))
    for change in ("model.head_num=3", "model.image_size=32", "ema_span=0.0", "epochs=7.0"):
        other = _recipe(f"init_from={tiny_run}", f"dataset=folder:{photos}", change)
        with pytest.raises(ValueError, match="holds a run of another configuration"):
            check_config(epath.Path(tmp_path), json.loads(other.to_json_best_effort()))
    # Runs from before these keys existed had their defaults.
    del chosen["ema_span"], chosen["data"]["eval_fraction"]
    (tmp_path / "config.json").write_text(json.dumps(chosen | {"ema_decay": None}))
    given = {**chosen, "ema_decay": None, "ema_span": 0.0}
    given["data"] = {**chosen["data"], "eval_fraction": 0.2}
    check_config(epath.Path(tmp_path), given)


def test_few_images_without_weights_are_warned_of(photos, tiny_run):
    setup = build(_recipe(f"dataset=folder:{photos}", variant=":linear"))
    assert setup.model.name == "resnet18"
    warning = few_images_warning(setup)
    assert "all weights start afresh" in warning and "--config.init_from=PATH" in warning
    setup = build(_recipe(f"dataset=folder:{photos}", f"init_from={tiny_run}"))
    assert few_images_warning(setup) is None


def test_linear_heads_are_not_to_be_explained(tmp_path):
    (tmp_path / "examples").mkdir()
    results = {"loss": 1.0, "ema_loss": 2.0}
    for head, programs in (("linear", 2), ("noah", 3)):
        description = {"name": "resnet18", "arguments": {"head": head}}
        (tmp_path / "model.json").write_text(json.dumps(description))
        assert closing_words(str(tmp_path), results).count("try next") == programs
    assert "--ema" not in closing_words(str(tmp_path), results)
    assert closing_words(str(tmp_path), results | {"ema_loss": 0.5}).count("--ema") == 3
