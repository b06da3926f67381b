"""What this package needs of JAX's private modules; what launchers say of other processes."""

import os
import re
import subprocess
import sys

import jax
import pytest
from jax._src import distributed as private

from noah_jax import distributed
from noah_jax.errors import InputError
from tests.helpers import ROOT


def test_jax_still_has_its_key_value_store_where_we_look():
    """If this fails, JAX has moved what `noah_jax.distributed` imports from `jax._src.distributed`.

    Look at JAX's `jax.distributed.initialize` for where the client of the coordination service is
    kept now, and whether there is a public way to it; then change `client`, `process_index` and
    `process_name` in noah_jax/distributed.py, which are the only users. `pytest -m multiprocess`
    says whether it works with several processes.
    """
    message = f"JAX {jax.__version__} has changed its private state; see this test's docstring"
    state = private.global_state
    for name in ("client", "num_processes", "process_id", "coordinator_address"):
        assert hasattr(state, name), message
    assert state.client is None, message
    client = __import__("jaxlib._jax", fromlist=["_jax"]).DistributedRuntimeClient
    for name in (
        "key_value_set",
        "key_value_dir_get",
        "blocking_key_value_get",
        "wait_at_barrier",
    ):
        assert hasattr(client, name), message


def test_a_single_process_has_no_store():
    assert distributed.client() is None
    assert distributed.process_index() == 0 and distributed.process_name() == ""
    assert distributed.gather("name", "value") == ["value"]
    distributed.barrier("name")
    distributed.check_equal("name", {"the number": 1})


_OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}
_MPICH = {"PMI_SIZE": "3", "PMI_RANK": "1"}
_TORCHRUN = {"WORLD_SIZE": "8", "RANK": "0", "LOCAL_RANK": "0"}
_BATCH_SCRIPT = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
_SRUN = _BATCH_SCRIPT | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8"}
_SHELL_OF_SALLOC = _SRUN | {"SLURM_STEP_ID": str(0xFFFFFFFA), "SLURM_STEP_NODELIST": "node1"}
_ONE_OF_SRUN = _SRUN | {"SLURM_STEP_NUM_TASKS": "1"}


def _launched_by(monkeypatch, variables):
    for name in list(os.environ):
        if re.match("(OMPI|MV2|PMI|SLURM)_|(WORLD_SIZE|LOCAL_RANK)$", name):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (_OPEN_MPI, "Open MPI started 4 processes (OMPI_COMM_WORLD_SIZE=4)"),
        (_BATCH_SCRIPT | _OPEN_MPI, "Open MPI started 4 processes"),
        (_SHELL_OF_SALLOC | _OPEN_MPI, "Open MPI started 4 processes"),
        (_ONE_OF_SRUN | _MPICH, "MPI started 3 processes (PMI_SIZE=3)"),
        (_TORCHRUN, "torchrun started 8 processes"),
        (_SRUN, "SLURM's srun started 8 processes (SLURM_STEP_NUM_TASKS=8)"),
        (_BATCH_SCRIPT | {"SLURM_STEP_ID": "3"}, "srun started 8 processes (SLURM_NTASKS=8)"),
    ],
)
def test_processes_of_a_launcher_do_not_each_train_alone(monkeypatch, variables, words):
    _launched_by(monkeypatch, variables)
    with pytest.raises(InputError) as raised:
        distributed.start()
    assert words in str(raised.value) and "--num_processes=1" in str(raised.value)
    assert ("pip install mpi4py" in str(raised.value)) == ("MPI" in words)
    distributed.start(num_processes=1)  # separate runs


@pytest.mark.parametrize(
    "variables",
    [
        {},
        _OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
        {"OMPI_COMM_WORLD_SIZE": "4"},
        _TORCHRUN | {"WORLD_SIZE": "1"},
        {"WORLD_SIZE": "8"},
        _BATCH_SCRIPT,
        _BATCH_SCRIPT | {"SLURM_STEP_ID": "batch"},
        _SHELL_OF_SALLOC,
        _ONE_OF_SRUN,
    ],
)
def test_a_process_that_is_alone_starts_alone(monkeypatch, variables):
    _launched_by(monkeypatch, variables)
    distributed.start()


def test_training_that_a_launcher_started_several_times_ends_before_it_writes(tmp_path):
    # As under Open MPI 5, which JAX does not find.
    command = [sys.executable, "-m", "noah_jax.train", "--config", "configs/quickstart.py"]
    command += ["--workdir", str(tmp_path / "run")]
    process = subprocess.run(
        command, cwd=ROOT, env=os.environ | _OPEN_MPI, capture_output=True, text=True, timeout=100
    )
    assert process.returncode == 1
    assert process.stderr.count("\n") == 1 and "pip install mpi4py" in process.stderr
    assert not (tmp_path / "run").exists()
