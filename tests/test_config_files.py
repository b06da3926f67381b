"""Finding configuration files from any folder."""

import pytest

from noah_jax.config_files import config_folder, find_config
from noah_jax.config_flags import parse_config
from noah_jax.errors import UsageError
from tests.helpers import ROOT

CONFIGS = ROOT / "configs"


def test_the_folder_is_the_repositorys():
    assert config_folder() == CONFIGS


@pytest.mark.parametrize("config", ["resnet.py:noah_resnet18", "configs/resnet.py:noah_resnet18"])
def test_packaged_files_are_found_from_elsewhere(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(config) == f"{CONFIGS}/resnet.py:noah_resnet18"
    for words in ([f"--config={config}"], ["--config", config]):
        assert parse_config(words).model.name == "noah_resnet18"


def test_a_file_of_ones_own_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet.py").write_text("")
    assert find_config("resnet.py") == "resnet.py"
    assert find_config(f"{tmp_path}/resnet.py:x:y") == f"{tmp_path}/resnet.py:x:y"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("resnt.py:noah_resnet18", "there is no resnt.py, and the package has resnet.py"),
        ("mine/resnet.py", "there is no mine/resnet.py, and the package has resnet.py"),
        ("zzz.py", f"the package has {', '.join(sorted(p.name for p in CONFIGS.glob('*.py')))}$"),
    ],
)
def test_a_wrong_name_lists_near_ones(config, words):
    with pytest.raises(UsageError, match=words):
        find_config(config)
