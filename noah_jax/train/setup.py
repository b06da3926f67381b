"""Builds everything that a run needs from its configuration; nothing is written here.

Each part gets exactly its own section of the configuration, checks it, and names the key in its
errors. What is handed on from here are objects, not the configuration.
"""

import dataclasses

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from noah_jax import console, distributed
from noah_jax.config_names import refuse_old_keys
from noah_jax.config_sections import (
    augmentation_section,
    initial_weights_section,
    model_section,
    plan_section,
    scaled,
    task_section,
)
from noah_jax.config_values import check_values
from noah_jax.data.corrupt import CorruptImages
from noah_jax.data.dali.requirements import check_installed, decodes_on_gpu
from noah_jax.data.decoding import DecodedSource
from noah_jax.data.preprocessing import Preprocessing, of_run
from noah_jax.data.record import record_data
from noah_jax.data.setup import DALI, make_sampler, make_transforms, open_data
from noah_jax.data.source import Source
from noah_jax.data.split import FolderPart, FolderSplit
from noah_jax.data.window_choice import choose_window
from noah_jax.heads.registry import never_decay
from noah_jax.inference.initial_weights import InitialWeights, load_initial_weights
from noah_jax.models import create_model, get_family
from noah_jax.models.base import Model
from noah_jax.tasks.task import Task, make_task
from noah_jax.train.accumulation import check_accumulate
from noah_jax.train.choices import settle_by_size, settle_model
from noah_jax.train.compiled_steps import StepCompiler
from noah_jax.train.device_augment import make_apply_draws
from noah_jax.train.finetune import check_initial_weights
from noah_jax.train.input_pipeline import InputPipeline
from noah_jax.train.mixing import Mixing, make_augment
from noah_jax.train.optimizer import make_optimizer
from noah_jax.train.param_groups import ParamGroups, find_param_groups
from noah_jax.train.plan import Plan, make_plan
from noah_jax.train.schedules import make_momentum_schedule, make_schedule
from noah_jax.train.state import StateMaker


@dataclasses.dataclass(frozen=True)
class TrainSetup:
    """The parts of a run; see `build`.

    Attributes:
      config: The configuration with all that it left open, before `scale_batch`; for the record.
      inputs: Yields the batches.
      steps: Compiles the steps; it knows the task, the schedule and how the state is made.
      param_groups: Which parameters are frozen or have a learning rate of their own.
      init_from: The weights to start with, as `noah_jax.load_model` takes them, if any.
      init_ema: Whether to take the moving average of those weights.
      keep_head: Whether to take their head too if its classes have other names.
      preprocessing: What the evaluation does to images.
    """

    config: ConfigDict
    inputs: InputPipeline
    steps: StepCompiler
    param_groups: ParamGroups
    init_from: str | None
    init_ema: bool
    keep_head: bool
    preprocessing: Preprocessing

    @property
    def states(self) -> StateMaker:
        """Makes the state."""
        return self.steps.states

    @property
    def model(self) -> Model:
        """The model."""
        return self.states.model

    @property
    def mesh(self) -> Mesh:
        """The devices."""
        return self.states.mesh

    @property
    def plan(self) -> Plan:
        """How many images and steps the run has."""
        return self.steps.plan

    @property
    def task(self) -> Task:
        """Defines loss and metrics."""
        return self.steps.task

    @property
    def schedule(self) -> optax.Schedule:
        """The learning rate by step."""
        return self.steps.schedule

    def load_initial_weights(self) -> InitialWeights | None:
        """Loads the weights to start with, if the configuration names any."""
        if self.init_from is None:
            return None
        return load_initial_weights(
            self.init_from,
            self.model,
            ema=self.init_ema,
            class_names=self.inputs.class_names,
            keep_head=self.keep_head,
            preprocessing=self.preprocessing,
        )


