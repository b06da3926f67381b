"""Tests python -m noah_jax.explain: numbers that add up, pictures, a page in a browser."""

import json
import os
import pathlib
import re
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from noah_jax import create_model, list_models
from noah_jax.explain.__main__ import main
from noah_jax.explain.explanation import Explainer
from noah_jax.inference.trained import load_one

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
# Small ones of most families; `pytest -m slow` takes all models.
TINY = {
    "noah_resnet18": {"image_size": 32, "width": 4, "depths": (1, 1, 1, 1), "head_num": 2},
    "noah_mobilenetv3_small": {"image_size": 64},
    "noah_deit_tiny_patch16_224": {"image_size": 48, "depth": 1},
    "noah_pvt_tiny": {"image_size": 64, "depths": (1, 1, 1, 1)},
    "noah_mixer_s16_224": {"image_size": 48, "depth": 1},
    "noah_resmlp_12_224": {"image_size": 48, "depth": 1},
}


def _weights(model):
    random = np.random.RandomState(0)

    def draw(path, leaf):
        drawn = random.standard_normal(leaf.shape).astype(np.float32)
        if leaf.ndim < 2 or "bias" in jax.tree_util.keystr(path):
            return np.float32(0.5) + drawn**2 / 4
        return drawn / np.sqrt(np.float32(leaf.size / leaf.shape[-1]))

    return jax.tree_util.tree_map_with_path(draw, model.abstract())


