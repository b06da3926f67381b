"""The training loop: trains, evaluates and saves what a configuration says."""

import collections
import json
import os
import time
from collections.abc import Callable
from typing import Any

import jax
from clu import parameter_overview
from etils import epath
from ml_collections import ConfigDict

from noah_jax import console, distributed
from noah_jax.compilation import QUICK_COMPILE, enable_compilation_cache
from noah_jax.config import HOST_KEYS, flat_config
from noah_jax.console import say, working
from noah_jax.data.split import SPLIT_FILE, read_split, split_text
from noah_jax.files import is_remote, write_text
from noah_jax.paths import expand_home
from noah_jax.runs.checkpoints import Checkpoints, saved_steps
from noah_jax.runs.data_file import check_data
from noah_jax.runs.run_dir import (
    CHECKPOINTS,
    PARAMETERS,
    check_config,
    prepare_folder,
    read_config,
    read_results,
    write_results,
)
from noah_jax.tasks.task import describe
from noah_jax.train.choices import leaves_open, remember
from noah_jax.train.examples import EXAMPLES, write_examples
from noah_jax.train.finetune import take_over
from noah_jax.train.messages import (
    describe_batch,
    describe_choices,
    describe_setup,
    describe_sharding,
    few_images_warning,
)
from noah_jax.train.metric_writer import MetricWriter
from noah_jax.train.nonfinite import finite_leaves
from noah_jax.train.profiling import StepProfile
from noah_jax.train.progress import Progress
from noah_jax.train.setup import TrainSetup, build
from noah_jax.train.stop_request import Stopped, StopRequest
from noah_jax.train.throughput import train_flops
from noah_jax.train.trackers.libraries import check_trackers
from noah_jax.train.trackers.tracker import TrackedRun
from noah_jax.train.wait_notice import WaitNotice

_STEPS_IN_FLIGHT = 2  # Enough to keep the device busy without batches piling up on it.

EvalMetrics = dict[str, float]


