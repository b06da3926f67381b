"""The metrics that a train step accumulates, as clu collections.

A clu metric is a (sum, count) pair, which stays exact under masks and sharding. The collection
is part of the train state, so its fields and their names are part of every checkpoint; that is
why it stays a clu collection.
"""

import dataclasses

import flax
import jax
from clu import metrics


# In a clu collection the annotation is a call that makes a type, which mypy does not accept.
@flax.struct.dataclass
class TrainMetrics(metrics.Collection):
    """Averages over the images since the last log line, and the last learning rate.

    A mixed image counts as correct if the highest logit is that of its own label, whatever the
    weight of the label in the mix.
    """

    loss: metrics.Average.from_output("loss")  # type: ignore[valid-type]
    accuracy: metrics.Average.from_output("top1")  # type: ignore[valid-type]
    learning_rate: metrics.LastValue.from_output("learning_rate")  # type: ignore[valid-type]


def as_floats(collection: metrics.Collection) -> dict[str, float]:
    """Returns a collection's values on the host, divided in float64; waits for the devices."""
    pairs = {
        field.name: (value.total, value.count)
        for field in dataclasses.fields(collection)
        if hasattr(value := getattr(collection, field.name), "total")
    }
    return {k: float(total) / float(count) for k, (total, count) in jax.device_get(pairs).items()}