def build(
    config: ConfigDict,
    *,
    mesh: Mesh | None = None,
    sources: tuple[Source, Source] | None = None,
    split: FolderSplit | None = None,
) -> TrainSetup:
    """Opens the data and makes the model, the optimizer and the steps.

    Args:
      config: The configuration, see `noah_jax.config`.
      mesh: The devices; all there are by default.
      sources: The training and the evaluation images; those of `config.dataset` by default.
      split: The split of class folders that the run remembers from its first start.

    Raises:
      InputError: If anything in the configuration does not fit; the message names the key.
    """
    # ---- What can be checked before any data is opened.
    refuse_old_keys(config)
    check_values(config)
    config = settle_model(config)
    check_initial_weights(initial_weights_section(config))
    mesh = mesh or distributed.make_mesh()
    if config.batch_size is not None:
        distributed.check_batch_size("batch_size", scaled(config).batch_size, mesh)

    if config.data.loader == DALI:
        decodes_on_gpu(list(mesh.devices.flat))
        if sources is None:  # else the steps may only be compiled, which needs no DALI
            check_installed()

    # ---- Data and model. The model needs the classes, the transforms the model's image size.
    train_source, eval_source = sources or open_data(config.dataset, config.data, split)
    settled = settle_by_size(
        config, num_images=len(train_source) * config.data.repeats, num_devices=mesh.size
    )
    settled.data.shuffle_window = choose_window(
        settled.data.shuffle_window, train_source, eval_source
    )
    config = scaled(settled)
    accumulate = config.optim.accumulate
    eval_batch_size = config.eval_batch_size or config.batch_size // max(accumulate, 1)
    distributed.check_batch_size("batch_size", config.batch_size, mesh)
    num_classes = len(train_source.class_names)
    model = create_model(num_classes=num_classes, **model_section(config))
    check_accumulate(accumulate, config.batch_size, model, mesh.size)
    distributed.check_batch_size("eval_batch_size", eval_batch_size, mesh)
    train_transform, eval_transform = make_transforms(
        config.data, image_size=model.image_size, mean=model.mean
    )
    preprocessing = of_run(config.data, image_size=model.image_size, mean=model.mean, std=model.std)
    sampler = make_sampler(
        config.data,
        train_source,
        seed=config.seed,
        batch_size=config.batch_size,
        mix_group=config.mix_group,
    )
    plan = make_plan(
        plan_section(config),
        accumulate=accumulate,
        eval_batch_size=eval_batch_size,
        epoch_length=sampler.epoch_length,
    )
    inputs = InputPipeline(
        loader=config.data.loader,
        name=train_source.name,
        class_names=train_source.class_names,
        multi_label=train_source.multi_label,
        record=record_data(train_source, eval_source, windows=sampler.windows),
        split=train_source.split if isinstance(train_source, FolderPart) else None,
        train_source=DecodedSource(train_source, cache=config.data.cache),
        eval_source=DecodedSource(eval_source, cache=config.data.cache),
        train_transform=train_transform,
        eval_transform=eval_transform,
        sampler=sampler,
        plan=plan,
        num_threads=config.data.num_threads,
        num_workers=config.data.num_workers,
        corrupt_images=CorruptImages(config.data.on_corrupt_image, tell=console.warn),
        mesh=mesh,
    )

    # ---- Task and augmentation.
    task = make_task(
        dataset=config.dataset,
        multi_label=inputs.multi_label,
        num_classes=num_classes,
        capacity=inputs.eval_capacity,
        **task_section(config),
    )

    def replicate(drawn: Mixing) -> Mixing:
        return jax.lax.with_sharding_constraint(drawn, distributed.replicated(mesh))

    augment = make_augment(
        augmentation_section(config),
        num_classes=num_classes,
        batch_size=config.batch_size,
        size=model.image_size,
        mean=preprocessing.mean,
        std=preprocessing.std,
        replicate=replicate,
    )

    # ---- Optimizer.
    param_groups = find_param_groups(
        config.optim, model.abstract()[0], layers=get_family(model.name).layers
    )
    schedule = make_schedule(
        config.optim, epochs=config.epochs, steps_per_epoch=plan.steps_per_epoch
    )
    optimizer = make_optimizer(
        config.optim,
        schedule,
        decay_all=model.architecture.decay_all,
        no_decay=model.architecture.no_decay,
        never_decay=never_decay(model.arguments["head"]),
        factors=param_groups.rates,
        momentum=make_momentum_schedule(
            config.optim, epochs=config.epochs, steps_per_epoch=plan.steps_per_epoch
        ),
    )

    # ---- State and steps.
    states = StateMaker(
        model=model,
        optimizer=optimizer,
        seed=config.seed,
        ema=config.ema_decay is not None,
        frozen=param_groups.frozen,
        mesh=mesh,
        sharded=config.shard_state,
    )
    steps = StepCompiler(
        states=states,
        plan=plan,
        schedule=schedule,
        task=task,
        draw_shape=train_transform.draw_shape,
        apply_draws=make_apply_draws(train_transform, mesh),
        augment=augment,
        ema_decay=config.ema_decay,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )
    return TrainSetup(
        config=settled,
        inputs=inputs,
        steps=steps,
        param_groups=param_groups,
        init_from=config.init_from,
        init_ema=config.init_ema,
        keep_head=config.data.allow_change,
        preprocessing=preprocessing,
    )
