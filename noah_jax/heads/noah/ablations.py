"""NOAH without its attention, or with its blocks merged otherwise: the ablations of the head.

The paper's head has `attention="softmax"` and `merge="sum"`, which `poca` computes. Everything else
is computed here, by `poca` too wherever there is a softmax.
"""

import jax
import jax.numpy as jnp

from noah_jax.heads.evidence import Contributions
from noah_jax.heads.noah.operands import ChannelSplit, Projection, split_features
from noah_jax.heads.noah.poca import poca
from noah_jax.heads.noah.reference import uniform_block_logits
from noah_jax.nn.dropout import Key, Seeds, fold_in, seeds_of
from noah_jax.nn.mesh_axes import on_auto_axes
from noah_jax.nn.ratio import ratio

ATTENTIONS = ("softmax", "uniform")
MERGES = ("sum", "mean", "max")


def merge_logits(blocks: jax.Array, merge: str) -> jax.Array:
    """Merges the logits of the blocks, `[batch, head_num, classes]`, to `[batch, classes]`."""
    if merge == "max":
        return blocks.max(1)
    return blocks.sum(1) if merge == "sum" else blocks.mean(1)


def merge_contributions(parts: Contributions, merge: str) -> Contributions:
    """Returns what the positions of each block add to the merged logits.

    Of the blocks whose maximum is taken, only the largest adds anything.

    Args:
      parts: What they add to their own block's logit, and its bias.
      merge: One of `MERGES`.
    """
    attention, contributions, bias = parts
    head_num, spatial = bias.shape[1], tuple(range(3, contributions.ndim))
    share = jnp.ones_like(bias)
    if merge == "mean":
        share = share / head_num
    elif merge == "max":
        largest = (contributions.sum(spatial) + bias).argmax(1)  # [batch, m]
        share = jnp.moveaxis(jax.nn.one_hot(largest, head_num, dtype=bias.dtype), -1, 1)
    expanded = share.reshape(*share.shape, *(1 for _ in spatial))
    return Contributions(attention, contributions * expanded, bias * share)


def uniform_logits(
    features: jax.Array,
    value: Projection,
    split: ChannelSplit,
    *,
    merge: str,
    dropout: float,
    dropout_key: Key | None,
) -> jax.Array:
    """Computes the logits if every position weighs the same.

    Without dropout that is a linear layer of each block on the mean of its value channels.

    Args:
      features: `[batch, *spatial, channels]`.
      value: Weights of the value.
      split: How the channels are shared out.
      merge: One of `MERGES`.
      dropout: Dropout rate on the values.
      dropout_key: Random key of the dropout; `None` switches it off.
    """
    seeds = None
    if dropout and dropout_key is not None:
        seeds = seeds_of(dropout_key, features.shape[0])

    def compute(features: jax.Array, value: Projection, seeds: Seeds | None) -> jax.Array:
        blocks = uniform_block_logits(split, features, value, dropout=dropout, seeds=seeds)
        return merge_logits(blocks, merge)

    return on_auto_axes(compute, features, value, seeds)


def merged_logits(
    features: jax.Array,
    query: Projection,
    value: Projection,
    split: ChannelSplit,
    *,
    merge: str,
    dropout: float,
    dropout_key: Key | None,
    implementation: str,
    spatial_major: bool,
) -> jax.Array:
    """Computes the logits by `poca` and merges the blocks by their mean or their maximum.

    For the maximum every block is a head of one block, on its own channels.

    Args:
      features: `[batch, *spatial, channels]`.
      query: Weights of the query.
      value: Weights of the value.
      split: How the channels are shared out.
      merge: "mean" or "max".
      dropout: Dropout rate on the values.
      dropout_key: Random key of the dropout; `None` switches it off.
      implementation: See `noah_jax.poca`.
      spatial_major: See `noah_jax.poca`.
    """
    head_num = value.kernel.shape[0]

    def logits(
        features: jax.Array,
        query: Projection,
        value: Projection,
        split: ChannelSplit,
        key: Key | None,
    ) -> jax.Array:
        return poca(
            features,
            query,
            value,
            dropout=dropout,
            dropout_key=key,
            implementation=implementation,
            spatial_major=spatial_major,
            **split._asdict(),
        )

    if merge == "mean":
        return logits(features, query, value, split, dropout_key) / head_num
    blocks = []
    for block in range(head_num):
        part, part_split = _block(features, split, head_num, block)
        own_query, own_value = (
            Projection(*(x[block : block + 1] for x in weights)) for weights in (query, value)
        )
        key = None if dropout_key is None else fold_in(dropout_key, block)
        blocks.append(logits(part, own_query, own_value, part_split, key))
    return merge_logits(jnp.stack(blocks, 1), merge)


def _block(
    features: jax.Array, split: ChannelSplit, head_num: int, block: int
) -> tuple[jax.Array, ChannelSplit]:
    """Returns what one block sees of the features, and how it shares these channels out."""
    if not split.head_split:
        return features, split
    parts = [
        jnp.split(part, head_num, -1)[block] for part in split_features(split, features, head_num)
    ]
    spatial = features.shape[:-1]
    if not split.kv_split:
        return parts[0].reshape(*spatial, -1), split
    query_channels, value_channels = (part.shape[-1] for part in parts)
    channels = query_channels + value_channels
    own = jnp.concatenate(parts, -1).reshape(*spatial, channels)
    return own, split._replace(key_ratio=ratio(channels, query_channels))
