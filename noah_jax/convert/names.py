"""The conversion tables: for every family, where each PyTorch tensor lives here."""

from noah_jax.convert.table import Row


def _batch_norm(torch: str, ours: str) -> list[Row]:
    return [
        Row(f"{torch}.weight", f"params/{ours}/scale"),
        Row(f"{torch}.bias", f"params/{ours}/bias"),
        Row(f"{torch}.running_mean", f"stats/{ours}/mean"),
        Row(f"{torch}.running_var", f"stats/{ours}/var"),
        Row(f"{torch}.num_batches_tracked", None),
    ]


def _linear(torch: str, ours: str) -> list[Row]:
    return [
        Row(f"{torch}.weight", f"params/{ours}/kernel", "linear"),
        Row(f"{torch}.bias", f"params/{ours}/bias"),
    ]


def noah_table(torch: str = "head") -> list[Row]:
    """Rows of the NOAH head, which PyTorch knows by the prefix `torch`."""
    rows = []
    for part in ("query", "value"):
        rows.append(Row(f"{torch}.{part}.weight", f"params/head/{part}/kernel", "poca_kernel"))
        rows.append(Row(f"{torch}.{part}.bias", f"params/head/{part}/bias", "poca_bias"))
    return rows


_RESNET = [
    Row("conv1.weight", "params/conv1/kernel", "conv"),
    *_batch_norm("bn1", "bn1"),
    Row("layer{s}.{b}.conv{c}.weight", "params/layer{s}/{b}/conv{c}/kernel", "conv"),
    *_batch_norm("layer{s}.{b}.bn{c}", "layer{s}/{b}/bn{c}"),
    Row("layer{s}.{b}.downsample.0.weight", "params/layer{s}/{b}/downsample/conv/kernel", "conv"),
    *_batch_norm("layer{s}.{b}.downsample.1", "layer{s}/{b}/downsample/bn"),
    *_linear("head.2", "head/linear"),
    *noah_table(),
]

TABLES: dict[str, list[Row]] = {"resnet": _RESNET}
