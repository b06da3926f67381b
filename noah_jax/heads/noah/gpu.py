"""Computes the head on NVIDIA GPUs by the kernels of `gpu_kernels.py`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from noah_jax.heads.noah import gpu_kernels, pallas_triton
from noah_jax.heads.noah.chunked import Residuals, pairwise, plan_of_blocks
from noah_jax.heads.noah.gpu_blocks import GpuPlan
from noah_jax.heads.noah.kernel_or_plain import kernel_or_plain
from noah_jax.heads.noah.kernels import (
    Pair,
    append_bias_channel,
    cast,
    cast_like,
    ceil_div,
    differentiable,
    differentiated_once,
    split_over_devices,
)
from noah_jax.heads.noah.operands import Operands, PocaInputs
from noah_jax.nn.dropout import Seeds
from noah_jax.nn.dtypes import wide_einsum


def gpu_poca(plan: GpuPlan, inputs: PocaInputs) -> jax.Array:
    """Computes the logits as `reference_poca` does, by the plan of `gpu_plan`."""
    return split_over_devices(_poca_on_device, plan, inputs.operands(), inputs.seeds)


def _poca_on_device(plan: GpuPlan, operands: Operands, seeds: Seeds | None) -> jax.Array:
    bias = operands.value_bias
    if seeds is None:
        seed_words = jnp.zeros((2,), jnp.int32)
    else:
        operands = append_bias_channel(operands)
        seed_words = jnp.concatenate([seeds.words, seeds.images])
    query_part, value_part, query_kernel, value_kernel, _ = operands
    logits = _poca(plan, Pair(query_part, value_part), Pair(query_kernel, value_kernel), seed_words)
    return logits if plan.dropout else logits + bias.sum(0)


def _forward(
    plan: GpuPlan, parts: Pair, kernels: Pair, seeds: jax.Array
) -> tuple[jax.Array, tuple]:
    """Computes `[batch, classes]` of parts `[channel groups, batch, positions, channels]`."""
    residuals = _compute(plan, _forward_by_kernel, _forward_plainly, parts, kernels, seeds)
    return residuals.out.sum(1), (parts, kernels, seeds, residuals)


def _backward(plan: GpuPlan, saved: tuple, cotangent: jax.Array) -> tuple[Pair, Pair, None]:
    if plan.blocks.products:
        d_parts, d_kernels = _compute(plan, _by_products, _both_plainly, saved, cotangent)
        return d_parts, d_kernels, None
    d_parts = _compute(plan, _features_by_kernel, _features_plainly, saved, cotangent)
    d_kernels = _compute(plan, _weights_by_kernel, _weights_plainly, saved, cotangent)
    return d_parts, d_kernels, None


_poca = differentiable(_forward, _backward)


@functools.partial(differentiated_once, static=(0, 1, 2))
def _compute(plan: GpuPlan, by_kernel: Callable, plainly: Callable, *arguments: Any) -> Any:
    by_kernel, plainly = (functools.partial(f, plan) for f in (by_kernel, plainly))
    if plan.interpret:
        return by_kernel(*arguments)
    return kernel_or_plain(by_kernel, plainly, *arguments)


def _plain_logits(plan: GpuPlan, parts: Pair, kernels: Pair, seeds: jax.Array) -> jax.Array:
    by_chunks = plan_of_blocks(kernels.query.shape[2], plan.dropout)
    masks = Seeds(seeds[:2], seeds[2:]) if plan.dropout else None
    return pairwise(by_chunks, tuple(parts), tuple(kernels), masks)


def _forward_plainly(plan: GpuPlan, parts: Pair, kernels: Pair, seeds: jax.Array) -> Residuals:
    """Returns residuals of which only the outputs' sum over the blocks, the logits, is used."""
    logits = _plain_logits(plan, parts, kernels, seeds)
    out = jnp.zeros((logits.shape[0], kernels.query.shape[0], logits.shape[1]), logits.dtype)
    return Residuals(out, out.at[:, 0].set(logits))


def _features_plainly(plan: GpuPlan, saved: tuple, cotangent: jax.Array) -> Pair:
    parts, kernels, seeds, _ = saved
    _, pull = jax.vjp(lambda parts: _plain_logits(plan, parts, kernels, seeds), parts)
    return pull(cotangent)[0]


def _weights_plainly(plan: GpuPlan, saved: tuple, cotangent: jax.Array) -> Pair:
    parts, kernels, seeds, _ = saved
    _, pull = jax.vjp(lambda kernels: _plain_logits(plan, parts, kernels, seeds), kernels)
    return pull(cotangent)[0]


def _both_plainly(plan: GpuPlan, saved: tuple, cotangent: jax.Array) -> tuple[Pair, Pair]:
    return _features_plainly(plan, saved, cotangent), _weights_plainly(plan, saved, cotangent)


