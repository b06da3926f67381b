"""Knows machines that are not here: their devices and cores, and the speed of their train steps.

Cores are the vCPUs of Google's virtual machines. Those of v5e (`cloud.google.com/tpu/docs`) and of
a3-highgpu-8g (`cloud.google.com/compute/docs/accelerator-optimized-machines`) were looked up there;
the others, v4, v5p, v6e and the smaller A3, are not checked. A vCPU is a hyper-thread, two of which
share a core (`cloud.google.com/compute/docs/cpu-platforms`).

Speeds of steps are those of `docs/results.md`, in bfloat16 with SGD. Tests hold both together.
"""

import math
from typing import NamedTuple

from noah_jax.errors import InputError
from noah_jax.models import create_model
from noah_jax.models.base import Model
from noah_jax.models.registry import NOAH_PREFIX
from noah_jax.train.throughput import peak_flops, train_flops


class Machine(NamedTuple):
    """A machine, or several that train together.

    Attributes:
      name: Its name on the command line, such as "h100:8".
      kind: Kind of its devices, such as "h100".
      devices: Number of devices.
      vcpus: Number of vCPUs.
      host: The virtual machine that has these vCPUs, and how many of it.
    """

    name: str
    kind: str
    devices: int
    vcpus: int
    host: str


class StepSpeed(NamedTuple):
    """How fast a train step is.

    Attributes:
      images_per_second: Of all devices.
      source: Where the figure comes from, in words.
    """

    images_per_second: float
    source: str


# By kind, for each number of devices of a host: its vCPUs and Google's name of it.
_HOSTS = {
    "h100": {
        1: (26, "a3-highgpu-1g"),
        2: (52, "a3-highgpu-2g"),
        4: (104, "a3-highgpu-4g"),
        8: (208, "a3-highgpu-8g"),
    },
    "v4": {4: (240, "ct4p-hightpu-4t")},
    "v5e": {
        1: (24, "ct5lp-hightpu-1t"),
        4: (112, "ct5lp-hightpu-4t"),
        8: (224, "ct5lp-hightpu-8t"),
    },
    "v5p": {4: (208, "ct5p-hightpu-4t")},
    "v6e": {
        1: (44, "ct6e-standard-1t"),
        4: (180, "ct6e-standard-4t"),
        8: (180, "ct6e-standard-8t"),
    },
}
# The host that several machines of a kind consist of.
_OF_MANY = {"h100": 8, "v4": 4, "v5e": 4, "v5p": 4, "v6e": 4}
_DEVICE_KINDS = {
    "h100": "NVIDIA H100 80GB HBM3",
    "v4": "TPU v4",
    "v5e": "TPU v5e",
    "v5p": "TPU v5p",
    "v6e": "TPU v6e",
}

# Images a second of one device, measured; `docs/results.md`, "On an NVIDIA H100".
MEASURED = {
    "h100": {
        "deit_tiny_patch16_224": 11_489,
        "noah_deit_tiny_patch16_224": 11_456,
        "resnet50": 5_574,
        "noah_resnet50": 5_388,
    }
}
# Million cycles of a step of 128 images as XLA estimates them; `docs/results.md`, "Compiled for a
# TPU".
COMPILED = {
    "v5e": {
        "resnet50": 107.73,
        "noah_resnet50": 108.80,
        "mobilenetv2_100": 61.07,
        "noah_mobilenetv2_100": 62.07,
        "deit_tiny_patch16_224": 38.45,
        "noah_deit_tiny_patch16_224": 39.77,
        "deit_small_patch16_224": 113.29,
        "noah_deit_small_patch16_224": 113.54,
        "deit_base_patch16_224": 278.96,
        "noah_deit_base_patch16_224": 278.00,
        "pvt_tiny": 112.20,
        "noah_pvt_tiny": 114.22,
        "mixer_s16_224": 59.99,
        "noah_mixer_s16_224": 62.13,
        "mixer_b16_224": 165.57,
        "noah_mixer_b16_224": 168.29,
    },
    "v5p": {"deit_tiny_patch16_224": 32.98, "noah_deit_tiny_patch16_224": 33.49},
    "v6e": {"deit_tiny_patch16_224": 21.76, "noah_deit_tiny_patch16_224": 22.51},
}
_COMPILED_BATCH = 128
# Products of a chip in each cycle: four or eight matrix units of 128 x 128, or two of 256 x 256
# that take two rows, as XLA estimates them. The clock is the chip's peak by them, because nobody
# publishes it.
_PRODUCTS = {"v5e": 4 * 128**2, "v5p": 8 * 128**2, "v6e": 2 * 2 * 256**2}