def train(
    config: ConfigDict,
    workdir: str,
    *,
    alive: Callable[[int], None] = lambda step: None,
    profile: bool = False,
) -> dict[str, Any]:
    """Trains, evaluates and saves what the configuration says.

    Args:
      config: The configuration, see `noah_jax.config`.
      workdir: The run's folder, the same for all processes.
      alive: Called with the step after every training step and every evaluation batch.
      profile: Whether to write a profile of some steps into the folder.

    Returns:
      The results, as in `results.json`.

    Raises:
      InputError: If the configuration or the folder does not fit, or the processes of the run
        differ. Nothing has been written then.
      NonFiniteError: If the loss or the weights are not finite. Nothing of that is saved.
      Stopped: After SIGTERM or SIGINT, once the state is saved.
    """
    started = time.time()
    directory = epath.Path(expand_home(workdir))

    # ---- Check everything before anything is written.
    if leaves_open(config):
        config = remember(config, read_config(directory))
    check_trackers(config.trackers)
    config_dict = json.loads(config.to_json_best_effort())
    check_config(directory, config_dict)
    saved = saved_steps(directory / CHECKPOINTS)
    distributed.check_equal("start", _start_metadata(config_dict, saved))
    if (results := read_results(directory)) is not None:
        say(f"{workdir} is finished: {_result_line(results)}. Choose another --workdir to train.")
        return results
    with working("opening the data"):
        setup = build(config, split=read_split(directory))
    model, plan = setup.model, setup.plan
    total_steps = plan.total_steps
    distributed.check_equal("data", setup.inputs.metadata())
    # A run always resumes from its own checkpoints. The weights of init_from start it only once.
    with working("loading the weights to start with"):
        initial = None if saved else setup.load_initial_weights()
    changes = (
        check_data(directory, setup.inputs.record, allow_change=config.data.allow_change)
        if saved
        else []
    )

    # ---- Say what is trained on what, before minutes of compiling.
    for line in (
        *describe_setup(setup, parameters=directory / PARAMETERS),
        *changes,
        *describe_choices(config, setup),
        *describe_batch(setup),
        *setup.param_groups.describe(setup.states.abstract()["params"]),
        *(initial.lines if initial else ()),
    ):
        say(line)
    if not saved and (warning := few_images_warning(setup)) and jax.process_index() == 0:
        console.warn(warning)

    # ---- Compile both steps, once each, for their only shapes.
    enable_compilation_cache(config.compilation_cache, shared=str(directory / "compilation"))
    begin = time.perf_counter()
    with working("compiling the training and the evaluation step"):
        train_step, eval_step = setup.steps.compile()
    compile_seconds = time.perf_counter() - begin
    say(f"compiled in {compile_seconds:.1f} s")

    # ---- Restore the state, or start from other weights, or afresh.
    prepare_folder(
        directory,
        json.loads(setup.config.to_json_best_effort()),
        model_name=model.name,
        model_arguments=model.arguments,
        class_names=setup.inputs.class_names,
        preprocessing=setup.preprocessing.to_json(),
        data=setup.inputs.record,
    )
    if setup.inputs.split is not None and jax.process_index() == 0:
        write_text(directory / SPLIT_FILE, split_text(setup.inputs.split))
    checkpoints = Checkpoints(directory / CHECKPOINTS, keep=config.keep_checkpoints)
    with working("making or restoring the weights"):
        restored = checkpoints.restore(setup.states.abstract())
        state = setup.states.create() if restored is None else restored
        if restored is None and initial is not None:
            state = take_over(state, initial)
    if restored is None and jax.process_index() == 0:
        overview = parameter_overview.get_parameter_overview(state["params"], include_stats=False)
        write_text(directory / PARAMETERS, overview + "\n")
    del restored, initial  # The weights are on the devices now; free the host's memory.
    start_step = int(state["step"])
    if config.shard_state:
        say(describe_sharding(state))
    if start_step:
        say(f"going on after step {start_step} of {total_steps}")

    # ---- Prepare logging and evaluation.
    writer = MetricWriter(
        directory,
        start_step=start_step,
        trackers=config.trackers,
        tracked=TrackedRun(
            project=config.tracker_project,
            name=os.path.basename(os.path.abspath(os.fspath(directory))),
            config=flat_config(json.loads(setup.config.to_json_best_effort())),
        ),
    )
    progress = Progress(
        directory,
        writer,
        plan=plan,
        mesh=setup.mesh,
        schedule=setup.schedule,
        image_indices=setup.inputs.image_indices,
        step_flops=_step_flops(setup),
        start_step=start_step,
        started=started,
        compile_seconds=compile_seconds,
        accuracy_words=setup.task.accuracy_words,
        wait_notice=WaitNotice(setup.config.data),
    )

    def evaluate(step: int, *, record: bool = True) -> dict[str, EvalMetrics]:
        weights = {"eval": (state["params"], state["stats"])}
        if "ema" in state:
            weights["eval_ema"] = (state["ema"]["params"], state["ema"]["stats"])
        metrics = {split: setup.steps.empty_eval_metrics() for split in weights}
        with working("evaluating", total=setup.inputs.eval_capacity) as work:
            for batch in setup.inputs.eval_batches():
                for split, (params, stats) in weights.items():
                    metrics[split] = eval_step(params, stats, batch, metrics[split])
                alive(step)
                work.advance(plan.eval_batch_size)
            jax.block_until_ready(metrics)
        summaries = {split: setup.task.summarise(metrics[split]) for split in weights}
        for split, values in summaries.items():
            setup.inputs.check_evaluated(int(values["examples"]))
            if record:
                writer.write(step, split, values)
            say(_evaluation_line(step, split, values, model.num_classes))
        return summaries

    # ---- The loop. The host runs ahead of the device and reads metrics one log interval late, so
    # that the device never waits for it.
    check_finite = jax.jit(finite_leaves, compiler_options=QUICK_COMPILE)
    profiler = StepProfile(
        directory, start_step=start_step, total_steps=total_steps, wanted=profile
    )
    in_flight: collections.deque[Any] = collections.deque()
    batches = setup.inputs.train_batches(start_step)
    evaluated: dict[str, EvalMetrics] = {}
    with StopRequest() as stop, profiler, progress:
        for step in range(start_step + 1, total_steps + 1):
            with progress.host_time(), progress.input_wait():
                batch = next(batches)
            with profiler.step(step):
                state, metrics = train_step(state, batch)
            profiler.after(step, metrics)
            with progress.host_time():
                progress.add(step, metrics)
                if step % plan.log_every == 0 or step == total_steps:
                    progress.log(step, metrics)
                in_flight.append(metrics)
            if len(in_flight) > _STEPS_IN_FLIGHT:
                jax.block_until_ready(in_flight.popleft())
            alive(step)

            last = step == total_steps
            stopping = stop.due(step) and not last
            evaluating = last or step % plan.eval_every == 0
            saving = last or stopping or step % plan.checkpoint_every == 0
            if evaluating or saving:
                progress.pause()
                progress.check(step, check_finite(state))
                if evaluating:
                    evaluated = evaluate(step)
                if saving:
                    # The metrics go first: a resumed run drops the lines after its checkpoint,
                    # but it could not write those that are missing before it.
                    writer.flush()
                    with progress.saving(step):
                        checkpoints.save(step, state)
                progress.go_on()
            if stopping:
                checkpoints.close()
                writer.close(finished=False)
                raise Stopped(
                    f"stopped after step {step} of {total_steps}, which is saved;"
                    " the same command goes on from there"
                )
    # A run may have been stopped between its last checkpoint and its results. The evaluation of
    # the last step is in the metrics then, so it is repeated without recording it again.
    if not evaluated:
        evaluated = evaluate(total_steps, record=False)

    # ---- Write the results, which mark the run as finished, once everything else is safe.
    progress.pause()
    with working("saving the last checkpoint"):
        checkpoints.close()
    with working("waiting for the trackers"):
        writer.close(finished=True)
    averages = evaluated.get("eval_ema", {})
    results = {
        "model": model.name,
        **evaluated["eval"],
        **{f"ema_{key}": averages[key] for key in averages if key != "examples"},
        "step": total_steps,
        "num_params": model.num_params,
        "num_classes": model.num_classes,
    }
    if jax.process_index() == 0 and not is_remote(workdir):
        write_examples(directory / EXAMPLES, setup.inputs.eval_source.encoded)
    write_results(directory, results)
    for what, count in (
        ("corrupt image(s), named above", len(setup.inputs.corrupt_images)),
        ("image(s) without a label", setup.inputs.corrupt_images.unlabelled),
    ):
        if count:
            console.warn(
                f"{count} {what}: replaced by the next one in training, left out of the evaluation"
            )
    say(
        f"finished in {console.duration(time.time() - started)}, goodput"
        f" {100 * progress.goodput():.0f} %: {_result_line(results)}"
    )
    return results


