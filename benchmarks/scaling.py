"""Owns how the speed of training scales: with context, batch, depth, width and vocabulary.

One axis at a time around a base model of GPT-2's form (norm before, GELU, biases, tied embeddings)
of 4 layers, 4 heads, 256 dimensions and 4,096 tokens, on 8 texts of 256 random tokens. Where the
context changes, a step stays at 2,048 tokens, or is one text if that is longer; the batch changes
at a context of 64; the width changes in heads of 64. Each point is a process of its own, so that
its peak memory is known, and waits while another has its turn; every round gives each point of an
axis a turn and measures the machine's own SGEMM rate before it. `--plots` needs Matplotlib.
"""

import argparse
import json
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from training import PRECISIONS, Shape, System, serve_rustgpt

TOKENS = 2048  # of a step
TURN = 3e10  # operations of a turn, if a step has fewer: about a third of a second
WARM_UP = 2  # rounds that do not count
BASE = Shape(TOKENS // 256, 256, n_layers=4, n_heads=4, dim=256, vocab_size=4096, steps=1)


def shape(**changes: int) -> Shape:
    """Return the base changed, with as many steps as fill a turn."""
    changed = replace(BASE, **changes)
    operations = changed.batch * changed.context * changed.flops_per_token
    return replace(changed, steps=max(1, round(TURN / operations)))


# What changes, by the name of the axis.
FIELDS = {
    "context": "context", "batch": "batch", "depth": "n_layers", "width": "dim",
    "vocabulary": "vocab_size",
}  # fmt: skip
UNITS = {
    "context": "context (tokens)", "batch": "batch (texts of 64 tokens)",
    "depth": "depth (layers)", "width": "width (dimensions)", "vocabulary": "vocabulary (tokens)",
}  # fmt: skip
AXES = {
    "context": [
        shape(context=n, batch=max(1, TOKENS // n)) for n in (64, 128, 256, 512, 1024, 2048, 4096)
    ],
    "batch": [shape(batch=n, context=64) for n in (1, 2, 4, 8, 16, 32, 64)],
    "depth": [shape(n_layers=n) for n in (1, 2, 4, 8, 16)],
    "width": [shape(dim=n, n_heads=n // 64) for n in (64, 128, 256, 512, 1024, 2048)],
    "vocabulary": [shape(vocab_size=n) for n in (512, 2048, 8192, 32768, 50304)],
}


def measure(axis: str, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Give each point of an axis its turns; return a row of results for each."""
    from rustgpt.backend import single_threaded_blas
    from rustgpt.benchmark import Limits
    from rustgpt.profiler import FLOPS

    points = [json.dumps(asdict(point)) for point in AXES[axis]]
    running = [System("rustgpt", point, threads, __file__) for point in points]
    limits = Limits(threads, "float32")
    for round_ in range(WARM_UP + rounds):
        for system in running:
            with single_threaded_blas():
                limits.measure()
            system.turn(keep=round_ >= WARM_UP)
    for system in running:
        system.close()
    return [
        row(axis, point, system, limits.of_all(FLOPS), threads)
        for point, system in zip(AXES[axis], running, strict=True)
    ]


def row(axis: str, point: Shape, system: System, limit: float, threads: int) -> dict[str, Any]:
    """Return what the turns of a point came to; `limit` is SGEMM's GFLOP/s."""
    pace = statistics.median(system.paces)
    gflops = pace * point.flops_per_token / 1e9
    return {
        "axis": axis, "value": getattr(point, FIELDS[axis]), "threads": threads,
        **asdict(point), "parameters": point.n_parameters,
        "mflop_a_token": point.flops_per_token / 1e6, "tokens_per_second": pace,
        "slow": min(system.paces), "fast": max(system.paces), "gflops": gflops,
        "sgemm_gflops": limit, "share_of_sgemm": gflops / limit, "memory_mb": system.memory,
    }  # fmt: skip


def table(axis: str, rows: list[dict[str, Any]]) -> str:
    """Return the rows of an axis as a table in Markdown."""
    lines = [
        f"| {axis} | batch x context | parameters | MFLOP a token | tokens/s | slowest-fastest "
        "| GFLOP/s | share of SGEMM | peak memory |",
        "|---" * 9 + "|",
    ]
    lines += [
        f"| {r['value']:,} | {r['batch']} x {r['context']} | {r['parameters'] / 1e6:.2f} M "
        f"| {r['mflop_a_token']:.1f} | {r['tokens_per_second']:,.0f} "
        f"| {r['slow']:,.0f}-{r['fast']:,.0f} | {r['gflops']:.0f} "
        f"| {r['share_of_sgemm']:.0%} | {r['memory_mb']:,.0f} MB |"
        for r in rows
    ]
    return "\n".join(lines)


def short(value: int) -> str:
    return f"{value / 1000:.0f}k" if value > 4096 else f"{value}"


def plot(axis: str, rows: list[dict[str, Any]], folder: Path) -> None:
    """Draw an axis: tokens per second and share of SGEMM."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": axis, "font.size": 9})
    from matplotlib import pyplot

    values = [r["value"] for r in rows]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(7.2, 2.7), layout="constrained")
    draw_paces(left, values, rows)
    shares = [100 * r["share_of_sgemm"] for r in rows]
    right.plot(values, shares, "o-")
    right.set(ylim=(0, max(120, 1.1 * max(shares))), ylabel="share of SGEMM (%)")
    for side in (left, right):
        side.set_xscale("log", base=2)
        side.set_xticks(values, map(short, values), fontsize=8)
        side.set_xlabel(UNITS[axis])
        side.grid(alpha=0.3)
    figure.savefig(folder / f"scaling-{axis}.svg", metadata={"Date": None})
    pyplot.close(figure)


def draw_paces(side: Any, values: list[int], rows: list[dict[str, Any]]) -> None:
    """Draw the median, slowest and fastest tokens per second, and what SGEMM's rate would give."""
    from matplotlib.ticker import LogLocator

    paces = [r["tokens_per_second"] for r in rows]
    below = [r["tokens_per_second"] - r["slow"] for r in rows]
    above = [r["fast"] - r["tokens_per_second"] for r in rows]
    limits = [r["sgemm_gflops"] * 1e3 / r["mflop_a_token"] for r in rows]
    side.plot(values, limits, "--", color="grey", label="all at SGEMM's rate")
    side.errorbar(values, paces, [below, above], fmt="o-", capsize=2, label="measured")
    side.set(yscale="log", ylabel="tokens per second", ylim=(min(paces) / 2, max(limits) * 1.5))
    side.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    side.yaxis.set_major_formatter("{x:,.0f}")
    side.yaxis.set_minor_formatter("")
    side.legend(frameon=False, loc="lower left" if paces[0] > paces[-1] else "lower right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--axes", default=",".join(AXES), help=f"of {', '.join(AXES)}")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each point (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="that train (default: 1)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write a figure an axis there")
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="take what --json printed, measure nothing"
    )
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--shapes", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.axes.split(",")) - set(AXES):
        parser.error(f"there is no axis {', '.join(sorted(unknown))}; of {', '.join(AXES)}")
    if min(arguments.rounds, arguments.threads) < 1:
        parser.error("--rounds and --threads must be at least 1")
    if arguments.serve:
        point = Shape(**json.loads(arguments.shapes))
        serve_rustgpt(point, arguments.threads, PRECISIONS[arguments.serve])
    else:
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    known: list[dict[str, Any]] = []
    if arguments.results:
        known = [json.loads(line) for line in arguments.results.read_text().splitlines()]
    for axis in arguments.axes.split(","):
        rows = [r for r in known if r["axis"] == axis]
        if not arguments.results:
            rows = measure(axis, arguments.rounds, arguments.threads)
        if arguments.json:
            print("\n".join(map(json.dumps, rows)), flush=True)
        else:
            print(f"{table(axis, rows)}\n", flush=True)
        if arguments.plots:
            plot(axis, rows, arguments.plots)


if __name__ == "__main__":
    main()