def _forward_by_kernel(plan: GpuPlan, parts: Pair, kernels: Pair, seeds: jax.Array) -> Residuals:
    """Runs the forward kernel: residuals of every block, each `[batch, head_num, classes]`."""
    batch = parts.query.shape[1]
    head_num, _, classes = kernels.query.shape
    of_block = jax.ShapeDtypeStruct((batch, head_num, classes), jnp.float32)
    return _call(
        plan,
        gpu_kernels.forward_kernel,
        "noah_head_forward",
        (
            ceil_div(classes, plan.blocks.classes),
            head_num,
            ceil_div(batch, plan.blocks.forward_images),
        ),
        (seeds, parts, cast(kernels, parts.query.dtype)),
        Residuals(of_block, of_block),
    )


def _features_by_kernel(plan: GpuPlan, saved: tuple, cotangent: jax.Array) -> Pair:
    """Runs the backward kernel for the features: gradients of both parts."""
    parts, kernels, seeds, residuals = saved
    channel_groups, batch, positions, _ = parts.query.shape
    return _call(
        plan,
        gpu_kernels.features_kernel,
        "noah_head_backward_features",
        (ceil_div(positions, plan.blocks.outer_positions), channel_groups, batch),
        (seeds, parts, cast(kernels, parts.query.dtype), residuals, cotangent),
        parts.map(lambda part: jax.ShapeDtypeStruct(part.shape, part.dtype)),
    )


def _weights_by_kernel(plan: GpuPlan, saved: tuple, cotangent: jax.Array) -> Pair:
    """Runs the backward kernel for the weights: gradients of both kernels."""
    parts, kernels, seeds, residuals = saved
    head_num, _, classes = kernels.query.shape
    chunks = ceil_div(parts.query.shape[1], plan.blocks.images)
    sums = _call(
        plan,
        gpu_kernels.weights_kernel,
        "noah_head_backward_weights",
        (ceil_div(classes, plan.blocks.classes), head_num, chunks),
        (seeds, parts, cast(kernels, parts.query.dtype), residuals, cotangent),
        kernels.map(lambda kernel: jax.ShapeDtypeStruct((chunks, *kernel.shape), jnp.float32)),
    )
    return cast_like(sums.map(lambda x: x.sum(0)), kernels)


def _by_products(plan: GpuPlan, saved: tuple, cotangent: jax.Array) -> tuple[Pair, Pair]:
    """Computes the gradients of parts and kernels from those of scores and values.

    The latter exist for one block of the head at a time.
    """
    parts, kernels, _, _ = saved
    blocks_of_group = kernels.query.shape[0] // parts.query.shape[0]
    d_parts: list[Pair] = []
    d_kernels: list[Pair] = []
    for block in range(kernels.query.shape[0]):
        # The barriers keep blocks one after another, so that their gradients share memory.
        saved, d_parts = jax.lax.optimization_barrier((saved, d_parts))
        group, is_another = divmod(block, blocks_of_group)
        of_group = saved[0].map(lambda part, g=group: part[g])
        of_block = saved[1].map(lambda kernel, n=block: kernel[n])
        gradients = _gradients_by_kernel(plan, block, saved, cotangent)
        d_kernels.append(of_group.map(functools.partial(wide_einsum, "bld,blk->dk"), gradients))
        d_part = gradients.map(functools.partial(wide_einsum, "blk,dk->bld"), of_block)
        if is_another:
            d_part = d_parts.pop().map(jnp.add, d_part)
        if block % blocks_of_group == blocks_of_group - 1:
            d_part = cast_like(d_part, parts)
        d_parts.append(d_part)
    return cast_like(_stack(d_parts), parts), cast_like(_stack(d_kernels), kernels)


def _stack(pairs: list[Pair]) -> Pair:
    return Pair(*(jnp.stack(arrays) for arrays in zip(*pairs, strict=True)))


def _gradients_by_kernel(plan: GpuPlan, block: int, saved: tuple, cotangent: jax.Array) -> Pair:
    """Runs the kernel that writes the gradients of one block's scores and values."""
    parts, kernels, seeds, residuals = saved
    _, batch, positions, _ = parts.query.shape
    classes = kernels.query.shape[2]
    written = jax.ShapeDtypeStruct((batch, positions, classes), parts.query.dtype)
    return _call(
        plan,
        functools.partial(_with_block, block),
        "noah_head_backward_gradients",
        (ceil_div(classes, plan.blocks.classes), ceil_div(batch, plan.blocks.forward_images), 1),
        (seeds, parts, cast(kernels, parts.query.dtype), residuals, cotangent),
        Pair(written, written),
    )


def _with_block(block: int, plan: GpuPlan, *refs: Any) -> None:
    gpu_kernels.gradients_kernel(plan, block, *refs)


def _call(
    plan: GpuPlan, kernel: Any, name: str, grid: tuple[int, ...], inputs: tuple, out_shape: Any
) -> Any:
    """Runs a kernel on whole arrays; each program takes what its place in the grid needs."""
    return pallas_triton.call(
        functools.partial(kernel, plan),
        *inputs,
        name=name,
        grid=grid,
        out_shape=out_shape,
        warps=plan.blocks.warps,
        stages=plan.blocks.stages,
        interpret=plan.interpret,
    )