def _start_metadata(config: dict[str, Any], saved: list[int]) -> dict[str, Any]:
    """Returns what all processes must have in common before they open the data."""
    shared = {key: value for key, value in flat_config(config).items() if key not in HOST_KEYS}
    return {
        **distributed.machine_metadata(),
        **{f"config.{key}": value for key, value in shared.items()},
        "the list of checkpoints": saved,
    }


def _step_flops(setup: TrainSetup) -> float | None:
    """FLOPs of a step on all devices; `None` if frozen parameters save an unknown number."""
    if setup.param_groups.frozen:
        return None
    return setup.plan.batch_size * train_flops(setup.model)


def _evaluation_line(step: int, split: str, values: EvalMetrics, num_classes: int) -> str:
    average = "EMA " if split == "eval_ema" else ""
    return (
        f"step {step}: {average}{describe(values, num_classes)}, loss"
        f" {values['loss']:.4f} on {values['examples']:,} images"
    )


def _result_line(results: dict[str, Any]) -> str:
    averages = {k.removeprefix("ema_"): v for k, v in results.items() if k.startswith("ema_")}
    num_classes = results.get("num_classes")  # runs before 0.2.0 did not record it
    average = f" (EMA: {describe(averages, num_classes)})" if averages else ""
    return (
        f"{results['model']} has {describe(results, num_classes)}{average} on"
        f" {results['examples']:,} images after step {results['step']}"
    )
