"""The cells of docs/tutorial.ipynb, which `python scripts/make_notebook.py` makes of this file.

A cell begins with `# %%`; a text cell, a comment, with `# %% [markdown]`.
"""
# ruff: noqa: E402

# %% [markdown]`, a comment.
# ruff: noqa: E402

# %% [markdown]
# # NOAH in your own network, from install to maps
#
# NOAH is a classification head. It gives every class its own attention over the positions of the
# last feature map, in place of average pooling and a linear layer. This notebook puts it on a small
# network and trains that on 10,000 images of Fashion-MNIST. Then it measures the accuracy and shows
# where each class looks. It takes about two minutes on a CPU with two cores. It uses a GPU if there
# is one, but what you see here was computed on a CPU.
#
# The notebook is made by `python scripts/make_notebook.py`, which also runs it.

# %% [markdown]
# ## Install
#
# In a clone of the repository there is nothing to change. Elsewhere, such as on Colab, put a clone
# there first and set `CLONE` to its folder. On a GPU the extra `cuda` is installed, else `train`.

# %%
import importlib.util
import shutil
import subprocess
import sys

CLONE = "."

if importlib.util.find_spec("noah_jax") is None:
    extra = "cuda" if shutil.which("nvidia-smi") else "train"
    command = [sys.executable, "-m", "pip", "install", "--quiet", f"{CLONE}[{extra}]"]
    subprocess.run(command, check=True)

# %% [markdown]
# ## The images
#
# They come with the package: 10,000 to train on and 2,000 to test on, grey, 28 x 28 pixels.

# %%
import io

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import noah_jax
from noah_jax.data.sources import open_sources

train_source, test_source = open_sources("fashion_mnist_sample")
class_names = test_source.class_names


def load(source):
    """Returns the images as `[images, 28, 28, 1]`, about normally distributed, and the labels."""
    pairs = [source[index] for index in range(len(source))]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(png)).convert("L")) for png, _ in pairs])
    images = (pixels[..., None] / 255 - 0.286) / 0.353
    return images.astype(np.float32), np.array([label for _, label in pairs])


train_images, train_labels = load(train_source)
test_images, test_labels = load(test_source)
print(train_images.shape, test_images.shape, "on", jax.devices()[0].platform)

# %% [markdown]
# ## A network of your own
#
# Three convolutions leave a map of 14 x 14 positions with 64 channels. A usual network would now
# average over the positions and apply a linear layer. Here `noah_jax.NOAH` takes the whole map.
# `head_num` is the number of blocks. `key_ratio` is the fraction of the channels that says where to
# look; the other channels say what is seen there.

