"""Owns `rustgpt data`, and what it shares with `rustgpt train`: flags for data, and the report."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any, Final

from rustgpt.cli.options import add_number, add_path, path
from rustgpt.cli.terminal import Reading, say
from rustgpt.cli.tokenizer_flags import add_tokenizer, chosen_tokenizer
from rustgpt.config import ModelConfig, TrainConfig
from rustgpt.errors import ConfigError

if TYPE_CHECKING:
    from rustgpt.text.dataset import Dataset
    from rustgpt.text.reading import FileReport, Report
    from rustgpt.text.summary import Segment, Summary
    from rustgpt.text.tokenizer import Tokenizer

LANGUAGES: Final = ("en", "zh", "all")
FORMATS: Final = (
    *("auto", "text", "lines", "dialogue", "json", "jsonl", "csv", "tsv"),
    *("messages", "conversations", "instruction", "prompt", "question", "text-key"),
)
FILES_SHOWN: Final = 10
BEGIN, END = ">>", "<<"  # around what counts in the loss


def add_data(group: argparse._ActionsContainer, positional: bool = True) -> None:
    """Add the flags that name data, and `PATH...` unless a command has no room for it."""
    if positional:
        group.add_argument(
            "paths",
            nargs="*",
            type=path,
            metavar="PATH",
            help="your own data: files, folders, patterns, or - for standard input; texts are "
            "pre-trained on, dialogues tuned on",
        )
    for flag, what in (("--pretrain", "to be read as texts"), ("--chat", "dialogues to tune on")):
        group.add_argument(
            flag, nargs="+", type=path, action="extend", metavar="PATH", help=f"your data: {what}"
        )
    group.add_argument(
        "--format",
        choices=FORMATS,
        metavar="FORM",
        help="the form of your files, or of the records in them, where their content shall not "
        f"decide: {', '.join(FORMATS[1:])}; text is a whole document (default: {FORMATS[0]})",
    )
    text = (
        "where the tokens of more than 16 MB of your data are kept for the next time (default: "
        "rustgpt in your folder for caches)"
    )
    add_path(group, "--cache", "DIR", text)
    group.add_argument(
        "--language",
        choices=LANGUAGES,
        help="which of the bundled data to read, where you name none (default: all)",
    )


def read_data(args: argparse.Namespace) -> Dataset:
    """Read the data that the flags name; without any, the bundled data."""
    from rustgpt.parallel.mpi import launched_size
    from rustgpt.text.dataset import Dataset
    from rustgpt.text.sources import STANDARD_INPUT

    paths = getattr(args, "paths", None) or None
    if not (paths or args.pretrain or args.chat):
        if args.format:
            raise ConfigError("--format is for data of your own: name them, or leave it out")
        return Dataset.bundled(args.language or "all")
    if args.language:
        raise ConfigError("--language chooses among the bundled data: leave it out with your own")
    named = (*(paths or ()), *(args.pretrain or ()), *(args.chat or ()))
    if STANDARD_INPUT in named and launched_size() > 1:
        raise ConfigError(
            "several processes cannot read their data from standard input, for not every mpiexec "
            "tells them where it ends: put them into a file, and name that instead of -"
        )
    return Dataset.load(
        paths, pretraining=args.pretrain, chat=args.chat, form=args.format or FORMATS[0],
        cache=getattr(args, "cache", None), on_progress=Reading(),
    )  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rustgpt data`."""
    add_data(parser)
    add_tokenizer(parser)
    text = "the context in tokens; what is longer is cut (default: %(default)s)"
    add_number(parser, "--max-seq-len", (1, 10**6), text, ModelConfig.max_seq_len)
    text = "show so many texts and so many dialogues (default: %(default)s)"
    add_number(parser, "--examples", (0, 1000), text, 3)
    parser.add_argument(
        "--loss-on",
        choices=("assistant", "all"),
        default=TrainConfig.loss_on,
        help="what counts in the loss of a dialogue (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Print what a training would read."""
    from rustgpt.text.summary import examples, summarize
    from rustgpt.text.text_format import TextFormat

    dataset = read_data(args)
    tokenizer, why = chosen_tokenizer(args, dataset)
    text_format = TextFormat(tokenizer, tokenizer.end_id)
    summary = summarize(dataset, text_format, args.max_seq_len, args.loss_on)
    shown = examples(dataset, text_format, args.max_seq_len, args.examples, args.loss_on)
    if args.json:
        say(json.dumps(_facts(dataset, tokenizer, summary, shown), indent=2))
        return 0
    report = dataset.report
    lines = [*described(report), ""] if report else []
    lines += [f"Read: {counts(dataset)}"]
    lines += [
        f"Tokens: {summary.tokens:,}, {summary.tokens_per_byte:.3f} a byte, by "
        f"{type(tokenizer).__name__} with {tokenizer.vocab_size:,} tokens; "
        f"{summary.spelled:,} of them pieces of unknown words",
        f"Longest: {summary.longest:,} tokens; the context has {summary.context:,}, so "
        f"{_number(summary.texts.cut, 'text')} and {_number(summary.dialogues.cut, 'dialogue')} "
        "will be cut",
    ]
    lines += [why[0].upper() + why[1:]] if why else []
    lines += [f"warning: {warning}" for warning in summary.warnings()]
    if shown:
        lines += ["", f"What the model will see; the loss counts from {BEGIN} to {END}:"]
        lines += [f"{number}. {marked(example)}" for number, example in enumerate(shown, 1)]
    say("\n".join(lines))
    return 0


def counts(dataset: Dataset) -> str:
    """Return how much there is, in words."""
    report = dataset.report
    if not report:
        texts, dialogues = len(dataset.pretraining_data), len(dataset.chat_training_data)
        return f"{_number(texts, 'text')}, {_number(dialogues, 'dialogue')}"
    both = (_number(report.total(f"{what}s"), what) for what in ("text", "dialogue"))
    return ", ".join((_number(len(report.files), "file"), *both))


def _number(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"


def short_report(dataset: Dataset, summary: Summary) -> list[str]:
    """Return what `rustgpt train` tells of its data, in lines."""
    report = dataset.report
    start = "" if summary.whole else "of the beginning, "
    first = (
        f"{counts(dataset)}; {start}{summary.tokens:,} tokens, "
        f"{summary.tokens_per_byte:.3f} a byte, the longest {summary.longest:,}"
    )
    troubles = described(report, only_troubles=True) if report else []
    return [first, *troubles, *(f"warning: {warning}" for warning in summary.warnings())]


def described(report: Report, only_troubles: bool = False) -> list[str]:
    """Return lines about the files: all that were not read in full, and the first others."""
    from rustgpt.text.formats import FILE_FORMS

    lines, others = [], 0
    for file in report.files:
        troubles = _troubles(file)
        if not troubles:
            others += 1
            if only_troubles or others > FILES_SHOWN:
                continue
        found = [_number(file.texts, "text")] * bool(file.texts or not file.dialogues)
        found += [_number(file.dialogues, "dialogue")] * bool(file.dialogues)
        lines.append(f"{file.name}: {FILE_FORMS[file.form]}, {', '.join(found)}")
        lines += [f"  {trouble}" for trouble in troubles]
    if others > FILES_SHOWN and not only_troubles:
        lines.append(f"and {_number(others - FILES_SHOWN, 'more file')}")
    if report.left_out:
        lines.append(f"left out, for it cannot be read: {_number(len(report.left_out), 'file')}")
        lines += [f"  {reason}" for reason in report.left_out[:3]]
    return lines


def _troubles(file: FileReport) -> list[str]:
    """Say what of a file was not read."""
    found = []
    if file.unusable:
        found.append(f"cannot be used: {_number(file.unusable, 'row')}")
        found += [f"  {reason}" for reason in file.reasons]
        found += ["  ..."] * (file.unusable > len(file.reasons))
    if file.empty:
        found.append(f"empty: {_number(file.empty, 'row')}")
    if file.single:
        found.append(f"of one character, which no token follows: {_number(file.single, 'text')}")
    if file.ignored:
        keys = ", ".join(f"{key!r} ({n:,})" for key, n in file.ignored.most_common(10))
        found.append(f"ignored keys: {keys}")
    return found + file.notes


def marked(example: list[Segment]) -> str:
    """Return an example in one line, with marks around what counts in the loss."""
    text = "".join(f"{BEGIN}{part}{END}" if counts else part for part, counts in example)
    return text.replace("\n", "\\n")


def _facts(
    dataset: Dataset, tokenizer: Tokenizer, summary: Summary, shown: list[list[Segment]]
) -> dict[str, Any]:
    report = dataset.report
    return {
        "files": [vars(file) for file in report.files] if report else [],
        "left_out": report.left_out if report else [],
        "tokenizer": type(tokenizer).__name__,
        "vocabulary": tokenizer.vocab_size,
        "tokens": summary.tokens,
        "bytes": summary.bytes,
        "tokens_per_byte": summary.tokens_per_byte,
        "unknown_pieces": summary.spelled,
        "longest": summary.longest,
        "context": summary.context,
        "texts": summary.texts._asdict(),
        "dialogues": summary.dialogues._asdict(),
        "warnings": summary.warnings(),
        "examples": [
            [{"text": part, "counted": counted} for part, counted in example] for example in shown
        ],
    }
