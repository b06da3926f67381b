"""Files of the web whose names have their checksum, as torchvision's weights have."""

import hashlib
import pathlib
import threading

import pytest

from noah_jax import load_model
from noah_jax.errors import InputError, ReadError
from noah_jax.hub.downloads import fetch_url


@pytest.fixture
def address(hub, weights) -> str:
    """The address of a file."""
    path = f"/models/resnet18-{hashlib.sha256(weights).hexdigest()[:8]}.pth"
    hub.plain[path] = weights
    return hub.url + path


def _cache(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache/noah_jax/downloads").iterdir())


def test_downloaded_once(hub, address, weights, tmp_path):
    assert load_model(address)[0].num_classes == 5
    assert pathlib.Path(fetch_url(address)).read_bytes() == weights
    assert len(hub.requests) == 1
    name = address.rpartition("/")[2]
    assert _cache(tmp_path) == [name, f"{name}.lock"]


def test_a_broken_download_goes_on(hub, address, weights, tmp_path):
    hub.breaks = [1000]
    with pytest.raises(InputError, match=r"broke off after 1000 of \d+ bytes; try again, which"):
        fetch_url(address)
    assert pathlib.Path(fetch_url(address)).read_bytes() == weights
    assert [wanted for _, _, wanted in hub.requests] == [None, "bytes=1000-"]


def test_a_wrong_checksum(hub, address, weights, tmp_path):
    (path,) = hub.plain
    hub.plain[path] = weights[:-1] + bytes([weights[-1] ^ 1])
    with pytest.raises(ReadError, match=r"gave a file of SHA-256 .* it was removed, try again"):
        fetch_url(address)
    assert _cache(tmp_path) == [path.rpartition("/")[2] + ".lock"]
    hub.plain[path] = weights
    fetch_url(address)


def test_what_cannot_be_downloaded(hub):
    for url, problem in (
        (f"{hub.url}/none-0123456789.pth", "cannot be downloaded: the server answers 404"),
        ("http://127.0.0.1:9/none-0123456789.pth", "cannot be downloaded: .*; try again"),
        (f"{hub.url}/none.pth", "does not end in its checksum"),
        ("https://huggingface.co/timm/resnet50.a1_in1k", "is a page; write hf://USER/NAME"),
    ):
        with pytest.raises(InputError, match=problem):
            fetch_url(url)


def test_one_download_at_a_time(hub, address):
    threads = [threading.Thread(target=fetch_url, args=[address]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(hub.requests) == 1
