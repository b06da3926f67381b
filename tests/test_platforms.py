"""The platform is chosen where libtpu would complain, and only there."""

import importlib.util

import pytest

from noah_jax import platforms


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Pretends what the machine has; returns a function that says which platform is chosen."""
    vendor_file = tmp_path / "vendor"

    def choose(*, files=(), vendor="0x8086", plugins=("xla_cuda13",), libtpu=True, environ=()):
        def find_spec(name):
            return object() if libtpu else None

        def find_files(pattern):
            if pattern == platforms._VENDORS:
                return [str(vendor_file)]
            return [file for file in files if file.startswith(pattern.rstrip("*"))]

        monkeypatch.setattr(importlib.util, "find_spec", find_spec)
        monkeypatch.setattr(platforms, "_plugins", lambda: list(plugins))
        monkeypatch.setattr(platforms.glob, "glob", find_files)
        vendor_file.write_text(f"{vendor}\n")
        variables = dict(environ)
        platforms.choose_platform(variables)
        return variables.get("JAX_PLATFORMS")

    return choose


def test_a_machine_without_accelerators_is_a_cpu(machine):
    assert machine() == "cpu"
    assert machine(plugins=()) == "cpu"
    assert machine(environ={"TPU_SKIP_MDS_QUERY": "1"}) == "cpu"
    assert machine(libtpu=False) is None


@pytest.mark.parametrize(
    "trace",
    [
        {"files": ["/dev/accel0"]},
        {"files": ["/dev/vfio/0"]},
        {"vendor": "0x1ae0"},
        {"files": ["/dev/nvidia0"]},
        {"files": ["/dev/nvidiactl"]},
        {"files": ["/dev/dxg"]},
        {"files": ["/dev/kfd"]},
        {"plugins": ["rocm"]},
        {"environ": {"TPU_WORKER_ID": "0"}},
        {"environ": {"TPU_NAME": "a"}},
        {"environ": {"JAX_FORCE_TPU_INIT": "1"}},
    ],
    ids=str,
)
def test_any_trace_of_an_accelerator_leaves_the_choice_to_jax(trace, machine):
    assert machine(**trace) is None


def test_a_platform_that_the_user_asks_for_stays(machine):
    assert machine(environ={"JAX_PLATFORMS": "tpu,cpu"}) == "tpu,cpu"
