"""Batches of DALI's CPU backend, beside the host's: the same images, almost the same pixels."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

from noah_jax import distributed, load_model
from noah_jax.data.batches import train_batches as host_batches
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.decoding import DecodedSource
from noah_jax.data.sampler import Sampler
from noah_jax.data.transforms import TrainTransform
from noah_jax.errors import CorruptImageError, InputError, LoaderError
from noah_jax.train import train
from tests.data.dali.images import BATCH, CORRUPT, Source
from tests.data.dali.test_encoded import OPTIONS
from tests.helpers import make_tiny_config, write_class_folders

pytest.importorskip("nvidia.dali")

from noah_jax.data.dali import decoder as decoder_module
from noah_jax.data.dali.loader import train_batches

SIZE = (48, 64)
CROP = TrainTransform("random_resized", SIZE)
STEPS = 5


def _batches(make, source, transform=CROP, *, policy="replace", told=None, **options):
    arguments = dict(start_step=0, total_steps=STEPS, num_threads=2) | options
    batches = make(
        DecodedSource(source),
        transform,
        Sampler(3, len(source), BATCH),
        put=lambda batch: batch,
        corrupt_images=CorruptImages(policy, (lambda text: None) if told is None else told.append),
        **arguments,
    )
    return [{key: np.asarray(value) for key, value in batch.items()} for batch in batches]


_host = functools.partial(_batches, host_batches)
_dali = functools.partial(
    _batches, lambda *a, **options: train_batches(*a, mesh=distributed.make_mesh(), **options)
)


def _check_equal(one, other):
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        for key in left:
            np.testing.assert_array_equal(left[key], right[key], err_msg=key)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options)))
def test_labels_and_draws_are_the_hosts_and_pixels_nearly(options):
    source = Source(multi_label=options["crop"] == "pad")
    transform = TrainTransform(size=SIZE, on_device=True, **options)
    differences = []
    for got, expected in zip(_dali(source, transform), _host(source, transform), strict=True):
        assert got.keys() == expected.keys()
        for key in got.keys() - {"image"}:
            np.testing.assert_array_equal(got[key], expected[key])
            assert got[key].dtype == expected[key].dtype
        assert got["image"].dtype == np.uint8
        differences.append(np.abs(got["image"].astype(int) - expected["image"]))
    differences = np.stack(differences)
    assert differences.mean() < 0.2
    assert np.percentile(differences, 99) <= 1
    assert differences.mean((2, 3, 4)).max() < 0.5  # of every single image


def test_lossless_images_that_are_not_resized_are_equal():
    source = Source()
    source.kinds = {"png": source.kinds["png"]}
    transform = TrainTransform("pad", (107, 160), pad=4)
    _check_equal(_dali(source, transform, total_steps=1), _host(source, transform, total_steps=1))


def test_a_run_can_be_resumed_at_any_step():
    source = Source()
    whole = _dali(source)
    for step in range(STEPS + 1):
        _check_equal(_dali(source, start_step=step), whole[step:])


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_rows(hosts):
    source = Source()
    parts = [_dali(source, process_index=i, process_count=hosts) for i in range(hosts)]
    joined = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    _check_equal(joined, _dali(source))
    with pytest.raises(InputError, match="must be divisible by the 3 hosts"):
        _dali(source, process_count=3)


def test_devices_share_the_rows(monkeypatch):
    """One pipeline for each of four devices, which are the same one here."""
    source, whole = Source(), _dali(Source())
    monkeypatch.setattr(distributed, "row_devices", lambda mesh: jax.devices() * 4)
    monkeypatch.setattr(distributed, "join_shards", lambda shards, mesh: np.concatenate(shards))
    _check_equal(_dali(source), whole)


def test_worker_processes_make_the_same_batches():
    source = Source()
    _check_equal(_dali(source, num_workers=1, total_steps=2), _dali(source, total_steps=2))


def test_corrupt_images_are_replaced_as_ever():
    told, expected = [], []
    got, host = _dali(Source(), told=told), _host(Source(), told=expected)
    assert [batch["label"].tolist() for batch in got] == [x["label"].tolist() for x in host]
    assert sorted(told) == sorted(expected) and len(told) == len(CORRUPT)
    with pytest.raises(CorruptImageError, match=r"image (truncated|nonsense) cannot be decoded"):
        _dali(Source(), policy="stop")


@pytest.fixture
def refuse(monkeypatch):
    """Makes DALI fail on every batch with one of the named images, as on a kind that it lacks."""
    feed = decoder_module.feed

    def refuse(kinds: set[str]) -> None:
        source = Source()
        refused = {source.kinds[kind] for kind in kinds}

        def feed_or_fail(pipeline, transform, batch):
            if refused & {image.tobytes() for image in batch.images()}:
                extent = batch.columns["extent"] + 10_000  # DALI fails beyond an image's edge
                batch = batch._replace(columns=batch.columns | {"extent": extent})
            feed(pipeline, transform, batch)

        monkeypatch.setattr(decoder_module, "feed", feed_or_fail)

    return refuse


def test_the_host_decodes_what_dali_refuses(refuse, capsys):
    source = Source()
    whole = _dali(source)
    refuse({"grey", "portrait"})
    capsys.readouterr()
    got = _dali(source)
    lines = sorted(capsys.readouterr().err.splitlines())[:2]
    names = ("image grey", "image portrait")
    assert lines == [f"warning: DALI cannot decode {name}: the host does" for name in names]
    for one, other in zip(got, whole, strict=True):
        np.testing.assert_array_equal(one["label"], other["label"])
        difference = np.abs(one["image"].astype(int) - other["image"])
        assert difference.mean((1, 2, 3)).max() < 0.5
    for step in range(STEPS):  # Wherever the run goes on, the same images are refused.
        _check_equal(_dali(source, start_step=step), got[step:])


def test_too_many_refused_images_end_the_run(refuse, monkeypatch):
    monkeypatch.setattr(decoder_module, "_MOST_REFUSED", 1)
    refuse({"grey", "portrait", "plain"})
    with pytest.raises(LoaderError, match=r"^DALI cannot decode [23] images, such as image"):
        _dali(Source())


@pytest.mark.parametrize("name", ["build_pipeline", "feed"])
def test_dalis_own_failures_are_one_line(monkeypatch, name):
    def fail(*arguments, **options):
        raise RuntimeError("Critical error\n\nCUDA runtime API error: out of memory\n")

    monkeypatch.setattr(decoder_module, name, fail)
    with pytest.raises(LoaderError, match=r"^DALI cannot .*out of memory; data.loader=host"):
        _dali(Source())


def test_training_goes_on_exactly(tmp_path, capsys):
    write_class_folders(tmp_path / "set", "jpg", lambda random: tuple(random.randint(30, 60, 2)))
    config = make_tiny_config(str(tmp_path / "set"))
    config.data.loader, config.data.crop = "dali", "random_resized"
    config.data.color_jitter = 0.4
    results = train(config, str(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    (tmp_path / "resumed/results.json").unlink()
    for step in ("6", "9", "12"):
        shutil.rmtree(tmp_path / "resumed/checkpoints" / step)
    assert train(config, str(tmp_path / "resumed")) == results
    assert "JAX finds no GPU, so DALI decodes on the CPU" in capsys.readouterr().err
    kept = []
    for name in ("whole", "resumed"):
        _, params, stats = load_model(str(tmp_path / name))
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        kept.append([np.asarray(leaf) for leaf in jax.tree.leaves((params, stats))])
        kept[-1] += [np.float64(json.loads(line)["loss"]) for line in lines]
    for one, other in zip(*kept, strict=True):
        np.testing.assert_array_equal(one, other)
    (tmp_path / "resumed/results.json").unlink()
    config.data.loader = "host"
    with pytest.raises(InputError, match=r"data\.loader is 'dali' there and 'host' here"):
        train(config, str(tmp_path / "resumed"))
