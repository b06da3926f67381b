"""Tests the shell scripts as far as that needs no cluster."""

import os
import re
import shutil
import subprocess

import pytest

from tests.helpers import ROOT

SCRIPTS = ROOT / "scripts"
SHELL = sorted(SCRIPTS.glob("*.sh"))
TRAIN = ["--", "--config", "configs/x.py", "--workdir", "/a folder"]
STAGE = ["--from", "gs://bucket/tfds", "--set", "sample"]

# Stands for `gcloud storage`: gs://bucket is a local folder.
GCLOUD = """#!/usr/bin/env bash
path=${BUCKET}${4#gs://bucket}
case $2 in
  du) [[ -e $path ]] && du --summarize --bytes "$path" | sed 's/$/ gs/' ;;
  rsync) cp -r "$path/." "$5" ;;
  *) exit 9 ;;
esac
"""


def _run(script, *arguments, **environment):
    return subprocess.run(
        [str(SCRIPTS / script), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
    if shutil.which("shellcheck") is None:
        pytest.skip("needs shellcheck")
    checked = subprocess.run(["shellcheck", str(path)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("slurm.sh", ["--nodes", "2", "--gpus", "8", *TRAIN], ["srun", "-m noah_jax.train"]),
        ("slurm.sh", ["--gpus", "8", "--per-node", *TRAIN], ["--ntasks-per-node=1"]),
        ("tpu_pod.sh", ["--name", "p", "--zone", "z", *TRAIN], ["--worker", "noah_jax.train"]),
        ("stage_data.sh", [*STAGE, "--to", "/d"], ["rsync --recursive gs://bucket/tfds/sample"]),
        (
            "stage_data.sh",
            [*STAGE, "--to", "/d", "--name", "p", "--zone", "z"],
            ["--worker all", "mkdir -p /d/sample"],
        ),
    ],
)
def test_dry_runs_show_valid_shell(script, arguments, words):
    where = arguments.index("--") if "--" in arguments else len(arguments)
    ran = _run(script, *arguments[:where], "--dry-run", *arguments[where:])
    assert ran.returncode == 0, ran.stderr
    for word in words:
        assert word in ran.stdout
    shell = ran.stdout
    if "--worker" in shell:  # only the last argument of `gcloud ... --command` runs on the hosts
        assert shell.count("\n") == 1
        last = f'set -- {shell}printf "%s" "${{!#}}"'
        shell = subprocess.run(["bash", "-c", last], capture_output=True, text=True).stdout
        assert "\n" in shell
    assert "--" not in arguments or r"/a\ folder" in shell
    assert subprocess.run(["bash", "-n"], input=shell, text=True).returncode == 0


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("slurm.sh", TRAIN, "--gpus, the GPUs of a node"),
        ("slurm.sh", ["--gpus", "8"], "must follow after --"),
        ("tpu_pod.sh", TRAIN, "--name and --zone"),
        ("tpu_pod.sh", ["--what"], "unknown option --what"),
        ("stage_data.sh", ["--from", "x", "--set", "s", "--to", "/d"], "must start with gs:// or"),
        ("stage_data.sh", [*STAGE, "--to", "d"], "must start with /, got 'd'"),
        ("stage_data.sh", [*STAGE, "--to", "/d", "--name", "p"], "needed together"),
        ("stage_data.sh", ["--from", "gs://b", "--to", "/d"], "--set, such as imagenet2012"),
    ],
)
def test_mistakes_are_one_line(script, arguments, words):
    ran = _run(script, *arguments)
    assert ran.returncode == 2 and ran.stdout == ""
    assert len(ran.stderr.splitlines()) == 1 and words in ran.stderr


def test_staging_copies_a_dataset_that_fits(tmp_path):
    files = tmp_path / "bucket" / "tfds" / "sample" / "1.0.0"
    files.mkdir(parents=True)
    (files / "sample-train.array_record-00000-of-00001").write_bytes(b"12345")
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "gcloud").write_text(GCLOUD)
    (tools / "gcloud").chmod(0o755)
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "BUCKET": str(tmp_path / "bucket"),
    }
    target = tmp_path / "disk"
    stage = [*STAGE, "--to", str(target)]
    for _ in range(2):
        ran = _run("stage_data.sh", *stage, **environment)
        assert ran.returncode == 0, ran.stderr
        assert f"--config.data.dir={target}" in ran.stdout
        (copied,) = (target / "sample" / "1.0.0").iterdir()
        assert copied.read_bytes() == b"12345"

    # A dataset that does not exist, then a disk that is full.
    ran = _run("stage_data.sh", *stage, "--set", "other", **environment)
    assert ran.returncode == 1 and "gs://bucket/tfds/other holds nothing" in ran.stderr
    (tools / "df").write_text("#!/bin/sh\necho Avail\necho 4\n")
    (tools / "df").chmod(0o755)
    shutil.rmtree(target)
    ran = _run("stage_data.sh", *stage, **environment)
    assert ran.returncode == 1 and "has 4 bytes free" in ran.stderr
    assert not (target / "sample" / "1.0.0").exists()


def test_staging_copies_a_local_folder(tmp_path):
    files = tmp_path / "from" / "sample" / "1.0.0"
    files.mkdir(parents=True)
    (files / "a file").write_bytes(b"12345")
    stage = ["--from", str(tmp_path / "from"), "--set", "sample", "--to", str(tmp_path / "to")]
    for _ in range(2):
        ran = _run("stage_data.sh", *stage)
        assert ran.returncode == 0, ran.stderr
        copied = tmp_path / "to" / "sample" / "1.0.0" / "a file"
        assert copied.read_bytes() == b"12345"
        copied.write_bytes(b"12")  # as an interrupted copy leaves it
    ran = _run("stage_data.sh", *stage, "--set", "other")
    assert ran.returncode == 1 and "holds nothing" in ran.stderr


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_the_head_of_the_file(script, flag):
    ran = _run(script.name, flag)
    assert ran.returncode == 0 and ran.stderr == ""
    assert f"scripts/{script.name} --" in ran.stdout and "set -euo" not in ran.stdout
    assert len(ran.stdout.splitlines()) > 5


@pytest.mark.parametrize("script", ["slurm.sh", "tpu_pod.sh"])
def test_ctrl_c_does_not_start_a_run_again(script):
    arguments = {"slurm.sh": ["--gpus", "8"], "tpu_pod.sh": ["--name", "p", "--zone", "z"]}
    ran = _run(script, *arguments[script], "--dry-run", *TRAIN)
    assert ran.returncode == 0 and re.search(r"(!=|-ne) 130", ran.stdout)
