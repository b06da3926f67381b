"""Repositories of Hugging Face, from a server on this machine that speaks the hub's protocol."""

import json
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load, save

from noah_jax import load_model
from noah_jax.config import default_config
from noah_jax.convert.__main__ import main as convert_main
from noah_jax.errors import InputError, MissingError, MissingPackageError, ReadError
from noah_jax.hub.names import parse_hub_name
from noah_jax.hub.resolve import local_checkpoint
from noah_jax.inference.trained import load_one
from noah_jax.train.choices import settle_model
from tests.hub.conftest import NAME, SIZES
from tests.hub.fake_hub import Repository
from tests.pytorch.files import torch_files as files

MODEL = "hf://timm/resnet18.mine"


@pytest.fixture
def repository(hub, weights, timm_config) -> Repository:
    """A repository as timm writes it."""
    found = Repository({"model.safetensors": weights, "config.json": timm_config})
    hub.repositories["timm/resnet18.mine"] = found
    return found


def test_names():
    assert parse_hub_name("hf://a/b.c-d_e") == ("a/b.c-d_e", None, None)
    assert parse_hub_name("hf://a/b@v1.0/sub/x.pth") == ("a/b", "v1.0", "sub/x.pth")
    assert parse_hub_name("hf://a/b@refs/pr/12") == ("a/b", "refs/pr/12", None)
    assert parse_hub_name("hf://a/b@one%2Ftwo/x")[1:] == ("one/two", "x")
    assert str(parse_hub_name("hf://a/b@v1/x")) == "hf://a/b@v1/x"
    for wrong in ("hf://a", "hf://a/b@", "hf://a b/c", "hf://a/b/../../x"):
        with pytest.raises(InputError, match="is no repository of Hugging Face's; expected hf://"):
            parse_hub_name(wrong)


def test_a_repository_of_timm_says_how_images_are_prepared(hub, repository, weights):
    model, params, _ = load_model(MODEL)
    assert model.name == "resnet18" and model.num_classes == 5
    assert model.class_names == ("ant", "bee", "cat", "dog", "elk")
    assert model.mean == (0.5,) * 3 and model.std == (0.25,) * 3
    assert (model.preprocessing.size, model.preprocessing.resize) == ((160, 160), 168)
    assert set(model.preprocessing.sources.values()) == {"timm pretrained_cfg"}
    kernel = load(weights)["fc.weight"]
    np.testing.assert_array_equal(params["head"]["linear"]["kernel"], kernel.T)


def test_what_is_kept_needs_no_network(hub, repository):
    first = load_model(MODEL)[1]
    hub.requests.clear()
    hub.repositories.clear()
    jax.tree.map(np.testing.assert_array_equal, first, load_model(MODEL)[1])
    load_model(f"{MODEL}/model.safetensors")
    assert hub.requests == []


def test_offline(hub, repository, monkeypatch, tmp_path, capsys):
    constants = sys.modules["huggingface_hub.constants"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingError, match="not in the cache, and HF_HUB_OFFLINE forbids"):
        load_model(MODEL)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    load_model(MODEL)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    load_model(MODEL)
    # Whoever brought the weights need not have brought the rest.
    (config,) = tmp_path.rglob("config.json")
    config.unlink()
    assert load_model(MODEL)[0].class_names is None
    assert "config.json is not in the cache" in capsys.readouterr().err


def test_revisions(hub, repository):
    other = {**json.loads(repository.files["config.json"]), "label_names": list("vwxyz")}
    repository.revisions["v2"] = "b" * 40
    assert "a" * 40 in local_checkpoint(MODEL)
    repository.files["config.json"] = json.dumps(other).encode()
    for name in (f"{MODEL}@v2", f"{MODEL}@{'b' * 40}"):
        assert "b" * 40 in local_checkpoint(name)
        assert load_model(name)[0].class_names == tuple("vwxyz")
    assert load_model(MODEL)[0].class_names[0] == "ant"
    with pytest.raises(MissingError, match=r"resnet18\.mine has no branch, tag or commit v3"):
        load_model(f"{MODEL}@v3")


