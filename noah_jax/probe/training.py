"""Trains a head on features with several learning rates at once."""

import concurrent.futures
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from noah_jax.console import working
from noah_jax.heads.registry import never_decay
from noah_jax.inference.device_memory import raise_if_out_of_memory
from noah_jax.models.base import Model, Tree
from noah_jax.probe.recipe import REFERENCE_BATCH, Recipe
from noah_jax.tasks.single_label import per_image

_STRETCH_BYTES = 64 * 2**20  # of the features of several steps, which go to the device together
_EVALUATED_TOGETHER = 256
_EPSILON = 1e-6  # MAE's, below the variance
_SMALLER = "choose a smaller --batch-size or fewer --learning-rates"

# Called with a number of steps that were taken.
Advance = Callable[[int], None]


class Data(NamedTuple):
    """Features with their labels.

    Attributes:
      features: `[images, ...]`, memory-mapped.
      rows: The rows that are used, int `[n]`.
      labels: The labels of these rows, int32 `[n]`.
    """

    features: np.ndarray
    rows: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the features and labels at positions among the rows, of the same shape."""
        return self.features[self.rows[positions]], self.labels[positions]

    def part(self, positions: np.ndarray) -> "Data":
        """Returns the data at some positions."""
        return Data(self.features, self.rows[positions], self.labels[positions])


class Standard(NamedTuple):
    """Mean and standard deviation of each channel, float32 `[channels]`."""

    mean: np.ndarray
    deviation: np.ndarray


class HeadState(NamedTuple):
    """What is trained; every leaf has the learning rates on its first axis."""

    params: Tree
    stats: Tree
    optimizer: Any


class Score(NamedTuple):
    """Top-1 in percent and mean cross entropy, float64 `[learning rates]`."""

    top1: np.ndarray
    loss: np.ndarray


class HeadTrainer:
    """Trains and measures one kind of head, compiled once for each number of learning rates.

    Args:
      model: The model whose head is trained.
      recipe: The recipe.
      standard: What the features are standardised by; `None` for those that stay as they are.
    """

    def __init__(self, model: Model, recipe: Recipe, standard: Standard | None):
        self._model = model
        self._recipe = recipe
        self._standard = standard
        self._optimizer = recipe.transformation(never_decay(model.arguments["head"]))
        self._init = jax.jit(model.init_head)
        self._step = jax.jit(self._take_steps, donate_argnums=0, static_argnames="steps_per_epoch")
        self._measure = jax.jit(self._measure_batch)

    def steps(self, data: Data) -> int:
        """Returns the number of steps of a training."""
        return self._recipe.epochs * self._batches(data)[1]

    def train(
        self, data: Data, learning_rates: Sequence[float], *, seed: int, advance: Advance
    ) -> HeadState:
        """Trains a head with every learning rate, on the same batches.

        Args:
          data: The training features.
          learning_rates: Peaks for a batch of 256.
          seed: Seed of the initial weights and of the order.
          advance: Told of the steps that were taken.
        """
        batch, steps_per_epoch = self._batches(data)
        rates = jnp.asarray(learning_rates, jnp.float32) * (batch / REFERENCE_BATCH)
        key = jax.random.key(seed)
        params, stats = self._init(key)
        alone = HeadState(params, stats, self._optimizer.init(params))
        state = jax.tree.map(lambda x: jnp.repeat(x[None], len(rates), 0), alone)
        total = self.steps(data)
        bytes_a_step = batch * math.prod(data.features.shape[1:]) * data.features.dtype.itemsize
        stretch = min(max(1, _STRETCH_BYTES // bytes_a_step), total)
        first = 0
        with raise_if_out_of_memory("a training step of all learning rates", _SMALLER):
            for features, labels in _stretches(data, seed, batch, total, stretch):
                count = min(stretch, total - first)
                state = self._step(
                    state,
                    rates,
                    features,
                    labels,
                    first,
                    count,
                    key,
                    steps_per_epoch=steps_per_epoch,
                )
                jax.block_until_ready(state.params)
                first += count
                advance(count)
        return state

    def score(self, state: HeadState, data: Data) -> Score:
        """Measures the heads of all learning rates."""
        sums = np.zeros((2, len(jax.tree.leaves(state.params)[0])))
        size = min(_EVALUATED_TOGETHER, len(data))
        for start in range(0, len(data), size):
            positions = np.arange(start, start + size)
            features, labels = data.take(np.minimum(positions, len(data) - 1))
            mask = (positions < len(data)).astype(np.float32)
            with raise_if_out_of_memory("an evaluation of all learning rates", _SMALLER):
                sums += np.asarray(self._measure(state, features, labels, mask), np.float64)
        top1, loss = sums / len(data)
        return Score(100 * top1, loss)

    def weights(self, state: HeadState, index: int) -> tuple[Tree, Tree]:
        """Returns parameters and statistics of one learning rate, as the model's head has them."""
        params, stats = jax.tree.map(lambda x: np.asarray(x[index]), (state.params, state.stats))
        if self._standard is None:
            return params, stats
        # A linear layer of standardised features is another linear layer of the features.
        layer = params["linear"]
        kernel = layer["kernel"] / self._standard.deviation[:, None]
        bias = layer["bias"] - self._standard.mean @ kernel
        return {**params, "linear": {**layer, "kernel": kernel, "bias": bias}}, stats

    def _batches(self, data: Data) -> tuple[int, int]:
        """Features a step, and steps an epoch: an epoch leaves out what is no full batch."""
        batch = min(self._recipe.batch_size, len(data))
        return batch, len(data) // batch

    def _prepare(self, features: jax.Array) -> jax.Array:
        features = features.astype(jnp.float32)
        if self._standard is None:
            return features
        return (features - self._standard.mean) / self._standard.deviation

    def _take_steps(
        self,
        state: HeadState,
        rates: jax.Array,
        features: jax.Array,
        labels: jax.Array,
        first: jax.Array,
        count: jax.Array,
        key: jax.Array,
        *,
        steps_per_epoch: int,
    ) -> HeadState:
        """Takes `count` steps on `features` `[steps, batch, ...]`; the rest of them is not used."""
        factor = self._recipe.schedule(steps_per_epoch)

        def loss(
            params: Tree, stats: Tree, batch: jax.Array, labels: jax.Array, key: jax.Array
        ) -> tuple[jax.Array, Tree]:
            logits, stats = self._model.apply_head(params, stats, batch, train=True, key=key)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), stats

        def step(i: jax.Array, state: HeadState) -> HeadState:
            batch = self._prepare(features[i])
            step_key = jax.random.fold_in(key, first + i)

            def of_one_rate(state: HeadState, rate: jax.Array) -> HeadState:
                gradients, stats = jax.grad(loss, has_aux=True)(
                    state.params, state.stats, batch, labels[i], step_key
                )
                updates, optimizer = self._optimizer.update(
                    gradients, state.optimizer, state.params
                )
                scale = -rate * factor(first + i)
                params = jax.tree.map(lambda p, u: p + scale * u, state.params, updates)
                return HeadState(params, stats, optimizer)

            return jax.vmap(of_one_rate)(state, rates)

        return jax.lax.fori_loop(0, count, step, state)

    def _measure_batch(
        self, state: HeadState, features: jax.Array, labels: jax.Array, mask: jax.Array
    ) -> jax.Array:
        """Sums of correct images and losses, `[2, learning rates]`."""
        batch = self._prepare(features)

        def of_one_rate(params: Tree, stats: Tree) -> jax.Array:
            logits, _ = self._model.apply_head(params, stats, batch, train=False)
            values = per_image(logits, labels)
            return jnp.stack([(values["top1"] * mask).sum(), (values["loss"] * mask).sum()])

        return jax.vmap(of_one_rate)(state.params, state.stats).T


