"""Tests python -m noah_jax.explain: numbers that add up, pictures, a page in a browser."""

import itertools
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
from noah_jax.errors import UsageError
from noah_jax.explain.__main__ import main
from noah_jax.explain.class_choice import chosen_classes, parse_choice
from noah_jax.explain.colours import KINDS, MIDDLE_GREY, TABLES, blend, table_index
from noah_jax.explain.explanation import Explainer
from noah_jax.explain.maps import common_scale, merged, overlay
from noah_jax.inference.trained import load_one
from tests.helpers import GOLDEN

# What the programs wrote is compared with what is computed anew, bit by bit.
bit_by_bit = pytest.mark.optimised

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
CHOICES = ("Bee", "top1", "2")  # of the page's classes
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
    choices = np.array([4, 1]), np.array([[4, 1], [4, 2]])
    contributions = jax.jit(model.contributions)
    same, each = (contributions(params, stats, images, chosen) for chosen in choices)
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
    arguments = ["--image", *images, "--classes", *CHOICES]
    assert main([*checkpoints, *arguments, "--output", str(folder)]) == 0
    return folder / "index.html"


def _data(page: pathlib.Path) -> list[dict]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())
    return json.loads(found[1])


@bit_by_bit
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
    # Another number of classes would be another program, which may round otherwise.
    names = trained.display_names()
    classes = chosen_classes([parse_choice(word, names, names) for word in CHOICES], logits)
    exact = explainer.explain(pixels, logits, classes).classes[0]
    assert np.array_equal(blocks.astype(np.float32), exact.contributions.reshape(2, 16))
    total = blocks.sum() + exact.bias.sum(dtype=float)
    assert total == pytest.approx(float(logits[1]), rel=1e-5, abs=1e-5)
    words = re.sub(r"<[^>]+>", "", text)
    assert f"logit {logits[1]:.6f} = contributions {blocks.sum():.6f}" in words
    assert f"{100 * exact.probability:.2f}\N{NO-BREAK SPACE}%" in words
    # All classes and checkpoints of an image share a scale: the largest of what they show.
    of_images = _by_scale(data)
    assert len(of_images) == len(images)
    for own in of_images:
        for kind, merge in (("contributions", np.sum), ("attention", np.mean)):
            merged = max(np.abs(merge(d[kind], axis=0)).max() for d in own)
            single = max(np.abs(d[kind]).max() for d in own)
            assert own[0]["scale"][kind] == pytest.approx([merged, single], rel=1e-6)


def _by_scale(data: list[dict]) -> list[list[dict]]:
    """Groups the maps that follow each other with the same scale."""
    groups = itertools.groupby(data, key=lambda d: json.dumps(d["scale"]))
    return [list(group) for _, group in groups]


@bit_by_bit
def test_the_page_stands_alone(page):
    text = page.read_text()
    assert "default-src 'none'" in text
    links = re.findall(r"""(?:src|href)=["']?([^"'\s>]+)|url\(([^)]+)\)""", text)
    assert links and all((a or b).startswith("data:") for a, b in links)
    assert "http" not in re.sub("http-equiv", "", text)


@bit_by_bit
def test_the_bars_of_the_page_have_the_colours_of_the_maps(page):
    text = page.read_text()
    tables = json.loads(
        re.search(r'<script type="application/json" id="colours">(.*?)</script>', text)[1]
    )
    for kind, table in tables.items():
        assert np.array_equal(table, TABLES[kind])
        gradient = re.search(rf"\.bar\.{kind} \{{ background: (.*?) \}}", text)[1]
        stops = re.findall(r"rgba\((\d+),(\d+),(\d+),([\d.]+)\)", gradient)
        assert len(stops) >= 17  # evenly spaced, so straight lines between them follow the table
        places = np.linspace(0, len(table) - 1, len(stops)).round().astype(int)
        for stop, place in zip(stops, places, strict=True):
            *rgb, opacity = map(float, stop)
            assert rgb == table[place][:3]
            assert opacity == pytest.approx(table[place][3] / 255, abs=1e-3)


