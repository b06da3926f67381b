"""The trackers that a run can use, each by its own library.

Servers, keys, and offline modes are set as the libraries' users do, by their environment variables:
WANDB_MODE=offline, TRACKIO_DIR, MLFLOW_TRACKING_URI, and so on.
"""

import importlib.util
import json
import secrets
import time
from collections.abc import Callable, Iterable, Mapping

from noah_jax.errors import InputError
from noah_jax.train.trackers.tracker import TrackedRun, Tracker

_START_SECONDS = 60
_MLFLOW_PARAMETERS = 100  # that one call of MLflow takes at most


class _Wandb:
    """Weights & Biases."""

    def start(self, run: TrackedRun, known: str | None) -> str:
        import wandb

        key = known or secrets.token_hex(4)
        settings = wandb.Settings(
            console="off",
            silent=True,
            init_timeout=_START_SECONDS,
            login_timeout=1,  # Without a key it would ask for one, and nobody reads the question.
        )
        self._run = wandb.init(
            project=run.project,
            id=key,
            name=run.name,
            config=dict(run.config),
            resume="allow",
            settings=settings,
        )
        # wandb's own step can only rise. A run that resumes sends again what came after its
        # checkpoint, so the step is a metric, and the axis of the others.
        self._run.define_metric("*", step_metric="step")
        return key

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def finish(self, *, finished: bool) -> None:
        if not finished:
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if finished else 1)


class _Trackio:
    """trackio, which knows runs by their names."""

    def start(self, run: TrackedRun, known: str | None) -> str:
        import trackio

        key = known or f"{run.name}-{secrets.token_hex(2)}"
        self._run = trackio.init(
            project=run.project, name=key, config=dict(run.config), resume="allow", embed=False
        )
        return key

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, *, finished: bool) -> None:
        self._run.finish()


class _Mlflow:
    """MLflow, by its client, which keeps no global state."""

    def start(self, run: TrackedRun, known: str | None) -> str:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        if known is not None:
            self._client.update_run(known, status="RUNNING")
            self._key = known
            return known
        experiment = self._client.get_experiment_by_name(run.project)
        found = experiment.experiment_id if experiment else None
        found = found or self._client.create_experiment(run.project)
        self._key = self._client.create_run(found, run_name=run.name).info.run_id
        parameters = [Param(name, json.dumps(value)) for name, value in run.config.items()]
        for first in range(0, len(parameters), _MLFLOW_PARAMETERS):
            part = parameters[first : first + _MLFLOW_PARAMETERS]
            self._client.log_batch(self._key, params=part)
        return self._key

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._key, metrics=metrics)

    def finish(self, *, finished: bool) -> None:
        self._client.set_terminated(self._key, "FINISHED" if finished else "KILLED")


# What makes each tracker. The names are those of the modules, and of our extras.
TRACKERS: dict[str, Callable[[], Tracker]] = {
    "wandb": _Wandb,
    "trackio": _Trackio,
    "mlflow": _Mlflow,
}


def check_trackers(names: Iterable[str]) -> None:
    """Checks that the libraries of trackers are installed.

    Args:
      names: Keys of `TRACKERS`.

    Raises:
      InputError: If one is not.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"config.trackers names {name}, which is not installed:"
                f" pip install 'noah-jax[{name}]'"
            )
