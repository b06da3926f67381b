"""Tests the comparison as a program: what it trains, what it leaves, and how it ends."""

import json

import pytest

from noah_jax.compare.__main__ import main
from noah_jax.compare.program import Training
from noah_jax.compare.running import Job, Runner
from tests.helpers import ROOT

QUICKSTART = str(ROOT / "configs/quickstart.py")
MIXER = str(ROOT / "configs/sample.py") + ":mixer"
# Three steps of 64 images of 10,000.
SHORT = (
    *("--config.epochs=0.0192", "--config.optim.warmup_epochs=0", "--config.model.depth=1"),
    "--config.eval_batch_size=500",
)


def test_end_to_end_and_again(tmp_path, monkeypatch, capfd):
    command = ["--config", MIXER, "--seeds", "5", "--workdir", str(tmp_path), *SHORT]
    assert main(command) == 0
    printed = capfd.readouterr().out
    assert "| noah_mixer_b16_224 |" in printed
    assert (tmp_path / "compare.md").read_text() == printed
    for picture in ("curves.png", "cost.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    written = json.loads((tmp_path / "compare.json").read_text())
    assert [run["head"] for run in written["runs"]] == ["linear", "noah"]
    for run in written["runs"]:
        config = json.loads((next(tmp_path.glob(f"*{run['head']}*")) / "config.json").read_text())
        assert config["seed"] == 5
        assert run["curve"] == [[pytest.approx(3 * 64 / 10_000), run["top1"]]]
        assert run["step_ms"] > 0 and run["multiply_adds"] > run["num_params"]

    # Finished runs are not started again; those of another configuration are refused.
    monkeypatch.setattr(Runner, "run", lambda *_: pytest.fail("trained again"))
    assert main(command) == 0
    assert capfd.readouterr().out == printed
    assert main([*command, "--config.batch_size=16"]) == 1
    assert "holds a run of another configuration: batch_size" in capfd.readouterr().err


@pytest.fixture
def pretended(monkeypatch):
    """Lets trainings be pretended: they leave results at once, and those in `fail` an exit code."""
    commands: list[list[str]] = []
    fail: dict[str, int] = {}

    def run(runner: Runner, jobs: list[Job]):
        for job in jobs:
            commands.append(job.command)
            if job.name not in fail:
                _finish(job)
            yield job.number, fail.get(job.name, 0)

    monkeypatch.setattr(Runner, "run", run)
    monkeypatch.setattr(Training, "expected", property(lambda training: {"epochs": 1.0}))
    monkeypatch.setattr("noah_jax.compare.records.check_config", lambda *_: None)
    monkeypatch.setattr("noah_jax.compare.program.find_places", lambda parallel: [None] * parallel)
    return commands, fail


def _finish(job: Job) -> None:
    workdir = next(word for word in job.command if word.startswith("--workdir=")).partition("=")[2]
    folder = (ROOT / workdir).resolve()
    folder.mkdir(parents=True)
    top1 = 50.0 + len(folder.name) + 7 * job.number % 3
    lines = [
        {"step": 50, "split": "train", "epoch": 0.5, "step_ms": 90.0, "compile_seconds": 9.0},
        {"step": 90, "split": "train", "epoch": 0.9, "step_ms": 20.0},
        {"step": 100, "split": "train", "epoch": 1.0, "step_ms": 10.0},
        {"step": 100, "split": "eval", "top1": top1},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = {"model": "noah_resnet18", "top1": top1, "step": 100, "num_params": 7}
    (folder / "results.json").write_text(json.dumps(results))


def test_a_sweep_compares_with_its_first_combination(tmp_path, pretended, capsys):
    commands, _ = pretended
    sweep = ["--sweep", "config.model.head_num=1,2,4", "config.model.key_ratio=0.5,0.25"]
    command = ["--config", QUICKSTART, *sweep, "--seeds", "0", "1", "--workdir", str(tmp_path)]
    assert main([*command, "--config.epochs=2"]) == 0
    assert len(commands) == 12
    assert commands[1][-3:-1] == ["--config.model.key_ratio=0.25", "--config.seed=0"]
    assert "--config.epochs=2" in commands[1]
    printed = capsys.readouterr().out
    assert "difference from head_num=1, key_ratio=0.5, 95 % interval | p (Holm) |" in printed
    assert "| noah_resnet18 | head_num=4, key_ratio=0.25 | 7 | - | 15.0 | 2 |" in printed


def test_a_head_without_the_swept_key_is_told(tmp_path, pretended, capsys):
    commands, _ = pretended
    command = ["--config", QUICKSTART, "--heads", "linear", "noah", "--seeds", "0"]
    assert main([*command, "--sweep", "config.model.head_num=1,2", "--workdir", str(tmp_path)]) == 0
    assert len(commands) == 3
    told = "the linear head has no model.head_num: it is trained without"
    assert capsys.readouterr().err.count(told) == 1


def test_what_finished_is_compared_if_a_training_fails(tmp_path, pretended, capsys):
    commands, fail = pretended
    name = QUICKSTART.replace("/", "-").strip("-").removesuffix(".py")
    fail[f"{name}-linear-seed1"] = 2
    command = ["--config", QUICKSTART, "--workdir", str(tmp_path), "--parallel", "2"]
    assert main(command) == 1
    printed = capsys.readouterr()
    assert "linear-seed1 failed, see above (exit code 2)" in printed.err
    assert "| linear | 7 | - | 15.0 | 2 |" in printed.out
    assert "| noah | 7 | - | 15.0 | 3 |" in printed.out
    # Beside others a training looks for no other processes of a run.
    assert all(words[-1] == "--num_processes=1" for words in commands)
    commands.clear()
    fail.clear()
    assert main(command) == 0
    assert [words for words in commands if words[-1].endswith(f"{name}-linear-seed1")] == commands
    assert len(commands) == 1


@pytest.mark.parametrize("code", [75, 130])
def test_a_stopped_training_is_told(tmp_path, pretended, capsys, code):
    _, fail = pretended
    name = QUICKSTART.replace("/", "-").strip("-").removesuffix(".py")
    fail[f"{name}-noah-seed2"] = code
    assert main(["--config", QUICKSTART, "--workdir", str(tmp_path)]) == code
    printed = capsys.readouterr()
    assert "a training was stopped; the same command goes on from there" in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "configs/none.py"], "the configuration file cannot be read"),
        (["--config.epoch=1"], "the configuration has no key epoch; did you mean epochs?"),
        (["--seeds", "1", "1"], "--seeds repeats a value: 1 1"),
        (["--heads", "noah", "noah"], "--heads repeats a value: noah noah"),
        (["--heads", "linear", "naoh"], "got 'naoh'; did you mean noah?"),
        (["--sweep", "config.model.head_nums=1,2"], "no key model.head_nums; did you mean"),
        (["--sweep", "head_num"], "--sweep takes config.KEY=VALUE,VALUE,..., such as"),
        (["--parallel", "0"], "argument --parallel: invalid positive value: '0'"),
        (["stray"], "unrecognized arguments: stray"),
    ],
)
def test_mistakes(arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