@bit_by_bit
def test_pictures(page):
    pictures = sorted(page.parent.glob("*.png"))
    assert len(pictures) == len(_data(page))
    assert pictures[0].name.startswith("001_00_class") and pictures[0].name.endswith("_a.png")
    for path in pictures[:2]:
        picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
        assert picture.shape[1] <= 1000  # readable without zooming
        # White margins; the maps have colour, and so have the bars with both ends of the scale.
        border = np.concatenate([picture[:20].ravel(), picture[:, :20].ravel()])
        assert (border == 255).all()
        assert (np.ptp(picture, axis=2) > 40).any()
        for colour in blend(TABLES["contributions"][[0, -1]], MIDDLE_GREY).astype(int):
            assert (picture == colour).all(2).any()


# Few classes have their maps beside each other, and smaller ones.
@bit_by_bit
@pytest.mark.parametrize(("indices", "side"), [([0, 2], 148), ([0, 2, 1], 176)])
def test_all_images_in_one_picture(indices, side, tiny_run, images, tmp_path, capsys):
    arguments = ["--checkpoint", tiny_run, "--image", *images, "--cells", "--classes"]
    arguments += [*map(str, indices), "--output", str(tmp_path), "--overview"]
    assert main([*arguments, str(tmp_path / "docs/all.png")]) == 0
    assert [p.name for p in (tmp_path / "docs").iterdir()] == ["all.png"]
    picture = np.asarray(Image.open(tmp_path / "docs/all.png"))
    trained = load_one(tiny_run)
    explainer = Explainer(trained, trained.display_names())
    for path in images:
        pixels = explainer.pixels(pathlib.Path(path).read_bytes(), path)
        classes = explainer.explain(pixels, explainer.logits(pixels), indices).classes
        scale = common_scale(classes)
        for own, kind in itertools.product(classes, KINDS):
            drawn = overlay(
                pixels, merged(own, kind), scale.merged[kind], kind, side=side, cells=True
            )
            assert _holds(picture, drawn)
    assert (picture[:20] == 255).all() and (picture[:, -20:] == 255).all()
    assert picture.shape[1] <= 840  # what GitHub shows without making it smaller
    for what, words in (("all.jpg", "must end in .png"), ("all.png", "takes up to 20 images")):
        many = ["--image", *(images * 11)] if what == "all.png" else []
        assert main([*arguments, str(tmp_path / "none" / what), *many]) == 1
        assert words in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def _holds(picture: np.ndarray, part: np.ndarray) -> bool:
    """Whether a picture has another one in it, pixel by pixel."""
    height, width = part.shape[:2]
    last = picture[height - 1 :, width - 1 :]
    starts = (picture[: len(last), : last.shape[1]] == part[0, 0]).all(2)
    places = np.argwhere(starts & (last == part[-1, -1]).all(2))
    return any(np.array_equal(picture[y : y + height, x : x + width], part) for y, x in places)


@bit_by_bit
def test_the_whole_photograph_and_what_the_model_sees(tiny_run, tmp_path):
    photo = GOLDEN / "images/china.jpg"
    arguments = ["--checkpoint", tiny_run, "--image", str(photo), "--output", str(tmp_path)]
    assert main(arguments) == 0
    text = (tmp_path / "index.html").read_text()
    with Image.open(photo) as image:
        width, height = image.size
    assert width > height
    # A square out of the middle.
    left, shown = 50 * (1 - height / width), 100 * height / width
    style = re.search(r"class='frame' style='left:([\d.]+)%;top:0.00%;width:([\d.]+)%", text)
    assert [float(x) for x in style.groups()] == pytest.approx([left, shown], abs=2)
    assert "the model sees the part in the frame" in text
    # The photograph is there once, as a photograph, whatever the number of maps.
    assert text.count("<img ") == 1 and text.count("data:image/jpeg") == 1
    assert "data-block='merged'" in text


