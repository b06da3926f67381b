"""Formats the report of a compiled step, as text and as a row of a table."""

from noah_jax.compile.analysis import Report

_ROW = "{:<34} {:<11} {:>6} {:<4} {:>15} {:>8} {:>8} {:>9} {:>6}"
HEADER = _ROW.format(
    "model", "machine", "batch", "fits", "GiB of", "GFLOP", "Mcycles", "MiB sent", "s"
)


def describe(report: Report, smaller: Report | None) -> str:
    """Returns all lines of a report.

    Args:
      report: Report of the step.
      smaller: Report of a smaller batch that fits, if this one does not.
    """
    memory = report.memory
    each = report.batch_size / report.num_devices
    lines = [
        f"{report.model} in {report.dtype} on {report.topology}, {report.num_devices}"
        f" {report.device_kind} device(s): {report.batch_size} images a step, {each:g} a device",
        _line("fits" if report.fits else "DOES NOT FIT", _of_limit(report) + " a device"),
    ]
    parts = (
        ("  arguments", memory.arguments, " (the state and the batch)"),
        ("  temporaries", memory.temporaries, ""),
        ("  output", memory.output, " (besides the donated state)"),
        ("  program", memory.code, ""),
    )
    known = [_line(name, _size(size) + note) for name, size, note in parts if size is not None]
    lines += known or [_line("", "XLA gave up; its other figures are unknown")]
    if donation := report.donation:
        lines += [
            _line(
                "donation",
                f"{'honoured' if donation.honoured else 'NOT HONOURED'}: {donation.donated} of the"
                f" state's {donation.arrays} arrays, {_size(donation.bytes)}",
            )
        ]
    if report.flops is not None:
        accessed = "unknown" if report.bytes_accessed is None else _size(report.bytes_accessed)
        lines += [
            _line("step", f"{report.flops / 1e9:,.1f} GFLOP a device, memory traffic {accessed}")
        ]
    if report.estimated_cycles is not None:
        lines += [
            _line(
                "cycles",
                f"{report.estimated_cycles / 1e6:,.2f} million, of which the head's kernels"
                f" {(report.kernel_cycles or 0) / 1e6:,.2f}",
            )
        ]
    if report.collectives is not None:
        gradients, statistics = _size(report.parameter_bytes), _size(report.statistics_bytes)
        lines += [
            _line(
                "collectives",
                f"{sum(c.number for c in report.collectives)} (trainable parameters {gradients},"
                f" running statistics {statistics})",
            )
        ]
    for c in report.collectives or ():
        exchange = f"{c.number} x {c.kind} of {_size(c.bytes)} ({c.dtypes})"
        lines += [f"  {exchange} among {c.group_size} devices  {c.source}".rstrip()]
    lines += [_line("compiled in", f"{report.compile_seconds:.0f} s")]
    lines += [f"note: {note}" for note in report.notes]
    if not report.fits:
        lines += [_advice(smaller)]
    return "\n".join(lines)


def row(report: Report, smaller: Report | None) -> str:
    """Returns the row of a report; it ends with the smaller batch where this one does not fit."""
    known = report.collectives is not None
    sent = sum(c.total_bytes for c in report.collectives or ()) if known else None
    line = _ROW.format(
        report.model,
        report.topology,
        report.batch_size,
        "yes" if report.fits else "NO",
        f"{report.memory.needed / 2**30:.2f} of {report.memory.limit / 2**30:.2f}",
        _number(report.flops, 1e9),
        _number(report.estimated_cycles, 1e6),
        _number(sent, 2**20),
        f"{report.compile_seconds:.0f}",
    )
    return line if report.fits else f"{line}  {_advice(smaller)}"


def failed_row(model: str, topology: str, error: Exception) -> str:
    """Returns the row of a step that could not be compiled."""
    return f"{model:<34} {topology:<11} {' '.join(str(error).split())}"


def _advice(smaller: Report | None) -> str:
    if smaller is None:
        return "no smaller batch fits that divides into devices and groups; take more devices"
    return f"batch_size={smaller.batch_size} fits: {_of_limit(smaller)} a device"


def _of_limit(report: Report) -> str:
    return f"{_size(report.memory.needed)} of {_size(report.memory.limit)}"


def _line(name: str, value: str) -> str:
    return f"{name:<14}{value}"


def _number(value: float | None, unit: float) -> str:
    return "-" if value is None else f"{value / unit:,.1f}"


def _size(count: float) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:,.2f} {name}"
    return f"{count:,.0f} bytes"