def _contributions_add_up(model):
    params, stats = _weights(model)
    random = np.random.RandomState(1)
    images = random.standard_normal((2, *model.image_size, 3)).astype(np.float32)
    classes = jnp.array([3, 0])

    def compute(params, stats, images):
        logits = model.apply(params, stats, images, train=False)[0]
        return logits, model.contributions(params, stats, images, classes)

    quick = {"xla_backend_optimization_level": 0}
    logits, parts = jax.jit(compute, compiler_options=quick)(params, stats, images)
    wide = np.asarray(parts.contributions, np.float64)
    total = wide.sum((1, 3, 4)) + np.asarray(parts.bias).sum(1)
    assert (np.asarray(parts.bias) > 0).all()
    # The rounding error is relative to the summands, which may cancel in the sum.
    magnitude = np.abs(wide).sum((1, 3, 4)).max()
    assert np.abs(total - np.asarray(logits)[:, [3, 0]]).max() <= 1e-5 * magnitude
    assert np.asarray(parts.attention).sum((3, 4)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_contributions_and_bias_are_the_logits(name):
    _contributions_add_up(create_model(name, num_classes=5, **TINY[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models("noah_*"))
def test_contributions_and_bias_are_the_logits_of_every_model(name):
    _contributions_add_up(create_model(name, num_classes=5))


def test_classes_of_each_image_and_switches():
    model = create_model(
        "noah_resnet18",
        num_classes=5,
        **TINY["noah_resnet18"],
        head_split=False,
        kv_split=False,
    )
    _contributions_add_up(model)
    params, stats = _weights(model)
    images = np.random.RandomState(1).standard_normal((2, 32, 32, 3)).astype(np.float32)
    same = model.contributions(params, stats, images, jnp.array([4, 1]))
    each = model.contributions(params, stats, images, jnp.array([[4, 1], [4, 2]]))
    for a, b in zip(same, each, strict=True):
        assert np.asarray(b[0]) == pytest.approx(np.asarray(a[0]), rel=1e-5)
        assert np.asarray(b[:, :, 0]) == pytest.approx(np.asarray(a[:, :, 0]), rel=1e-5)
    assert not np.array_equal(same.bias[1, :, 1], each.bias[1, :, 1])


@pytest.fixture(scope="module")
def images(class_folders) -> list[str]:
    return [f"{class_folders}/val/ant/00.png", f"{class_folders}/val/cat/03.png"]


@pytest.fixture(scope="module")
def page(tiny_run, images, tmp_path_factory) -> pathlib.Path:
    """The page of two checkpoints, two images and two classes each."""
    folder = tmp_path_factory.mktemp("explain")
    checkpoints = ["--checkpoint", tiny_run, "--checkpoint", f"{tiny_run}/checkpoints/6"]
    arguments = ["--image", *images, "--classes", "Bee", "top1", "2"]
    assert main([*checkpoints, *arguments, "--output", str(folder)]) == 0
    return folder / "index.html"


def _data(page: pathlib.Path) -> list[dict]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())
    return json.loads(found[1])


def test_the_numbers_of_the_page(page, tiny_run, images):
    text, data = page.read_text(), _data(page)
    trained = load_one(tiny_run)
    explainer = Explainer(trained, trained.display_names())
    pixels = explainer.pixels(pathlib.Path(images[0]).read_bytes(), images[0])
    logits = explainer.logits(pixels)
    # The first image's class bee, by the newest checkpoint.
    assert len(data) % 2 == 0 and (data[0]["rows"], data[0]["columns"]) == (4, 4)
    blocks = np.array(data[0]["contributions"])
    assert blocks.shape == (2, 16)
    exact = explainer.explain(pixels, logits, [1]).classes[0]
    assert np.array_equal(blocks.astype(np.float32), exact.contributions.reshape(2, 16))
    total = blocks.sum() + exact.bias.sum(dtype=float)
    assert total == pytest.approx(float(logits[1]), rel=1e-5, abs=1e-5)
    assert f"logit {logits[1]:.6f} = contributions {blocks.sum():.6f}" in text
    # Both checkpoints share a scale, which is the largest of what they show.
    assert data[0]["scale"] == data[1]["scale"] != data[2]["scale"]
    largest = [
        max(np.abs(np.sum(d["contributions"], 0)).max(), np.abs(d["contributions"]).max())
        for d in data[:2]
    ]
    assert data[0]["scale"][0] == pytest.approx(max(largest), rel=1e-6)


def test_the_page_stands_alone(page):
    text = page.read_text()
    assert "default-src 'none'" in text
    links = re.findall(r"""(?:src|href)=["']?([^"'\s>]+)|url\(([^)]+)\)""", text)
    assert links and all((a or b).startswith("data:") for a, b in links)
    assert "http" not in re.sub("http-equiv", "", text)


def test_pictures(page):
    pictures = sorted(page.parent.glob("*.png"))
    assert len(pictures) == len(_data(page))
    assert pictures[0].name.startswith("001_00_class") and pictures[0].name.endswith("_a.png")
    # The merged contributions are not the bare image.
    strip = np.asarray(Image.open(pictures[0]).convert("RGB")).astype(int)
    side, left = 224, 224 + 6
    assert (
        np.abs(strip[16 : 16 + side, :side] - strip[16 : 16 + side, left : left + side]).max() > 20
    )


def test_all_images_in_one_picture(tiny_run, images, tmp_path, capsys):
    arguments = ["--checkpoint", tiny_run, "--image", *images, "--classes", "0", "2"]
    arguments += ["--output", str(tmp_path), "--overview"]
    assert main([*arguments, str(tmp_path / "docs/all.png")]) == 0
    assert [p.name for p in (tmp_path / "docs").iterdir()] == ["all.png"]
    picture = np.asarray(Image.open(tmp_path / "docs/all.png")).astype(int)
    side, line, gap, wide = 224, 36, 6, 24
    row = 2 * line + side + wide
    assert picture.shape[:2] == (2 * row + line, side + 2 * (wide + 2 * side + gap))
    trained = load_one(tiny_run)
    explainer = Explainer(trained, trained.display_names())
    for number, path in enumerate(images):
        pixels = explainer.pixels(pathlib.Path(path).read_bytes(), path)
        top = number * row + 2 * line
        shown = picture[top : top + side]
        assert np.array_equal(shown[4::8, :side][:, 4::8], pixels)
        classes = explainer.explain(pixels, explainer.logits(pixels), [0, 2]).classes
        left = side + wide + (side + gap)  # of the first class's contributions
        maps = [np.abs(x.merged_contributions) for x in classes]
        largest = max(m.max() for m in maps)
        for i, (own, values) in enumerate(zip(classes, maps, strict=True)):
            at = left + i * (2 * side + gap + wide)
            found = shown[4::8, at : at + side][:, 4::8]
            share = (0.85 * values / largest).repeat(7, 0).repeat(7, 1)[..., None]
            colours = np.where(own.merged_contributions < 0, 1, 0)
            colours = np.array([(200, 30, 30), (30, 70, 210)])[colours]
            colours = colours.repeat(7, 0).repeat(7, 1)
            expected = share * colours + (1 - share) * pixels
            assert np.abs(found - expected).max() <= 2
    for what, words in (("all.jpg", "must end in .png"), ("all.png", "takes up to 20 images")):
        many = ["--image", *(images * 11)] if what == "all.png" else []
        assert main([*arguments, str(tmp_path / "none" / what), *many]) == 1
        assert words in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_in_a_browser(page, tmp_path):
    data = _data(page)
    # Points at the last position of the first map and tells what the page did.
    probe = """<script>addEventListener("load", () => {
      const canvas = document.querySelector(".map canvas"), box = canvas.getBoundingClientRect();
      const at = {clientX: box.right - 1, clientY: box.bottom - 1, bubbles: true};
      const hidden = document.getElementById("tip").hidden;
      const under = document.elementFromPoint(at.clientX, at.clientY);
      under.dispatchEvent(new MouseEvent("mousemove", at));
      const painted = [...document.querySelectorAll(".map canvas")].map(c =>
        [...c.getContext("2d").getImageData(0, 0, c.width, c.height).data].some(x => x));
      const images = [...document.querySelectorAll(".image")].map(x => x.offsetHeight);
      const out = document.createElement("pre");
      out.id = "probe";
      out.textContent = JSON.stringify({hidden, tip: document.getElementById("tip").textContent,
        painted, images, requests: performance.getEntriesByType("resource").map(x => x.name)
          .filter(x => !x.startsWith("data:"))});
      document.body.append(out);
    });</script></body>"""
    copy = tmp_path / "page.html"
    copy.write_text(page.read_text().replace("</body>", probe))
    command = [CHROMIUM, "--headless", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--no-sandbox"] if os.getuid() == 0 else []
    command += ["--virtual-time-budget=5000", "--window-size=1400,1000", "--dump-dom"]
    ran = subprocess.run([*command, copy.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="probe">(.*?)</pre>', ran.stdout)
    assert found, ran.stderr[-2000:]
    seen = json.loads(found[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))
    assert seen["requests"] == []
    assert all(seen["painted"]) and len(seen["painted"]) == len(data) * 2 * 3  # merged, two blocks
    assert len(seen["images"]) == len(data) and all(seen["images"])
    assert seen["hidden"]  # before anybody pointed
    lines = seen["tip"].splitlines()
    assert lines[0] == "row 4, column 4"
    numbers = [float(re.search(r"contribution ([-+.\de]+)", line)[1]) for line in lines[1:]]
    expected = [block[-1] for block in data[0]["contributions"]]
    assert numbers == pytest.approx([sum(expected), *expected], rel=1e-6)


def test_corrupt_images_are_named_and_skipped(tiny_run, images, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"no")
    arguments = ["--image", str(tmp_path / "bad.png"), images[0], "--output", str(tmp_path / "out")]
    assert main(["--checkpoint", tiny_run, *arguments]) == 1
    assert "bad.png cannot be decoded" in capsys.readouterr().err
    assert len(list((tmp_path / "out").glob("*.png"))) == 3  # top3, of the other one


def test_one_line_for_what_does_not_fit(tiny_run, images, tmp_path, capsys):
    for classes, words in (
        ("dog", "no class is called 'dog'"),
        ("an", "did you mean ant"),
        ("3", "the classes are 0 to 2"),
        ("top4", "there are 3 classes"),
    ):
        arguments = ["--image", images[0], "--output", str(tmp_path / "out"), "--classes", classes]
        assert main(["--checkpoint", tiny_run, *arguments]) == 1
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_heads_are_refused(tiny_run):
    trained = load_one(tiny_run)
    other = create_model("deit_tiny_patch16_224")
    other.preprocessing = trained.preprocessing
    object.__setattr__(trained, "model", other)
    with pytest.raises(ValueError, match=r"linear head.* has no attention"):
        Explainer(trained, ["x"] * 1000)
