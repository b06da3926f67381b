"""Every registered model: counts, published sizes, PyTorch's keys, what weight decay spares.

Creating a model of full size takes up to a second, so one serves all tests of its name.
"""

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from noah_jax import create_model, list_models
from noah_jax.models import get_architecture, get_family
from noah_jax.pytorch.mapping import to_jax
from noah_jax.train.optimizer import decay_mask
from tests.models.torch_rules import golden_models, torch_keys, undecayed_keys

# Exact parameter counts of the registered models that the original does not have. Those with a
# linear head are timm's too.
OWN_COUNTS: dict[str, int] = {
    "vit_small_patch14_dinov2": 22_441_192,
    "vit_base_patch14_dinov2": 87_348_712,
    "vit_large_patch14_dinov2": 305_392_616,
    "vit_small_patch14_reg4_dinov2": 22_442_344,
    "vit_base_patch14_reg4_dinov2": 87_351_016,
    "vit_large_patch14_reg4_dinov2": 305_395_688,
    "noah_vit_small_patch14_dinov2": 22_448_192,
    "noah_vit_base_patch14_dinov2": 87_355_712,
    "noah_vit_large_patch14_dinov2": 305_399_616,
    "noah_vit_small_patch14_reg4_dinov2": 22_449_344,
    "noah_vit_base_patch14_reg4_dinov2": 87_358_016,
    "noah_vit_large_patch14_reg4_dinov2": 305_402_688,
    "vit_large_patch16_224": 304_326_632,  # timm's numbers
    "vit_large_patch16_384": 304_715_752,
    "noah_vit_large_patch16_224": 304_331_584,
    "noah_vit_large_patch16_384": 304_720_704,
}


@pytest.fixture(scope="module", params=list_models())
def model(request):
    return create_model(request.param)


def test_parameter_count_is_exact(model):
    # A registered name without a count fails here.
    counts = OWN_COUNTS | {name: spec["num_params"] for name, spec in golden_models().items()}
    assert model.num_params == counts[model.name]


def test_it_is_made_for_what_its_architecture_says(model):
    published = get_architecture(model.name)
    assert model.num_classes == published.num_classes
    assert model.image_size == published.image_size
    assert (model.mean, model.std) == (published.mean, published.std)
    convolutional = get_family(model.name).name not in ("deit", "dinov2", "pvt", "mlp")
    assert bool(model.abstract()[1]) == convolutional  # statistics are BatchNorm's


def test_the_table_of_its_family_covers_every_key(model):
    if model.name not in golden_models():
        pytest.skip("the original has no such model")
    # Shapes only: broadcast zeros take no memory.
    shapes = golden_models()[model.name]["state"]
    state = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    if sum(array.size for array in state.values()) < 3e7:
        params, stats = model.abstract()
        to_jax(state, get_family(model.name).table, {"params": params, "stats": stats})


def test_weight_decay_spares_what_its_recipe_does(model):
    if model.name not in golden_models():
        pytest.skip("the original has no such model")
    recipe = model.architecture
    params, _ = model.abstract()
    mask = decay_mask(params, decay_all=recipe.decay_all, no_decay=recipe.no_decay)
    keys = torch_keys(model.name, params)
    spared = {keys[path] for path, decayed in flatten_dict(mask, sep="/").items() if not decayed}
    assert spared == undecayed_keys()[model.name]