# %%
from flax import nnx


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Conv(1, 32, (3, 3), strides=2, rngs=rngs)
        self.conv1 = nnx.Conv(32, 64, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(64, 64, (3, 3), rngs=rngs)
        self.norms = nnx.List([nnx.GroupNorm(n, num_groups=8, rngs=rngs) for n in (32, 64, 64)])
        self.head = noah_jax.NOAH(64, num_classes=10, head_num=4, key_ratio=0.5, rngs=rngs)

    def features(self, images):
        """`[batch, 28, 28, 1]` -> `[batch, 14, 14, 64]`."""
        x = nnx.relu(self.norms[0](self.stem(images)))
        x = nnx.relu(self.norms[1](self.conv1(x)))
        return x + nnx.relu(self.norms[2](self.conv2(x)))

    def __call__(self, images, *, train):
        return self.head(self.features(images), train=train)


net = Net(nnx.Rngs(0))
counts = [sum(x.size for x in jax.tree.leaves(nnx.state(part))) for part in (net, net.head)]
print(f"{counts[0]:,} parameters, {counts[1]:,} in NOAH")

# %% [markdown]
# ## Train
#
# The head has no loss and no training loop of its own. Any optimizer does.

# %%
import optax

EPOCHS, BATCH = 4, 100
steps = EPOCHS * len(train_images) // BATCH
schedule = optax.cosine_onecycle_schedule(steps, 8e-3)
optimizer = nnx.Optimizer(net, optax.adamw(schedule, weight_decay=0.05), wrt=nnx.Param)


@nnx.jit
def step(net, optimizer, images, labels):
    def loss_of(net):
        logits = net(images, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, gradient = nnx.value_and_grad(loss_of)(net)
    optimizer.update(net, gradient)
    return loss


@nnx.jit
def predict(net, images):
    return net(images, train=False)


def accuracy():
    parts = np.split(test_images, len(test_images) // BATCH)
    logits = np.concatenate([predict(net, part) for part in parts])
    return 100 * (logits.argmax(1) == test_labels).mean(), logits


rng = np.random.default_rng(0)
for epoch in range(1, EPOCHS + 1):
    order = rng.permutation(len(train_images)).reshape(-1, BATCH)
    losses = [step(net, optimizer, train_images[rows], train_labels[rows]) for rows in order]
    print(f"epoch {epoch}: loss {np.mean(losses):.3f}, test accuracy {accuracy()[0]:.1f} %")

# %% [markdown]
# ## What adds to a logit
#
# For each class and each position, the head multiplies attention by value. These contributions and
# the bias add up to the logit. They are the computation itself, not an estimate of it.

# %%
reached, logits = accuracy()
right = logits.argmax(1) == test_labels
shown_classes = ["Sneaker", "Bag", "Dress"]
# The first test image of each of these classes that the network gets right.
chosen = [
    np.flatnonzero(right & (test_labels == class_names.index(name)))[0] for name in shown_classes
]
images = test_images[np.array(chosen)]
# For each image its own class, and the next most likely one.
classes = np.argsort(-logits[np.array(chosen)], axis=1)[:, :2]

parts = net.head.contributions(net.features(images), jnp.array(classes))
print("contributions:", parts.contributions.shape, "[images, blocks, classes, height, width]")
sums = parts.contributions.sum((1, 3, 4)) + parts.bias.sum(1)
expected = np.take_along_axis(logits[np.array(chosen)], classes, axis=1)
print(f"the sums are within {np.abs(sums - expected).max():.0e} of the logits")
assert np.allclose(sums, expected, atol=1e-3)

# %% [markdown]
# ## Maps
#
# Red adds to the logit of the class above the picture, blue subtracts from it. On the right is the
# attention of the image's own class, which sums to one. Each row has one scale for its
# contributions.

# %%
import matplotlib.pyplot as plt

contributions = parts.contributions.sum(1)  # of all blocks
attention = parts.attention.mean(1)
figure, axes = plt.subplots(len(images), 4, figsize=(9, 2.4 * len(images)), layout="constrained")
area = {"extent": (0, 28, 28, 0), "interpolation": "bilinear"}
for row, image, own, index in zip(axes, images, range(len(images)), classes, strict=True):
    largest = np.abs(contributions[own]).max()
    for axis in row:
        axis.imshow(image[..., 0], cmap="gray", extent=area["extent"])
        axis.axis("off")
    row[0].set_title("image")
    for axis, values, class_index in zip(row[1:3], contributions[own], index, strict=True):
        probability = jax.nn.softmax(logits[chosen[own]])[class_index]
        scale = {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest, "alpha": 0.6}
        drawn = axis.imshow(values, **area, **scale)
        axis.set_title(f"{class_names[class_index]}, {100 * probability:.1f} %")
    figure.colorbar(drawn, ax=row[1:3], shrink=0.8)
    drawn = row[3].imshow(attention[own, 0], cmap="viridis", alpha=0.6, vmin=0, **area)
    row[3].set_title("attention")
    figure.colorbar(drawn, ax=row[3], shrink=0.8)
plt.show()

# %% [markdown]
# ## On from here
#
# - `noah_jax.create_model("noah_resnet50")` is one of the paper's backbones with the head.
# - `noah-jax train` trains with checkpoints, on many devices and hosts, from a configuration.
# - `noah-jax explain` makes such maps, as pictures and as a page, of any trained model.
# - `python scripts/tutorial.py` walks through these programs in about three minutes.
