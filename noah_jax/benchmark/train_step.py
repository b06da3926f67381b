"""The training program's own step, with SGD and without augmentation, for measurements."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from noah_jax import distributed
from noah_jax.compilation import QUICK_COMPILE, train_step_options
from noah_jax.models.base import Model
from noah_jax.train.state import State, init_state
from noah_jax.train.step import make_train_step

_LEARNING_RATE = 0.01


@dataclasses.dataclass(frozen=True)
class PlainStep:
    """The train step of a model on the devices of a mesh.

    Attributes:
      model: The model.
      mesh: The devices, which need not be here.
      batch: Images on each device.
      compiler_options: XLA's options besides those of the training program.
    """

    model: Model
    mesh: Mesh
    batch: int
    compiler_options: Mapping[str, str | bool] | None = None

    @functools.cached_property
    def _optimizer(self) -> optax.GradientTransformation:
        return optax.sgd(_LEARNING_RATE, momentum=0.9)

    def _init(self) -> State:
        return init_state(self.model, self._optimizer, 0)

    def compile(self) -> jax.stages.Compiled:
        """Compiles the step, `(state, batch) -> (state, metrics)`, which takes the state's memory.

        Raises:
          JaxRuntimeError: If the compiler does not know an option, or finds no memory.
        """
        model = self.model
        step = make_train_step(
            model,
            self._optimizer,
            lambda _: _LEARNING_RATE,
            seed=0,
            mean=model.mean,
            std=model.std,
            mesh=self.mesh,
        )
        everywhere = distributed.replicated(self.mesh)
        images = self.batch * self.mesh.size
        batch = {
            "image": jax.ShapeDtypeStruct((images, *model.image_size, 3), jnp.uint8),
            "label": jax.ShapeDtypeStruct((images,), jnp.int32),
        }
        options = train_step_options(self.mesh.devices.flat[0].platform) or {}
        options = options | dict(self.compiler_options or {})
        jitted = jax.jit(
            step, out_shardings=everywhere, donate_argnums=0, compiler_options=options or None
        )
        return jitted.lower(
            distributed.abstract_like(jax.eval_shape(self._init), everywhere),
            distributed.abstract_like(batch, distributed.batch_sharding(self.mesh)),
        ).compile()

    def state(self) -> State:
        """Computes a fresh state on the devices, which must be here."""
        everywhere = distributed.replicated(self.mesh)
        return jax.jit(self._init, out_shardings=everywhere, compiler_options=QUICK_COMPILE)()

    def random_batch(self) -> dict[str, Any]:
        """Draws a batch of random images and labels onto the devices, which must be here."""
        random = np.random.default_rng(0)
        images = self.batch * self.mesh.size
        batch = {
            "image": random.integers(0, 256, (images, *self.model.image_size, 3), np.uint8),
            "label": random.integers(0, self.model.num_classes, images, np.int32),
        }
        return jax.device_put(batch, distributed.batch_sharding(self.mesh))
