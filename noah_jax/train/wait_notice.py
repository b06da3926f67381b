"""Says in the log, once, that the devices wait for images, and what would end it."""

import jax
from ml_collections import ConfigDict

from noah_jax.data.batches import num_cores
from noah_jax.data.lighter import SMALLER_SET, lighter_settings

WORTH_TELLING = 0.1  # fraction of the time for which the devices wait
_MUCH_WORSE = 0.25  # a fraction that is so much larger than the one that was told is told again


class WaitNotice:
    """Decides when the log says that the devices wait for images.

    The first interval of a start does not count, because the first images have to be read while
    nothing can run yet.

    Args:
      section: The section `data` of the configuration.
    """

    def __init__(self, section: ConfigDict) -> None:
        self._section = section
        self._first = True
        self._told = 0.0

    def after(self, wait: float, images_per_second: float) -> str | None:
        """Returns what to say after an interval between two log lines; `None` if there is nothing.

        Args:
          wait: Fraction of the interval for which the devices had nothing to do for want of images.
          images_per_second: How fast the run was in the interval.
        """
        first, self._first = self._first, False
        threshold = self._told + _MUCH_WORSE if self._told else WORTH_TELLING
        if first or wait <= threshold:
            return None
        self._told = wait
        return describe_wait(self._section, wait, images_per_second)


def describe_wait(section: ConfigDict, wait: float, images_per_second: float) -> str:
    """Says how long the devices wait for images, what the cores give, and what would help.

    Args:
      section: The section `data` of the configuration.
      wait: Fraction of the time for which the devices had nothing to do for want of images.
      images_per_second: How fast the run is.
    """
    needed = images_per_second / max(1 - wait, 0.01)
    hosts = jax.process_count()
    cores = f"{num_cores()} cores" + (f" on each of {hosts} hosts" if hosts > 1 else "")
    settings = [setting.name for setting in lighter_settings(section)]
    if jax.default_backend() == "gpu" and section.loader == "host":
        settings.append("data.loader=dali")
    choices = [*settings, SMALLER_SET, "more cores or a faster disk"]
    return (
        f"the devices waited for images for {100 * wait:.0f} % of the time: {cores} give"
        f" {images_per_second:,.0f} images/s, the step could take {needed:,.0f}. What would help:"
        f" {', '.join(choices)}. `noah-jax benchmark --what input --against-step` with this"
        " --config measures which of them is enough"
    )
