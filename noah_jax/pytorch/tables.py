"""The conversion tables: for every family, where each PyTorch tensor lives here."""

from noah_jax.pytorch.mapping import Row


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


def _conv_norm(conv: str, norm: str, ours: str) -> list[Row]:
    kernel = Row(f"{conv}.weight", f"params/{ours}/conv/kernel", "conv")
    return [kernel, *_batch_norm(norm, f"{ours}/bn")]


def _layer_norm(torch: str, ours: str) -> list[Row]:
    return [
        Row(f"{torch}.weight", f"params/{ours}/scale"),
        Row(f"{torch}.bias", f"params/{ours}/bias"),
    ]


def _conv(torch: str, ours: str) -> list[Row]:
    return [
        Row(f"{torch}.weight", f"params/{ours}/kernel", "conv"),
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

_MOBILENETV2 = [
    *_conv_norm("features.{i}.0", "features.{i}.1", "layers/{i}"),
    # The first block, which does not expand, before the general rows that also match it.
    *_conv_norm("features.1.conv.0.0", "features.1.conv.0.1", "layers/1/depthwise"),
    *_conv_norm("features.1.conv.1", "features.1.conv.2", "layers/1/project"),
    *_conv_norm("features.{i}.conv.0.0", "features.{i}.conv.0.1", "layers/{i}/expand"),
    *_conv_norm("features.{i}.conv.1.0", "features.{i}.conv.1.1", "layers/{i}/depthwise"),
    *_conv_norm("features.{i}.conv.2", "features.{i}.conv.3", "layers/{i}/project"),
    *_linear("head.2", "head/linear"),
    *noah_table(),
]

_MOBILENETV3 = [
    *_conv_norm("features.{i}.0", "features.{i}.1", "layers/{i}"),
    *_conv_norm("features.{i}.conv.0", "features.{i}.conv.1", "layers/{i}/expand"),
    *_conv_norm("features.{i}.conv.3", "features.{i}.conv.4", "layers/{i}/depthwise"),
    Row("features.{i}.conv.5.fc.0.weight", "params/layers/{i}/se/reduce/kernel", "linear"),
    Row("features.{i}.conv.5.fc.2.weight", "params/layers/{i}/se/expand/kernel", "linear"),
    *_conv_norm("features.{i}.conv.7", "features.{i}.conv.8", "layers/{i}/project"),
    # The last convolution: one further with a linear head, after the pooling.
    Row("features.{i}.weight", "params/layers/{i}/kernel", "conv"),
    Row("features.{i}.bias", "params/layers/{i}/bias"),
    *_linear("classifier.1", "head/linear"),
    *noah_table("classifier"),
]

_BRANCH = "stage{s}.{b}.branch"
_SHUFFLENETV2 = [
    *_conv_norm("conv{c}.0", "conv{c}.1", "conv{c}"),
    *_conv_norm(f"{_BRANCH}1.0", f"{_BRANCH}1.1", "stage{s}/{b}/branch1/0"),
    *_conv_norm(f"{_BRANCH}1.2", f"{_BRANCH}1.3", "stage{s}/{b}/branch1/1"),
    *_conv_norm(f"{_BRANCH}2.0", f"{_BRANCH}2.1", "stage{s}/{b}/branch2/0"),
    *_conv_norm(f"{_BRANCH}2.3", f"{_BRANCH}2.4", "stage{s}/{b}/branch2/1"),
    *_conv_norm(f"{_BRANCH}2.5", f"{_BRANCH}2.6", "stage{s}/{b}/branch2/2"),
    *_linear("head.2", "head/linear"),
    *noah_table(),
]


_DEIT = [
    Row("cls_token", "params/cls_token"),
    Row("pos_embed", "params/pos_embed"),
    *_conv("patch_embed.proj", "patch_embed/proj"),
    *_layer_norm("blocks.{b}.norm{n}", "blocks/{b}/norm{n}"),
    *_linear("blocks.{b}.{part}.{layer}", "blocks/{b}/{part}/{layer}"),
    *_layer_norm("norm", "norm"),
    *_linear("pre_logits.fc", "pre_logits"),
    *_linear("head", "head/linear"),
    *noah_table(),
]

_PVT = [
    Row("cls_token", "params/cls_token"),
    Row("pos_embed{s}", "params/pos_embed{s}"),
    *_conv("patch_embed{s}.proj", "patch_embed{s}/proj"),
    *_layer_norm("patch_embed{s}.norm", "patch_embed{s}/norm"),
    *_layer_norm("block{s}.{b}.norm{n}", "block{s}/{b}/norm{n}"),
    *_conv("block{s}.{b}.attn.sr", "block{s}/{b}/attn/sr"),
    *_layer_norm("block{s}.{b}.attn.norm", "block{s}/{b}/attn/norm"),
    *_linear("block{s}.{b}.{part}.{layer}", "block{s}/{b}/{part}/{layer}"),
    *_layer_norm("norm", "norm"),
    *_linear("head", "head/linear"),
    *noah_table(),
]

_MLP = [
    *_conv("stem.proj", "stem/proj"),
    # ResMLP: its affines stand in place of the norms.
    Row("blocks.{b}.ls{n}", "params/blocks/{b}/ls{n}"),
    Row("blocks.{b}.norm{n}.alpha", "params/blocks/{b}/norm{n}/alpha"),
    Row("blocks.{b}.norm{n}.beta", "params/blocks/{b}/norm{n}/beta"),
    Row("norm.alpha", "params/norm/alpha"),
    Row("norm.beta", "params/norm/beta"),
    *_linear("blocks.{b}.linear_tokens", "blocks/{b}/linear_tokens"),
    # gMLP.
    *_layer_norm("blocks.{b}.norm", "blocks/{b}/norm"),
    *_layer_norm("blocks.{b}.mlp_channels.gate.norm", "blocks/{b}/mlp_channels/gate/norm"),
    *_linear("blocks.{b}.mlp_channels.gate.proj", "blocks/{b}/mlp_channels/gate/proj"),
    # Mixer, gMixer and, in the last linears, all.
    *_layer_norm("blocks.{b}.norm{n}", "blocks/{b}/norm{n}"),
    *_linear("blocks.{b}.mlp_{axis}.fc{n}", "blocks/{b}/mlp_{axis}/fc{n}"),
    *_layer_norm("norm", "norm"),
    *_linear("head", "head/linear"),
    *noah_table(),
]

TABLES: dict[str, list[Row]] = {
    "resnet": _RESNET,
    "mobilenetv2": _MOBILENETV2,
    "mobilenetv3": _MOBILENETV3,
    "shufflenetv2": _SHUFFLENETV2,
    "deit": _DEIT,
    "pvt": _PVT,
    "mlp": _MLP,
}
