"""Owns `rustgpt bench`: how fast a model trains on this machine, and where the time goes."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any, Final

from rustgpt.cli.checks import check_memory
from rustgpt.cli.options import path, some_time, within
from rustgpt.cli.settings import add_settings, read_settings
from rustgpt.cli.terminal import say
from rustgpt.config import ModelConfig
from rustgpt.errors import ConfigError

if TYPE_CHECKING:
    from rustgpt.benchmark import Benchmark, Profile, Speed

VOCABULARY: Final = 3200  # about that of the bundled data
OF_TRAINING: Final = (
    "batch_size",
    "threads",
    "precision",
)  # what else there is does not change the speed
WAYS: Final = {
    "whole_blocks": "Profile, each block one kernel, as it trains",
    "by_parts": "Profile, the same blocks part by part, each part a kernel call of its own",
}
HOW: Final = (
    "How this is measured: each call of a kernel is timed from outside, and its operations or "
    "bytes\ncounted from the shapes of its arrays (attention's up to its mask; nothing that is "
    "computed again).\nRates are those of one thread, and so are their limits, measured between "
    "the steps:\n{product:.1f} GFLOP/s for a large matrix product, {copy:.1f} GB/s for a copy of "
    "much memory.\nAbove 100%, the numbers were still in the processor's cache. 'ms' are of a "
    "step, of all threads\ntogether. Between the kernels are Python, NumPy, the residual sums of "
    "blocks that run part by part,\nand threads that wait."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rustgpt bench`."""
    parser.add_argument(
        "model",
        nargs="?",
        type=path,
        metavar="MODEL",
        help="a model's folder, for its sizes; nothing in it changes; none: the sizes below",
    )
    parser.add_argument(
        "--profile", action="store_true", help="show the time and the rate of each kernel too"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--context",
        type=within(1, 2**20),
        metavar="N",
        help="tokens of each text (default: as many as the model can see)",
    )
    group.add_argument(
        "--vocab-size",
        type=within(1, 2**31 - 1),
        metavar="N",
        help=f"tokens that the model knows (default: {VOCABULARY})",
    )
    length = group.add_mutually_exclusive_group()
    length.add_argument(
        "--seconds",
        type=some_time,
        default=5.0,
        metavar="X",
        help="of each measurement; a profile has two more (default: %(default)g)",
    )
    length.add_argument(
        "--steps", type=within(1, 10**9), metavar="N", help="measure so many steps instead"
    )
    add_settings(parser, OF_TRAINING)


def run(args: argparse.Namespace) -> int:
    """Measure, and print what was found."""
    benchmark = _benchmark(args)
    facts = _facts(benchmark)
    if not args.json:
        say(_heading(facts))
    speed = benchmark.speed()
    facts |= dataclasses.asdict(speed)
    if not args.json:
        say(_speed(speed, facts))
    if args.profile:
        facts["profile"] = {}
        for way in WAYS:
            profile = benchmark.profile(by_parts=way == "by_parts")
            facts["profile"][way] = dataclasses.asdict(profile)
            if not args.json:
                say(f"\n{_profile(WAYS[way], profile)}")
        if not args.json:
            product, memory = profile.limits.values()
            say("\n" + HOW.format(product=product, copy=memory))
    if args.json:
        say(json.dumps(facts, indent=2))
    return 0


def _benchmark(args: argparse.Namespace) -> Benchmark:
    """Return what is to be measured."""
    config, training = read_settings(args)
    if args.model is not None:
        _check_no_sizes(args)

    from rustgpt.benchmark import Benchmark, Vocabulary
    from rustgpt.llm import LLM

    if args.model is None:
        vocabulary = Vocabulary(args.vocab_size or VOCABULARY)
        check_memory(config, vocabulary.vocab_size)
        model = LLM(config, vocabulary)
    else:
        model = LLM.load(args.model)
        check_memory(model.config, model.tokenizer.vocab_size)
    return Benchmark(model, training, args.context, args.seconds, args.steps)


def _check_no_sizes(args: argparse.Namespace) -> None:
    """Raise ConfigError if a flag contradicts the sizes of a saved model."""
    names = [field.name for field in dataclasses.fields(ModelConfig) if field.name != "seed"]
    for name in (*names, "vocab_size"):
        if getattr(args, name, None) is not None:
            raise ConfigError(
                f"--{name.replace('_', '-')} contradicts the sizes of {args.model!r}: leave out "
                "one of the two"
            )


def _facts(benchmark: Benchmark) -> dict[str, Any]:
    """Return what is known before anything is measured."""
    from rustgpt.backend import kernels_in_use

    model = benchmark.model
    return {
        "parameters": model.n_parameters,
        "multiplied": benchmark.multiplied,
        "vocabulary": model.tokenizer.vocab_size,
        "config": model.config.to_dict(),
        "batch_size": benchmark.training.batch_size,
        "context": benchmark.context,
        "kernels": kernels_in_use(),
        "threads": benchmark.threads,
    }


def _heading(facts: dict[str, Any]) -> str:
    config = facts["config"]
    return (
        f"Model: {facts['parameters']:,} parameters; layers {config['n_layers']}, heads "
        f"{config['n_heads']}, dimension {config['embedding_dim']}, hidden "
        f"{config['hidden_dim']}, vocabulary {facts['vocabulary']:,}\n"
        f"Step: {facts['batch_size']:,} texts of {facts['context']:,} random tokens; kernels: "
        f"{facts['kernels']}; threads: {facts['threads']}\n"
    )


def _speed(speed: Speed, facts: dict[str, Any]) -> str:
    config = facts["config"]
    product = "SGEMM" if config["dtype"] == "float32" else "DGEMM"
    operations = (
        f"a token: 6 x {facts['multiplied']:,} parameters in products + 12 x "
        f"{config['n_layers']} x {config['embedding_dim']} x {facts['context']}"
    )
    memory = speed.peak_memory_mb
    rows = {
        "tokens per second": f"{speed.tokens_per_second:,.0f}  (median of {speed.steps:,} steps; "
        f"8 of 10 between {speed.slow:,.0f} and {speed.fast:,.0f})",
        "ms a step": f"{speed.milliseconds_a_step:,.2f}",
        "GFLOP/s": f"{speed.gflops:.1f}  ({operations})",
        product: f"{speed.product_gflops:.1f}  GFLOP/s of a large matrix product here, measured "
        "between the steps",
        f"share of {product}": f"{speed.share_of_product:.0%}",
        "peak memory": "-" if memory is None else f"{memory:,.0f} MB",
    }
    return "\n".join(f"{name:<18} {value}" for name, value in rows.items())


def _profile(title: str, profile: Profile) -> str:
    """Return a table of the kernels."""
    total = profile.milliseconds_a_step * profile.threads
    rows = [
        f"{title}: {profile.milliseconds_a_step:,.2f} ms a step",
        f"{'kernel':<22}{'pass':<10}{'calls':>6}{'ms':>10}{'of step':>10}{'rate':>17}"
        f"{'of limit':>10}",
    ]
    for line in profile.lines:
        rate, share = "-", "-"
        if line.rate is not None and line.share_of_limit is not None:
            rate, share = f"{line.rate:.1f} {line.unit:<7}", f"{line.share_of_limit:.0%}"
        rows.append(
            f"{line.kernel:<22}{line.part:<10}{line.calls:>6.0f}{line.milliseconds:>10.3f}"
            f"{line.share:>10.1%}{rate:>17}{share:>10}"
        )
    between = profile.share_between
    rows.append(f"{'between the kernels':<38}{total * between:>10.3f}{between:>10.1%}")
    return "\n".join(rows)