@bit_by_bit
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_in_a_browser(page, tmp_path):
    data = _data(page)
    # Points at the last position of the first map, goes there and elsewhere by keyboard, chooses a
    # block, switches to cells, and tells what the page did.
    probe = """<script>addEventListener("load", () => {
      const canvas = document.querySelector(".map canvas"), box = canvas.getBoundingClientRect();
      const at = {clientX: box.right - 1, clientY: box.bottom - 1, bubbles: true};
      const tip = document.getElementById("tip"), hidden = tip.hidden;
      const under = document.elementFromPoint(at.clientX, at.clientY);
      under.dispatchEvent(new MouseEvent("mousemove", at));
      const pointed = tip.textContent;
      const press = (element, key) =>
        element.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
      const map = canvas.closest(".map"), focusable = map.tabIndex;
      map.focus();
      press(map, "ArrowRight"); press(map, "ArrowDown"); press(map, "ArrowDown");
      const byKeys = tip.textContent;
      press(map, "Escape");
      const read = c => [...c.getContext("2d").getImageData(0, 0, c.width, c.height).data];
      const canvases = [...document.querySelectorAll("canvas")];
      const painted = canvases.map(c => read(c).some(x => x));
      const smooth = canvas.width;
      press(document.body, "c");
      const cells = read(canvas), shape = [canvas.width, canvas.height];
      const button = document.querySelector(".blocks button");
      press(button, "ArrowRight");
      const images = [...document.querySelectorAll(".image")].map(x => x.offsetHeight);
      const out = document.createElement("pre");
      out.id = "probe";
      out.textContent = JSON.stringify({hidden, pointed, byKeys, focusable, painted, images, smooth,
        cells, shape, away: tip.hidden, ticks: document.querySelector(".ticks").textContent,
        block: map.dataset.block, checked: button.getAttribute("aria-checked"),
        wide: document.documentElement.scrollWidth, window: innerWidth,
        main: document.querySelector("main").offsetWidth,
        requests: performance.getEntriesByType("resource").map(x => x.name)
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
    maps = 2 * (1 + 3)  # a large pair, and a small one for all blocks and for each of two
    assert all(seen["painted"]) and len(seen["painted"]) == len(data) * maps
    assert len(seen["images"]) == 2 and all(seen["images"])  # each image once
    assert seen["main"] > 0.9 * seen["window"] >= 0.9 * seen["wide"]
    assert seen["hidden"] and seen["away"]  # before anybody pointed, and after Escape
    assert seen["focusable"] == 0
    blocks = np.array(data[0]["contributions"])
    for tip, row, column in ((seen["pointed"], 4, 4), (seen["byKeys"], 3, 2)):
        lines = tip.splitlines()
        assert lines[0] == f"row {row}, column {column}"
        written = [re.search(r"contribution +([-+.\de]+)", line)[1] for line in lines[1:]]
        expected = blocks[:, 4 * (row - 1) + column - 1]
        assert [float(x) for x in written] == pytest.approx(
            [expected.sum(), *expected], rel=1e-3, abs=1e-12
        )
        assert all(len(re.sub(r"^[-+]0\.0*|e.*|\D", "", x)) <= 4 for x in written)  # digits
    # The cells have the colours of the table, on the scale of the merged maps.
    largest = data[0]["scale"]["contributions"]
    colours = TABLES["contributions"][table_index(blocks.sum(0), largest[0], "contributions")]
    assert seen["shape"] == [4, 4] and seen["smooth"] > 100
    painted = np.array(seen["cells"]).reshape(16, 4)
    # A canvas keeps colours multiplied by their opacity, which rounds them.
    assert np.abs(painted[:, 3] - colours[:, 3].astype(int)).max() <= 1
    shown = painted * painted[:, 3:] / 255 - colours * (colours[:, 3:] / 255)
    assert np.abs(shown[:, :3]).max() <= 2
    # The right arrow chose the first block, which has the scale of single blocks.
    assert (seen["block"], seen["checked"]) == ("0", "false")
    assert f"+{largest[1]:.3g}" in seen["ticks"]


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
        ("Beë", "no class is called 'Beë'; did you mean bee? The classes are ant, bee, cat"),
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


def test_a_misspelt_class_gets_the_near_ones():
    few = ["Hund", "Kätzchen", "Katze"]
    with pytest.raises(UsageError, match=r"did you mean Kätzchen.*\? The classes are Hund, K"):
        parse_choice("Katzchen", few, ())
    many = [f"breed {i}" for i in range(120)] + ["tench"]
    with pytest.raises(UsageError, match=r"did you mean tench\? There are 121 classes, such as"):
        parse_choice("tensch", many, ())
    with pytest.raises(UsageError, match=r"'zzz'\. There are 121 classes"):
        parse_choice("zzz", many, ())