def standardise(data: Data) -> Standard:
    """Computes mean and deviation of each channel of features `[images, channels]`."""
    total = np.zeros(data.features.shape[-1])
    squares = np.zeros_like(total)
    size = 4096
    for start in range(0, len(data), size):
        features = data.features[data.rows[start : start + size]].astype(np.float64)
        total += features.sum(0)
        squares += np.square(features).sum(0)
    mean = total / len(data)
    variance = np.maximum(squares / len(data) - np.square(mean), 0)
    return Standard(mean.astype(np.float32), np.sqrt(variance + _EPSILON).astype(np.float32))


def split_off(data: Data, fraction: float, seed: int) -> tuple[Data, Data]:
    """Splits off a random part, at least one image; returns the rest and the part."""
    order = np.random.default_rng([seed, 0]).permutation(len(data))
    count = min(max(1, round(fraction * len(data))), len(data) - 1)
    return data.part(np.sort(order[count:])), data.part(np.sort(order[:count]))


def _stretches(
    data: Data, seed: int, batch: int, total: int, stretch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Reads the features and labels of `stretch` steps after another, one stretch ahead.

    Yields:
      `[stretch, batch, ...]` and `[stretch, batch]`; the last one is filled up with first images.
    """
    steps_per_epoch = len(data) // batch

    def order(step: int) -> np.ndarray:
        """The positions of a step; an epoch leaves out what is no full batch."""
        epoch, place = divmod(step, steps_per_epoch)
        if epoch not in orders:
            orders.clear()
            orders[epoch] = np.random.default_rng([seed, 1, epoch]).permutation(len(data))
        return orders[epoch][place * batch : (place + 1) * batch]

    def load(first: int) -> tuple[np.ndarray, np.ndarray]:
        steps = [order(step) for step in range(first, min(first + stretch, total))]
        filling = [np.zeros(batch, int)] * (stretch - len(steps))
        return data.take(np.stack(steps + filling))

    orders: dict[int, np.ndarray] = {}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(load, 0)
        for first in range(0, total, stretch):
            loaded = ahead.result()
            if first + stretch < total:
                ahead = pool.submit(load, first + stretch)
            yield loaded


def train_and_score(
    trainer: HeadTrainer,
    data: Data,
    test: Data,
    learning_rates: Sequence[float],
    *,
    seed: int,
    what: str,
) -> tuple[HeadState, Score]:
    """Trains as `HeadTrainer.train` does, showing its progress, and measures on `test`."""
    with working(what, trainer.steps(data), "steps") as work:
        state = trainer.train(data, learning_rates, seed=seed, advance=work.advance)
        return state, trainer.score(state, test)