def test_all_files_are_of_one_commit(hub, repository, monkeypatch):
    """The branch moves between the first file and the second."""
    do_get = hub.RequestHandlerClass.do_GET

    def push_after(self):
        do_get(self)
        repository.revisions["main"] = "c" * 40

    monkeypatch.setattr(hub.RequestHandlerClass, "do_GET", push_after)
    repository.revisions["old"] = "a" * 40  # commits stay readable
    local_checkpoint(MODEL)
    asked = {path.split("/")[4] for _, path, _ in hub.requests if "resolve" in path}
    assert asked == {"main", "a" * 40}


def test_a_broken_download_goes_on(hub, repository, weights, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    # The library keeps whole chunks.
    monkeypatch.setattr(sys.modules["huggingface_hub.constants"], "DOWNLOAD_CHUNK_SIZE", 500)
    hub.breaks = [1000]
    with open(local_checkpoint(MODEL), "rb") as file:
        assert file.read() == weights
    assert "bytes=1000-" in {wanted for _, path, wanted in hub.requests if "storage" in path}


def test_a_download_that_breaks_for_good(hub, repository, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.breaks = [0] * 20
    with pytest.raises(InputError, match=r"model.safetensors cannot be downloaded \(.*try again"):
        load_model(MODEL)
    hub.breaks = []
    load_model(MODEL)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_wrong_checksum(file, hub, repository, tmp_path):
    right = repository.files[file]
    size = 64 if file == "model.safetensors" else 40
    repository.checksums[file] = "0" * size
    with pytest.raises(ReadError, match=f"{file} came with another checksum than the hub says"):
        load_model(MODEL)
    assert not list(tmp_path.rglob("0" * size))
    repository.checksums.clear()
    load_model(MODEL)
    assert right == repository.files[file]


def test_private_and_restricted_repositories(hub, repository, monkeypatch):
    repository.token = "hf_secret"
    with pytest.raises(MissingError, match=r"or it is private; check the name or log in \(hf auth"):
        load_model(MODEL)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    load_model(MODEL)
    hub.repositories["a/b"] = Repository({}, gated=True)
    with pytest.raises(InputError, match="access is restricted; ask for it on the repository's"):
        load_model("hf://a/b")


def test_a_renamed_repository(hub, repository):
    hub.repositories["old/name"] = Repository({}, renamed="timm/resnet18.mine")
    assert load_model("hf://old/name")[0].num_classes == 5


def test_a_hub_that_is_not_there(hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    constants = sys.modules["huggingface_hub.constants"]
    url = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="not in the cache and the hub cannot be reached"):
        load_model(MODEL)


def test_files_that_are_not_there(hub, repository):
    with pytest.raises(MissingError, match=r"there is no repository timm/none, or it is private"):
        load_model("hf://timm/none")
    del repository.files["model.safetensors"]
    repository.files["flax_model.msgpack"] = b""
    words = (
        "has neither model.safetensors nor pytorch_model.bin nor model.json; it has config.json,"
        " flax_model.msgpack"
    )
    with pytest.raises(MissingError, match=words):
        load_model(MODEL)
    with pytest.raises(MissingError, match=r"has no such file; it has config.json"):
        load_model(f"{MODEL}/other.safetensors")


def test_a_pickle_is_read_and_never_run(hub, repository, tmp_path):
    state = files.golden_state("resnet18", **SIZES)
    source = files.write(tmp_path / "in.pth", state, "bare", "resnet18")
    del repository.files["model.safetensors"]
    repository.files["pytorch_model.bin"] = source.read_bytes()
    assert load_model(MODEL)[0].name == "resnet18"


def test_a_file_in_a_folder_of_a_repository(hub, repository):
    repository.files["ema/best.safetensors"] = repository.files["model.safetensors"]
    model = load_model(f"{MODEL}/ema/best.safetensors")[0]
    assert set(model.preprocessing.sources.values()) == {"architecture"}  # no config.json there


def test_a_repository_of_this_package_is_the_model_that_was_exported(hub, tmp_path):
    state = files.golden_state(NAME, head_num=2, **SIZES)
    own = {
        "name": NAME,
        "arguments": dict(head_num=2, **SIZES),
        "preprocessing": {
            **{"mean": [0.1] * 3, "std": [0.2] * 3, "resize": 40, "crop": [32, 32]},
            "interpolation": "nearest",
            "source": dict.fromkeys(("mean", "std", "resize", "crop", "interpolation"), "run"),
        },
        "class_names": list("abcde"),
        "training": {"loss": "sigmoid"},
    }
    config = {"architecture": "resnet18", "pretrained_cfg": {"mean": [0.9] * 3}, "noah_jax": own}
    contents = {"model.safetensors": save(state), "config.json": json.dumps(config).encode()}
    hub.repositories["me/noah"] = Repository(contents)
    (tmp_path / "out").mkdir()
    for name, data in contents.items():
        (tmp_path / "out" / name).write_bytes(data)
    for path in ("hf://me/noah", str(tmp_path / "out")):
        model, params, _ = load_model(path)
        assert model.name == NAME and model.arguments["head_num"] == 2
        assert model.class_names == tuple("abcde") and model.mean == (0.1,) * 3
        assert model.preprocessing.resize == 40
        assert params["head"]["query"]["kernel"].shape[0] == 2
        assert load_one(path).multi_label
    broken = {**config, "noah_jax": {"name": NAME}}
    (tmp_path / "out" / "config.json").write_text(json.dumps(broken))
    with pytest.raises(ReadError, match="section noah_jax does not describe a model"):
        load_model(str(tmp_path / "out"))


def test_a_folder_that_was_uploaded_as_it_is(hub, tmp_path):
    state = files.golden_state(NAME, **SIZES)
    source = files.write(tmp_path / "in.pth", state, "bare", NAME)
    assert convert_main([str(source), str(tmp_path / "folder")]) == 0
    contents = {
        str(path.relative_to(tmp_path / "folder")): path.read_bytes()
        for path in (tmp_path / "folder").rglob("*")
        if path.is_file()
    }
    hub.repositories["me/run"] = Repository(contents)
    assert load_model("hf://me/run")[0].name == NAME


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (
            {"architecture": "resnet19"},
            "the architecture resnet19 is one that this package does not have; the nearest that it"
            " has are resnet18",
        ),
        (
            {"model_args": {"global_pool": "avgmax"}},
            "config.json says that resnet18 was made with global_pool='avgmax'",
        ),
    ],
)
def test_what_weights_do_not_tell_is_not_guessed(config, problem, hub, repository):
    whole = json.loads(repository.files["config.json"]) | config
    repository.files["config.json"] = json.dumps(whole).encode()
    with pytest.raises(InputError, match=problem):
        load_model(MODEL)


def test_programs_take_repositories(hub, repository, tmp_path, capsys):
    trained = load_one(MODEL)
    trained.say_preprocessing()
    assert trained.path == MODEL and trained.display_names() == ["ant", "bee", "cat", "dog", "elk"]
    assert f"{MODEL}: mean 0.5, std 0.25, resize 168, crop 160x160" in capsys.readouterr().err
    config = default_config()
    config.init_from, config.model.name = MODEL, None
    assert settle_model(config).model.name == "resnet18"
    folder = tmp_path / "folder"
    assert convert_main([f"{MODEL}@main", str(folder)]) == 0
    assert load_model(str(folder))[0].class_names == ("ant", "bee", "cat", "dog", "elk")
    source = json.loads((folder / "model.json").read_text())["source"]
    assert source["from"] == f"{MODEL}@main" and source["commit"] == "a" * 40
    assert convert_main(["hf://timm/none", str(tmp_path / "x")]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: hf://timm/none: there is no repository")


def test_without_huggingface_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'noah-jax\[hub\]'"):
        load_model(MODEL)
