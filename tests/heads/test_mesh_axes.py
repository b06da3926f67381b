"""Heads under mesh axes of every type, on eight devices of this CPU."""

import os
import subprocess
import sys

import pytest

from tests.helpers import EIGHT_DEVICES, ROOT


@pytest.mark.parametrize("extent", ["two", pytest.param("all", marks=pytest.mark.slow)])
def test_every_head_is_the_same_under_axes_of_every_type(extent):
    command = [sys.executable, "-m", "tests.heads.mesh_axes", extent]
    environment = os.environ | EIGHT_DEVICES
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=300)
