"""Owns `rustgpt bench`: how fast a model trains on this machine, and where the time goes."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from rustgpt.cli.checks import check_memory
from rustgpt.cli.options import LONGEST_TIME, add_model, add_number, duration
from rustgpt.cli.settings import add_settings, read_settings
from rustgpt.cli.terminal import say
from rustgpt.config import ModelConfig
from rustgpt.errors import ConfigError

if TYPE_CHECKING:
    from rustgpt.benchmark import Benchmark, Profile

VOCABULARY: Final = 3200  # about that of the bundled data
# What else there is does not change the speed.
OF_TRAINING: Final = ("batch_size", "threads", "precision")
WAYS: Final = {
    "whole_blocks": "Profile, each block one kernel, as it trains",
    "by_parts": "Profile, the same blocks part by part, each part a kernel call of its own",
}
HEADING: Final = (
    "Model: {parameters:,} parameters; layers {n_layers}, heads {n_heads}, dimension "
    "{embedding_dim}, hidden {hidden_dim}, vocabulary {vocabulary:,}\n"
    "Step: {batch_size:,} texts of {context:,} random tokens; kernels: {kernels}; threads: "
    "{threads}\n"
)
SPEED: Final = (
    "tokens per second  {tokens_per_second:,.0f}  (median of {steps:,} steps; 8 of 10 between "
    "{slow:,.0f} and {fast:,.0f})\n"
    "ms a step          {milliseconds_a_step:,.2f}\n"
    "GFLOP/s            {gflops:.1f}  (a token: 6 x {multiplied:,} parameters in products + 12 x "
    "{n_layers} x {embedding_dim} x {context})\n"
    "{product}              {product_gflops:.1f}  GFLOP/s of a large matrix product here, measured "
    "between the steps\n"
    "share of {product}     {share_of_product:.0%}\n"
    "peak memory        {memory}"
)
HOW: Final = (
    "How this is measured: each call of a kernel is timed from outside, and its operations or "
    "bytes\ncounted from the shapes of its arrays (attention's up to its mask; nothing that is "
    "computed again).\nRates are those of one thread, and so are their limits, measured between "
    "the steps:\n{:.1f} GFLOP/s for a large matrix product, {:.1f} GB/s for a copy of "
    "much memory.\nAbove 100%, the numbers were still in the processor's cache. 'ms' are of a "
    "step, of all threads\ntogether. Between the kernels are Python, NumPy, the residual sums of "
    "blocks that run part by part,\nand threads that wait."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rustgpt bench`."""
    text = "a model's folder, for its sizes; nothing in it changes; none: the sizes below"
    add_model(parser, text, nargs="?")
    text = "show the time and the rate of each kernel too"
    parser.add_argument("--profile", action="store_true", help=text)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    group = parser.add_argument_group("what is measured")
    text = "tokens of each text (default: as many as the model can see)"
    add_number(group, "--context", (1, 2**20), text, 0)
    text = f"tokens that the model knows (default: {VOCABULARY})"
    add_number(group, "--vocab-size", (1, 2**31 - 1), text)
    length = group.add_mutually_exclusive_group()
    text = "of each measurement; a profile has two more (default: %(default)g)"
    add_number(length, "--seconds", (0.001, LONGEST_TIME), text, 5.0, duration)
    add_number(length, "--steps", (1, 10**9), "measure so many steps instead", 0)
    add_settings(parser, OF_TRAINING)


def run(args: argparse.Namespace) -> int:
    """Measure, and print what was found."""

    def tell(text: str) -> None:
        if not args.json:
            say(text)

    benchmark = _benchmark(args)

    from rustgpt.backend import kernels_in_use

    config = benchmark.model.config.to_dict()
    facts: dict[str, Any] = {
        "parameters": benchmark.model.n_parameters,
        "multiplied": benchmark.multiplied,
        "vocabulary": benchmark.model.tokenizer.vocab_size,
        "config": config,
        "batch_size": benchmark.training.batch_size,
        "context": benchmark.context,
        "kernels": kernels_in_use(),
        "threads": benchmark.threads,
    }
    tell(HEADING.format(**facts, **config))
    facts |= asdict(benchmark.speed())
    memory = "-" if facts["peak_memory_mb"] is None else f"{facts['peak_memory_mb']:,.0f} MB"
    product = "SGEMM" if config["dtype"] == "float32" else "DGEMM"
    tell(SPEED.format(product=product, memory=memory, **facts, **config))
    if args.profile:
        facts["profile"] = {}
        for way, title in WAYS.items():
            profile = benchmark.profile(by_parts=way == "by_parts")
            facts["profile"][way] = asdict(profile)
            tell(f"\n{_profile(title, profile)}")
        tell("\n" + HOW.format(*profile.limits.values()))
    if args.json:
        say(json.dumps(facts, indent=2))
    return 0


def _benchmark(args: argparse.Namespace) -> Benchmark:
    """Return what is to be measured."""
    config, training = read_settings(args)
    for name in ("preset", "vocab_size", *ModelConfig().to_dict()):
        if args.model is not None and name != "seed" and getattr(args, name, None) is not None:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{flag} contradicts the sizes of {args.model!r}: leave out one of the two"
            )

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
