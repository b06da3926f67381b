"""The training of heads on features: the recipe's optimizers, and learning rates side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from noah_jax import create_model
from noah_jax.probe.recipe import Recipe, at_the_edge, make_recipe
from noah_jax.probe.training import Data, HeadTrainer, split_off, standardise

RATES = (0.3, 3.0)


def _recipe(**values) -> Recipe:
    defaults = dict(
        optimizer="adamw",
        learning_rates=RATES,
        weight_decay=0.01,
        epochs=3,
        batch_size=16,
        standardise=False,
    )
    return Recipe(**{**defaults, **values})


def _data(shape: tuple[int, ...] = (2, 2, 8)) -> Data:
    random = np.random.RandomState(0)
    labels = random.randint(0, 3, 50).astype(np.int32)
    features = random.standard_normal((60, *shape)) * 2 + 1
    rows = np.sort(random.permutation(60)[:50])
    features[rows, ..., :3] += 2 * np.eye(3)[labels].reshape(50, *[1] * (len(shape) - 1), 3)
    return Data(features.astype(np.float16), rows, labels)


def _model(head: str):
    return create_model("resnet18", head=head, num_classes=3, width=1, depths=(1, 1, 1, 1))


@pytest.fixture(scope="module")
def noah() -> HeadTrainer:
    return HeadTrainer(_model("noah"), _recipe(), None)


@pytest.fixture(scope="module")
def trained(noah):
    return noah.train(_data(), RATES, seed=0, advance=lambda steps: None)


def _alone(trainer: HeadTrainer, rate: float, seed: int = 0):
    return trainer.train(_data(), [rate], seed=seed, advance=lambda steps: None)


def test_learning_rates_side_by_side_are_those_alone(noah, trained):
    score = noah.score(trained, _data())
    for i, rate in enumerate(RATES):
        alone = _alone(noah, rate)
        for a, b in zip(
            jax.tree.leaves(noah.weights(trained, i)),
            jax.tree.leaves(noah.weights(alone, 0)),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert noah.score(alone, _data()).loss[0] == pytest.approx(score.loss[i], rel=1e-4)


def test_a_training_is_a_function_of_its_seed(noah):
    first, again, other = _alone(noah, 0.3), _alone(noah, 0.3), _alone(noah, 0.3, seed=1)
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
    with pytest.raises(AssertionError):
        jax.tree.map(np.testing.assert_array_equal, first.params, other.params)


def test_how_many_steps_go_to_the_device_together_does_not_matter(noah, monkeypatch):
    expected = _alone(noah, 0.3)
    monkeypatch.setattr("noah_jax.probe.training._STRETCH_BYTES", 5 * 16 * 2 * 2 * 8 * 2)
    stretches = _alone(noah, 0.3)  # 9 steps, of which 5 and 4 together
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        expected.params,
        stretches.params,
    )


def test_a_linear_head_of_standardised_features_is_one_of_the_features():
    data = _data((6,))
    standard = standardise(data)
    used = data.features[data.rows].astype(np.float64)
    np.testing.assert_allclose(standard.mean, used.mean(0), rtol=1e-6)
    np.testing.assert_allclose(standard.deviation, np.sqrt(used.var(0) + 1e-6), rtol=1e-6)
    model = create_model("mixer_s16_224", num_classes=3, image_size=32, width=6, depth=1)
    recipe = _recipe(optimizer="sgd", standardise=True, weight_decay=0.0, epochs=20)
    trainer = HeadTrainer(model, recipe, standard)
    state = trainer.train(data, (0.001, 1.0), seed=0, advance=lambda steps: None)
    score = trainer.score(state, data)
    for i in range(2):
        params, stats = trainer.weights(state, i)
        logits, _ = model.apply_head(params, stats, jnp.asarray(used, jnp.float32), train=False)
        inside = (used - standard.mean) / standard.deviation
        layer = jax.tree.map(lambda x, i=i: np.asarray(x[i]), state.params)["linear"]
        expected = inside @ layer["kernel"] + layer["bias"]
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
        top1 = 100 * (expected.argmax(1) == data.labels).mean()
        assert top1 == pytest.approx(score.top1[i])
    assert score.top1[1] > 55 and score.loss[1] < score.loss[0]


def test_lars_is_that_of_mae():
    """`util/lars.py` of MAE, whose trust ratio spares biases."""
    random = np.random.RandomState(0)
    kernel, bias = random.standard_normal((4, 3)), random.standard_normal(3)
    gradients = [
        {"kernel": random.standard_normal((4, 3)), "bias": random.standard_normal(3)}
        for _ in range(3)
    ]
    transformation = _recipe(optimizer="lars", weight_decay=0.1).transformation(())
    params = {"linear": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}
    state = transformation.init(params)
    momentum = {"kernel": np.zeros((4, 3)), "bias": np.zeros(3)}
    for gradient, rate in zip(gradients, (0.5, 2.0, 1.0), strict=True):
        updates, state = transformation.update({"linear": gradient}, state, params)
        params = jax.tree.map(lambda p, u, r=rate: p - r * u, params, updates)
        decayed = gradient["kernel"] + 0.1 * kernel
        trust = 0.001 * np.linalg.norm(kernel) / np.linalg.norm(decayed)
        momentum["kernel"] = 0.9 * momentum["kernel"] + trust * decayed
        momentum["bias"] = 0.9 * momentum["bias"] + gradient["bias"]
        kernel, bias = kernel - rate * momentum["kernel"], bias - rate * momentum["bias"]
    np.testing.assert_allclose(params["linear"]["kernel"], kernel, rtol=1e-5)
    np.testing.assert_allclose(params["linear"]["bias"], bias, rtol=1e-5)


def test_the_held_out_part_is_no_part_of_the_rest():
    data = _data()
    rest, held_out = split_off(data, 0.1, seed=3)
    assert (len(rest), len(held_out)) == (45, 5)
    assert sorted([*rest.rows, *held_out.rows]) == data.rows.tolist()
    labels = dict(zip(data.rows, data.labels, strict=True))
    assert [labels[row] for row in held_out.rows] == held_out.labels.tolist()
    assert held_out.rows.tolist() != split_off(data, 0.1, seed=4)[1].rows.tolist()
    assert [len(part) for part in split_off(data.part(np.arange(2)), 0.01, seed=0)] == [1, 1]


def test_the_published_recipe_and_small_datasets():
    def made(head, images, **given):
        options = dict(epochs=90, batch_size=None, optimizer=None, learning_rates=None)
        return make_recipe(head, images=images, **{**options, "weight_decay": None, **given})

    linear = made("linear", 10**6)
    assert (linear.optimizer, linear.weight_decay, linear.standardise) == ("lars", 0.0, True)
    assert 0.1 in linear.learning_rates and linear.batch_size == 1024
    assert made("noah", 10**6).optimizer == "adamw"
    assert [made("ep", images).batch_size for images in (5, 60, 500, 8191, 8192)] == [
        *(5, 16, 32, 512, 1024)
    ]
    given = made("noah", 100, learning_rates=[0.5, 0.1], optimizer="sgd", batch_size=200)
    assert (given.learning_rates, given.batch_size) == ((0.1, 0.5), 100)
    assert "0.5 is the largest" in at_the_edge(given, 0.5)
    assert at_the_edge(made("noah", 100, learning_rates=[0.5]), 0.5) == ""


def test_the_schedule_rises_for_a_ninth_and_falls_to_nothing():
    factor = _recipe(epochs=90).schedule(steps_per_epoch=2)
    rates = np.array([factor(step) for step in range(180)])
    assert rates[19] == 1 and rates[0] == pytest.approx(1 / 20)
    assert (np.diff(rates[:20]) > 0).all() and (np.diff(rates[20:]) < 0).all()
    assert rates[-1] < 1e-3
