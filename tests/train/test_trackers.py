"""Tests that trackers get what metrics.jsonl has, go on after a restart and never hold up a run."""

import json
import os
import pathlib
import sqlite3
import threading
import time

import pytest
from etils import epath

from noah_jax.config_values import check_values
from noah_jax.errors import InputError
from noah_jax.train.metric_writer import MetricWriter
from noah_jax.train.trackers import background
from noah_jax.train.trackers.background import KEYS_FILE
from noah_jax.train.trackers.libraries import TRACKERS, check_trackers
from noah_jax.train.trackers.tracker import TrackedRun
from tests.helpers import RecordingTracker, make_tiny_config

RUN = TrackedRun(project="flowers", name="first", config={"optim.rate": 0.1, "model.name": "x"})


@pytest.fixture
def recorders(monkeypatch):
    """Replaces wandb by recorders; the list has one for each start."""
    made = []

    def make():
        made.append(RecordingTracker())
        return made[-1]

    monkeypatch.setitem(TRACKERS, "wandb", make)
    return made


def _writer(workdir, names, start_step=0):
    workdir.mkdir(exist_ok=True)
    return MetricWriter(epath.Path(workdir), start_step=start_step, trackers=names, tracked=RUN)


def test_a_tracker_gets_the_metrics_and_a_resumed_run_goes_on_with_it(recorders, tmp_path):
    writer = _writer(tmp_path, ("wandb",))
    writer.write(1, "train", {"loss": 2.0})
    writer.close(finished=False)
    writer = _writer(tmp_path, ("wandb",), start_step=1)
    writer.write(2, "eval", {"top1": 50.0})
    writer.close(finished=True)
    first, second = recorders
    assert first.told == [("start", "first", None), (1, {"train/loss": 2.0}), ("finish", False)]
    assert second.told == [("start", "first", "key-1"), (2, {"eval/top1": 50.0}), ("finish", True)]
    assert json.loads((tmp_path / KEYS_FILE).read_text()) == {"wandb": "key-1"}


@pytest.mark.parametrize("broken", ["start", "write", "finish"])
def test_an_unreachable_tracker_is_named_once_and_stops_nothing(
    broken, recorders, monkeypatch, capsys, tmp_path
):
    def fail(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(RecordingTracker, broken, fail)
    writer = _writer(tmp_path, ("wandb",))
    for step in range(3):
        writer.write(step, "train", {"loss": 1.0})
    writer.close(finished=True)
    error = capsys.readouterr().err
    assert error.count("wandb does not track this run any more: no route to host") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_tracker_that_hangs_is_not_waited_for(recorders, monkeypatch, capsys, tmp_path):
    ends = threading.Event()
    monkeypatch.setattr(RecordingTracker, "start", lambda *_: ends.wait(60) and "key")
    monkeypatch.setattr(background, "_CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(background, "_WAITING", 4)
    writer = _writer(tmp_path, ("wandb",))
    begin = time.perf_counter()
    for step in range(6):
        writer.write(step, "train", {"loss": 1.0})
    writer.close(finished=True)
    assert time.perf_counter() - begin < 10
    assert "wandb is too slow: it lacks" in capsys.readouterr().err
    ends.set()


def test_keys_that_cannot_be_read_start_a_new_tracked_run(recorders, capsys, tmp_path):
    (tmp_path / KEYS_FILE).write_text("{")
    _writer(tmp_path, ("wandb",)).close(finished=True)
    assert "trackers show a new run" in capsys.readouterr().err
    assert recorders[0].told[0] == ("start", "first", None)


def test_a_library_that_is_not_installed_is_named(monkeypatch, class_folders, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"config\.trackers names mlflow, .*install .noah-jax\[mlflow\]"
    ):
        check_trackers(("mlflow",))


def test_the_rule_of_the_key_knows_the_trackers(class_folders):
    config = make_tiny_config(class_folders)
    config.trackers = tuple(TRACKERS)
    check_values(config)
    config.trackers = ("tensorboard",)
    with pytest.raises(InputError, match="wandb, trackio, mlflow"):
        check_values(config)


def _two_starts(tmp_path, name) -> str:
    """Writes a stopped and a resumed start to a real library; returns the run's key there."""
    for start, (step, finished) in enumerate([(1, False), (2, True)]):
        writer = _writer(tmp_path / "run", (name,), start_step=start)
        writer.write(step, "train", {"loss": 3.0 - step})
        writer.close(finished=finished)
    return json.loads((tmp_path / "run" / KEYS_FILE).read_text())[name]


@pytest.mark.filterwarnings("ignore")  # of the library
def test_wandb_without_a_network(monkeypatch, capsys, tmp_path):
    wandb = pytest.importorskip("wandb")
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    key = _two_starts(tmp_path, "wandb")
    files = [path.name for path in pathlib.Path("wandb").rglob("*.wandb")]
    assert files == [f"run-{key}.wandb"] * 2  # which `wandb sync` joins
    assert "does not track" not in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")  # of the library
def test_wandb_without_a_key_asks_nobody(monkeypatch, capsys, tmp_path):
    wandb = pytest.importorskip("wandb")
    wandb.teardown()  # Otherwise it would remember the environment of another test.
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.chdir(tmp_path)
    _writer(tmp_path / "run", ("wandb",)).close(finished=True)
    assert "wandb does not track this run any more: No API key" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")  # of the library
def test_trackio_without_a_network(monkeypatch, tmp_path):
    pytest.importorskip("trackio")
    # The library reads its folder when it is imported.
    if os.environ.get("TRACKIO_DIR") is None:
        pytest.skip("needs TRACKIO_DIR, so that the test does not write to its user's trackio")
    key = _two_starts(tmp_path, "trackio")
    database = pathlib.Path(os.environ["TRACKIO_DIR"]) / f"{RUN.project}.db"
    with sqlite3.connect(database) as connection:
        rows = connection.execute(
            "select step, metrics from metrics where run_name = ? order by step", (key,)
        ).fetchall()
    assert [(step, json.loads(metrics)) for step, metrics in rows] == [
        (1, {"train/loss": 2.0}),
        (2, {"train/loss": 1.0}),
    ]


@pytest.mark.filterwarnings("ignore")  # of the library
def test_mlflow_without_a_server(monkeypatch, tmp_path):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    key = _two_starts(tmp_path, "mlflow")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        rows = database.execute(
            "select run_uuid, step, value from metrics order by step"
        ).fetchall()
        status = database.execute("select run_uuid, status from runs").fetchall()
    assert rows == [(key, 1, 2.0), (key, 2, 1.0)]
    assert status == [(key, "FINISHED")]
