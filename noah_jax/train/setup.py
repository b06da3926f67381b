"""Everything a configuration stands for, built and checked; nothing is written here."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from noah_jax import console as report
from noah_jax import distributed
from noah_jax.compilation import QUICK_COMPILE
from noah_jax.config import refuse_old_keys, scaled
from noah_jax.data import batches
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.decoding import DecodedSource
from noah_jax.data.sampler import Sampler
from noah_jax.data.setup import make_sampler, make_transforms, open_data
from noah_jax.data.source import Source
from noah_jax.data.transforms import EvalTransform, TrainTransform
from noah_jax.errors import InputError
from noah_jax.models import create_model
from noah_jax.models.base import Model
from noah_jax.tasks.task import Task, make_task
from noah_jax.train import finetune, schedules
from noah_jax.train import optimizer as optim
from noah_jax.train.finetune import Initial
from noah_jax.train.mixing import Augment, make_augment
from noah_jax.train.param_groups import Groups, find_groups
from noah_jax.train.step import (
    Batch,
    State,
    check_accumulate,
    init_state,
    make_eval_step,
    make_train_step,
)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A configuration made concrete; see `build`.

    Attributes:
      config: the configuration, with `scale_batch` carried out.
      mesh: the devices.
      model: the model.
      data_name: what the training images are, for messages.
      class_names: the classes, in the order of the labels.
      train_source: the training images.
      eval_source: the evaluation images.
      sampler: which training image stands where.
      train_transform: the training transform.
      eval_transform: the evaluation transform.
      corrupt_images: the images that could not be decoded so far, on this host.
      task: the loss, and what an evaluation finds out.
      augment: what the step does to the normalised images and their labels.
      groups: which parameters are frozen or have a learning rate of their own.
      optimizer: the optimizer, with its schedule.
      schedule: the learning rate by step.
      steps_per_epoch: steps of one epoch, not rounded.
      total_steps: steps of the whole run.
      eval_batch_size: images per evaluation step over all devices.
    """

    config: ConfigDict
    mesh: Mesh
    model: Model
    data_name: str
    class_names: list[str]
    train_source: DecodedSource
    eval_source: DecodedSource
    sampler: Sampler
    train_transform: TrainTransform
    eval_transform: EvalTransform
    corrupt_images: CorruptImages
    task: Task
    augment: Augment
    groups: Groups
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    steps_per_epoch: float
    total_steps: int
    eval_batch_size: int

    def make_state(self) -> State:
        """A fresh state; to be jitted, see `init_state`."""
        ema = self.config.ema_decay is not None
        return init_state(
            self.model, self.optimizer, self.config.seed, ema=ema, frozen=self.groups.frozen
        )

    def load_initial(self) -> Initial | None:
        """The weights that `config.init_from` names; see `finetune.load_initial`."""
        path = self.config.init_from
        if path is None:
            return None
        return finetune.load_initial(path, self.model, ema=self.config.init_ema)

    def init_state(self, initial: Initial | None = None) -> State:
        """A fresh state, born where it belongs, with the weights of `initial` if given."""
        make = jax.jit(
            self.make_state, out_shardings=self.state_shardings, compiler_options=QUICK_COMPILE
        )
        state = make()
        return state if initial is None else finetune.take_over(state, initial)

    def abstract_state(self) -> State:
        """The state as `jax.ShapeDtypeStruct`s with shardings."""
        return distributed.abstract_like(jax.eval_shape(self.make_state), self.state_shardings)

    @functools.cached_property
    def state_shardings(self) -> State:
        """How the devices hold each array of the state."""
        shapes = jax.eval_shape(self.make_state)
        if self.config.shard_state:
            return distributed.shared_out(shapes, self.mesh)
        return jax.tree.map(lambda _: distributed.replicated(self.mesh), shapes)

    @functools.cached_property
    def empty_eval_metrics(self) -> Callable[[], Any]:
        """Makes metrics to start an evaluation with, on every device."""
        return jax.jit(self.task.empty, out_shardings=distributed.replicated(self.mesh))

    def data_facts(self) -> dict[str, Any]:
        """What the processes of a run must have alike of the data."""
        return {
            "the number of training images": len(self.train_source),
            "the number of evaluation images": len(self.eval_source),
            "the number of classes": self.model.num_classes,
        }

    def train_batches(self, start_step: int) -> Iterator[Batch]:
        """The training batches after `start_step`, on the devices."""
        return batches.train_batches(
            self.train_source,
            self.train_transform,
            self.sampler,
            start_step=start_step,
            total_steps=self.total_steps,
            num_threads=self.config.data.num_threads,
            num_workers=self.config.data.num_workers,
            put=functools.partial(distributed.put_batch, mesh=self.mesh),
            corrupt_images=self.corrupt_images,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def eval_batches(self) -> Iterator[Batch]:
        """The evaluation batches, on the devices, every image once."""
        return batches.eval_batches(
            self.eval_source,
            self.eval_transform,
            batch_size=self.eval_batch_size,
            num_threads=self.config.data.num_threads,
            put=functools.partial(distributed.put_batch, mesh=self.mesh),
            corrupt_images=self.corrupt_images,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def make_train_step(self) -> Callable:
        """The train step, to be jitted; see `step.make_train_step`."""
        return make_train_step(
            self.model,
            self.optimizer,
            self.schedule,
            seed=self.config.seed,
            task=self.task,
            augment=self.augment,
            ema_decay=self.config.ema_decay,
            frozen=self.groups.frozen,
            log_every=self.config.log_every,
            accumulate=self.config.optim.accumulate,
            mesh=self.mesh,
            shardings=self.state_shardings if self.config.shard_state else None,
            **self._pixels,
        )

    def describe_groups(self) -> str | None:
        """What BatchNorm groups cost that do not lie on one device each; `None` if all do."""
        if not self.model.abstract()[1]:
            return None
        part = self.config.batch_size // self.config.optim.accumulate
        each, group = part // self.mesh.size, self.config.model.batch_norm_group or part
        if each % group == 0:
            return None
        spans = (
            f"spans {group // each}"
            if group % each == 0
            else f"spans up to {-(-group // each) + 1}"
        )
        return (
            f"a BatchNorm group of {group} images {spans} devices, which have {each} each: every"
            " BatchNorm layer exchanges its sums among them"
        )

    @property
    def _pixels(self) -> dict[str, tuple[float, ...]]:
        """Mean and standard deviation that pixels are normalised by."""
        return {
            "mean": tuple(self.config.data.mean or self.model.mean),
            "std": tuple(self.config.data.std or self.model.std),
        }

    def compile_steps(self) -> tuple[Callable, Callable]:
        """The train and the eval step, each compiled once, for its only shapes.

        Returns:
          `train_step(state, batch) -> state, metrics`, which takes the state's memory, and
          `eval_step(params, stats, batch, metrics) -> metrics`. Calling them with other
          shapes is an error, never another compilation.
        """
        eval_step = make_eval_step(
            self.model,
            task=self.task,
            mesh=self.mesh,
            sharded=self.config.shard_state,
            **self._pixels,
        )
        everywhere = distributed.replicated(self.mesh)
        state = self.abstract_state()
        eval_batch = self._abstract_batch(self.eval_batch_size, mask=True)
        metrics = distributed.abstract_like(jax.eval_shape(self.task.empty), everywhere)
        jitted_eval = jax.jit(
            eval_step,
            out_shardings=everywhere,
            donate_argnums=3,
            compiler_options=self.model.evaluation_options(),
        )
        return (
            self.trace_train_step().lower().compile(),
            jitted_eval.lower(state["params"], state["stats"], eval_batch, metrics).compile(),
        )

    def trace_train_step(self) -> jax.stages.Traced:
        """The train step for its only shapes, on the way to being compiled."""
        step = jax.jit(
            self.make_train_step(),
            out_shardings=(self.state_shardings, distributed.replicated(self.mesh)),
            donate_argnums=0,
        )
        return step.trace(self.abstract_state(), self._abstract_batch(self.config.batch_size))

    def _abstract_batch(self, size: int, *, mask: bool = False) -> dict[str, Any]:
        shapes = {
            "image": ((size, *self.model.image_size, 3), "uint8"),
            "label": ((size, *self.task.label_shape), "int32"),
        }
        if mask:
            shapes["mask"] = ((size,), "bool")
        sharding = distributed.batch_sharding(self.mesh)
        return {k: jax.ShapeDtypeStruct(s, d, sharding=sharding) for k, (s, d) in shapes.items()}


def build(
    config: ConfigDict,
    *,
    mesh: Mesh | None = None,
    sources: tuple[Source, Source] | None = None,
) -> Experiment:
    """Opens the data and makes the model, the optimizer and the transforms.

    Args:
      config: see `noah_jax.config`.
      mesh: the devices; by default all there are.
      sources: the training and the evaluation images; by default those of `config.dataset`.

    Raises:
      ValueError: if anything in the configuration does not fit; names the key.
    """
    refuse_old_keys(config)
    config = scaled(config)
    for key in ("log_every", "keep_checkpoints"):
        if config[key] < 1:
            raise InputError(f"{key} must be at least 1, got {config[key]}")
    for key in ("eval_every", "checkpoint_every"):
        if config[key] is not None and config[key] < 1:
            raise InputError(f"{key} must be at least 1 step, got {config[key]}")
    if config.ema_decay is not None and not 0 < config.ema_decay < 1:
        raise InputError(
            f"ema_decay must be between 0 and 1, such as 0.9999, or None; got {config.ema_decay}"
        )
    if config.init_ema and config.init_from is None:
        raise InputError("init_ema=True needs init_from, whose moving average it takes")
    mesh = mesh or distributed.make_mesh()
    accumulate = config.optim.accumulate
    eval_batch_size = config.eval_batch_size or config.batch_size // max(accumulate, 1)
    distributed.check_batch_size("batch_size", config.batch_size, mesh)
    data = config.data
    train_source, eval_source = sources or open_data(config.dataset, data)
    arguments = {k: v for k, v in config.model.to_dict().items() if v is not None}
    model = create_model(num_classes=len(train_source.class_names), **arguments)
    check_accumulate(accumulate, config.batch_size, model, mesh.size)
    distributed.check_batch_size("eval_batch_size", eval_batch_size, mesh)
    train_transform, eval_transform = make_transforms(
        data, image_size=model.image_size, mean=model.mean
    )
    sampler = make_sampler(
        data,
        seed=config.seed,
        length=len(train_source),
        batch_size=config.batch_size,
        mix_group=config.mix_group,
    )
    steps_per_epoch = sampler.epoch_length / config.batch_size
    total_steps = round(config.epochs * steps_per_epoch)
    if total_steps < 1:
        raise InputError(
            f"epochs={config.epochs} of {sampler.epoch_length} images in batches of"
            f" {config.batch_size} are less than one step"
        )
    groups = find_groups(config.optim, model.abstract()[0])
    schedule = schedules.make_schedule(
        config.optim, epochs=config.epochs, steps_per_epoch=steps_per_epoch
    )
    return Experiment(
        config=config,
        mesh=mesh,
        model=model,
        data_name=train_source.name,
        class_names=train_source.class_names,
        train_source=DecodedSource(train_source, cache=data.cache),
        eval_source=DecodedSource(eval_source, cache=data.cache),
        sampler=sampler,
        train_transform=train_transform,
        eval_transform=eval_transform,
        corrupt_images=CorruptImages(data.on_corrupt_image, tell=report.warn),
        task=make_task(
            dataset=config.dataset,
            multi_label=train_source.multi_label,
            num_classes=model.num_classes,
            capacity=-(-len(eval_source) // eval_batch_size) * eval_batch_size,
            loss=config.loss,
            asymmetric=config.asymmetric,
            smoothing=config.smoothing,
        ),
        augment=make_augment(
            config,
            num_classes=model.num_classes,
            batch_size=config.batch_size,
            size=model.image_size,
            replicate=lambda drawn: jax.lax.with_sharding_constraint(
                drawn, distributed.replicated(mesh)
            ),
        ),
        groups=groups,
        optimizer=optim.make_optimizer(
            config.optim,
            schedule,
            decay_all=model.architecture.decay_all,
            no_decay=model.architecture.no_decay,
            factors=groups.factors,
        ),
        schedule=schedule,
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        eval_batch_size=eval_batch_size,
    )


def every(steps: int | None, experiment: Experiment) -> int:
    """An interval in steps; `None` is an epoch's."""
    return steps or math.ceil(experiment.steps_per_epoch)