def parse_machine(name: str) -> Machine:
    """Returns the machine of a name.

    Args:
      name: A kind and the number of its devices, such as "h100:8", "v5e:8" or "v5e:4x4"; the kind
        alone is the largest host.

    Raises:
      InputError: If the kind is unknown, or there is no such number of devices.
    """
    kind, _, size = name.partition(":")
    if kind not in _HOSTS:
        raise InputError(f"--machine {name!r} is unknown; it is one of {_examples()}")
    hosts = _HOSTS[kind]
    if size and not all(part.isdigit() and int(part) for part in size.split("x")):
        raise InputError(f"--machine {name!r}: {size!r} is no number of devices")
    devices = math.prod(int(part) for part in size.split("x")) if size else max(hosts)
    if devices in hosts:
        vcpus, host = hosts[devices]
        return Machine(name, kind, devices, vcpus, host)
    each = _OF_MANY[kind]
    if devices % each:
        sizes = ", ".join(map(str, hosts))
        raise InputError(
            f"--machine {name!r}: hosts have {sizes} devices, and several have {each} each"
        )
    vcpus, host = hosts[each]
    count = devices // each
    return Machine(name, kind, devices, count * vcpus, f"{count} x {host}")


def step_speed(machine: Machine, model: Model) -> StepSpeed:
    """Returns how fast a machine trains a model, as far as that is known or can be guessed.

    A step that was neither measured nor compiled is taken to reach that fraction of the devices'
    peak which the model reaches that was, on this machine or else on a v5e, and is nearest in
    FLOPs.
    """
    known = _images_per_second(machine.kind)
    if model.name in known:
        one, source = known[model.name]
    else:
        kind = machine.kind if known else "v5e"
        fraction, of = _fraction_of_peak(kind, model)
        one = fraction * _peak(machine.kind) / train_flops(model)
        source = f"estimated at {100 * fraction:.0f} % of the peak, as {of} on one {kind}"
    return StepSpeed(machine.devices * one, f"{machine.devices} x {one:,.0f}, {source}")


def _images_per_second(kind: str) -> dict[str, tuple[float, str]]:
    """Returns what is known of one device's images a second, by model, and where it is from."""
    known: dict[str, tuple[float, str]] = {
        name: (speed, f"measured on one {kind} in bfloat16 with SGD")
        for name, speed in MEASURED.get(kind, {}).items()
    }
    for name, cycles in COMPILED.get(kind, {}).items():
        clock = _peak(kind) / (2 * _PRODUCTS[kind])
        known[name] = (
            _COMPILED_BATCH * clock / (1e6 * cycles),
            f"compiled: {cycles:g} million cycles for {_COMPILED_BATCH} images on one {kind} at"
            f" {clock / 1e9:.2f} GHz, in bfloat16 with SGD",
        )
    return known


def _fraction_of_peak(kind: str, model: Model) -> tuple[float, str]:
    """Returns the fraction of a device's peak that the known model nearest in FLOPs reaches."""
    flops = train_flops(model)
    known = {
        name: (speed, train_flops(create_model(name)))
        for name, (speed, _) in _images_per_second(kind).items()
        if not name.startswith(NOAH_PREFIX)  # a head changes little, and counting takes a second
    }
    name = min(known, key=lambda name: abs(math.log(known[name][1] / flops)))
    speed, own_flops = known[name]
    return speed * own_flops / _peak(kind), name


def _peak(kind: str) -> float:
    peak = peak_flops(_DEVICE_KINDS[kind])
    assert peak is not None
    return peak


def _examples() -> str:
    return ", ".join(f"{kind}:{max(hosts)}" for kind, hosts in _HOSTS.items())
