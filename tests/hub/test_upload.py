"""Runs export --push against a server on this machine that speaks the hub's protocol."""

import sys

import jax
import numpy as np
import pytest

from noah_jax import load_model
from noah_jax.errors import InputError
from noah_jax.export.__main__ import main
from noah_jax.hub.upload import check_upload
from tests.hub.conftest import NAME, SIZES
from tests.hub.fake_hub import Repository
from tests.pytorch.files import torch_files as files


@pytest.fixture(scope="session")
def model_file(tmp_path_factory) -> str:
    state = files.golden_state(NAME, head_num=2, **SIZES)
    path = tmp_path_factory.mktemp("model") / "in.pth"
    return str(files.write(path, state, "bare", NAME))


@pytest.fixture
def writer(hub, monkeypatch):
    """A hub on which the user `me` is logged in."""
    hub.writers["secret"] = "me"
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
    return hub


def _push(model_file: str, name: str, *words: str) -> int:
    return main(["--checkpoint", model_file, "--push", name, *words])


def test_a_model_that_was_pushed_is_the_same_everywhere(writer, model_file, tmp_path, capsys):
    out = tmp_path / "out"
    assert _push(model_file, "me/birds", "--hub", str(out), "--private") == 0
    said = capsys.readouterr().out
    assert f"{writer.url}/me/birds: noah_jax.load_model('hf://me/birds')" in said
    repository = writer.repositories["me/birds"]
    assert repository.private and repository.messages == [f"{NAME}, exported from noah_jax"]
    assert repository.files.keys() == {path.name for path in out.iterdir()}
    for name, data in repository.files.items():
        assert (out / name).read_bytes() == data
    assert b'snapshot_download("me/birds")' in repository.files["README.md"]
    weights = load_model(model_file)[1:]
    jax.tree.map(np.testing.assert_array_equal, weights, load_model("hf://me/birds")[1:])


def test_a_repository_that_is_there_gets_another_commit(writer, model_file, capsys):
    kept = Repository({"notes.txt": b"mine"}, messages=["first"])
    writer.repositories["me/birds"] = kept
    assert _push(model_file, "hf://me/birds", "--licence", "mit") == 0
    assert kept.files["notes.txt"] == b"mine" and len(kept.messages) == 2
    assert b'license: "mit"' in kept.files["README.md"] and not kept.private


def test_nobody_is_logged_in(hub, model_file, tmp_path, capsys):
    assert _push("/nowhere", "me/birds", "--hub", str(tmp_path / "out")) == 1
    assert "nobody is logged in to Hugging Face; log in by hf auth" in capsys.readouterr().err
    assert hub.requests == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "token", "problem"),
    [
        ("me/birds", "stale", "me/birds: the hub does not know the token; log in again"),
        ("you/birds", "secret", "you/birds: the token may not write there; take one with write"),
    ],
)
def test_a_token_that_will_not_do(name, token, problem, writer, model_file, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", token)
    writer.repositories["you/birds"] = Repository({})
    assert _push(model_file, name) == 1
    (error,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert problem in error and token not in error
    assert not any(repository.files for repository in writer.repositories.values())


@pytest.mark.parametrize("where", ["/api/repos", "/preupload/", "/blobs/", "/commit/"])
def test_a_connection_that_breaks_leaves_nothing_half(where, writer, model_file, capsys):
    writer.repositories["me/birds"] = Repository({"README.md": b"old"})
    writer.cuts = [where]
    assert _push(model_file, "me/birds") == 1
    (error,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert "me/birds: the upload failed (" in error and "nothing of the folder is in the" in error
    assert writer.repositories["me/birds"].files == {"README.md": b"old"}
    writer.cuts = []
    assert _push(model_file, "me/birds") == 0
    assert "model.safetensors" in writer.repositories["me/birds"].files


def test_names(writer):
    assert check_upload("hf://me/birds") == check_upload("me/birds") == "me/birds"
    for wrong in ("birds", "me/birds/x.pth", "me/birds@main", "https://huggingface.co/me/birds"):
        with pytest.raises(InputError, match=r"is no repository of Hugging Face|takes USER/NAME"):
            check_upload(wrong)


def test_without_huggingface_hub(model_file, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert _push(model_file, "me/birds") == 1
    assert "pip install 'noah-jax[hub]'" in capsys.readouterr().err


def test_timm_loads_what_was_pushed(writer, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    state = files.golden_state("mobilenetv2_035", num_classes=5, image_size=32)
    source = files.write(tmp_path / "in.pth", state, "bare", "mobilenetv2_035")
    assert _push(str(source), "me/mobile", "--crop", "64") == 0
    constants = sys.modules["huggingface_hub.constants"]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "timm"))
    net = timm.create_model("hf_hub:me/mobile", pretrained=True).eval()
    model, params, stats = load_model("hf://me/mobile")
    images = np.random.RandomState(0).randn(2, 64, 64, 3).astype(np.float32)
    expected = np.asarray(model.predict(params, stats, images))
    with torch.inference_mode():
        actual = net(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-4 * expected.std())
