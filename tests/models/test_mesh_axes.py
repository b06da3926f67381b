"""Models of every family under mesh axes of every type, on eight devices of this CPU."""

import os
import subprocess
import sys

import pytest

from tests.helpers import EIGHT_DEVICES, ROOT
from tests.models.mesh_axes import MODELS


def _check(*arguments):
    command = [sys.executable, "-m", "tests.models.mesh_axes", *arguments]
    environment = os.environ | EIGHT_DEVICES
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=300)


# All are checked with the slow tests, which take a minute a family.
_QUICK = ("resnet", "pvt")


def test_no_operation_of_a_model_minds_the_axes():
    _check("trace", *_QUICK)


def test_a_model_is_the_same_under_other_axes():
    _check("two", "deit")


@pytest.mark.slow
@pytest.mark.parametrize("family", MODELS)
def test_a_model_is_the_same_under_axes_of_every_type(family):
    _check("all", family)
