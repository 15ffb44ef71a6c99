"""Owns the command `rustgpt`: its parsers, and the border at which errors become exit statuses."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import Final, NamedTuple, NoReturn

from rustgpt import __version__
from rustgpt.cli import (
    bench,
    chat,
    data,
    export,
    generate,
    info,
    job,
    ranks,
    serve,
    tokenizer,
    train,
)
from rustgpt.cli.options import likely_flags
from rustgpt.cli.terminal import complain, is_terminal, note, say
from rustgpt.errors import ConfigError, RustGPTError

DEBUG: Final = "--debug"


class Command(NamedTuple):
    """A command: where its arguments and its work are, what it does, how it is called."""

    module: ModuleType
    help: str
    arguments: str
    examples: tuple[str, ...]


COMMANDS: Final = {
    "train": Command(
        train,
        "Train on the bundled data or on your own, and save the model.",
        "[PATH...] [options]",
        (
            "rustgpt train notes/ questions.jsonl --out my-model",
            "rustgpt train --pretrain facts.json --chat chat.json --n-layers 2 --out my-model",
        ),
    ),
    "data": Command(
        data,
        "Show what a training would read, and what not.",
        "[PATH...] [options]",
        ("rustgpt data notes/ questions.jsonl", "cat notes.md | rustgpt data - --json"),
    ),
    "chat": Command(
        chat,
        "Talk to a saved model; 'exit' or the end of input ends it.",
        "[MODEL] [options]",
        ("rustgpt chat my-model", "echo 'How do mountains form?' | rustgpt chat my-model"),
    ),
    "generate": Command(
        generate,
        "Continue a text.",
        "MODEL TEXT [options]",
        ("rustgpt generate my-model 'The sun rises' --temperature 0.8 --seed 1",),
    ),
    "serve": Command(
        serve,
        "Serve a model: an API as OpenAI's, and a page to talk to it.",
        "[MODEL] [options]",
        ("rustgpt serve my-model", "rustgpt serve my-model --port 9000 --slots 4"),
    ),
    "info": Command(
        info,
        "Show the machine and the kernels in use; or a model's layers and sizes.",
        "[MODEL] [options]",
        ("rustgpt info", "rustgpt info my-model --json"),
    ),
    "export": Command(
        export,
        "Write a model for other programs.",
        "FORMAT MODEL DESTINATION [options]",
        ("rustgpt export hf my-model my-model-hf --dtype bfloat16",),
    ),
    "tokenizer": Command(
        tokenizer,
        "Train a tokenizer, turn text into token ids and back, count tokens.",
        "train|encode|decode|stats ... [options]",
        (
            "rustgpt tokenizer train notes/ --tokenizer bpe --vocab-size 8000 --out tokenizer.json",
            "rustgpt tokenizer encode my-model 'The sun rises' | rustgpt tokenizer decode my-model",
            "rustgpt tokenizer stats my-model notes/",
        ),
    ),
    "bench": Command(
        bench,
        "Measure how fast a model of given sizes trains here, and where the time goes.",
        "[MODEL] [options]",
        (
            "rustgpt bench --n-layers 4 --batch-size 12 --max-seq-len 64 --threads 1",
            "rustgpt bench my-model --profile",
        ),
    ),
}
JOB: Final = Command(
    job,
    "A small GPT from scratch, on the CPU. Without a command it does the whole job: it\n"
    "reads the training data, trains a model in two phases, saves it and talks to you.",
    "[options]\n       rustgpt COMMAND [options]",
    ("rustgpt --language en --pretrain-epochs 50", "rustgpt chat"),
)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors and help take the way of all others."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see '{self.prog} --help'")

    def _print_message(self, message: str, file: object = None) -> None:
        say(message, end="")


def parser_of(name: str, command: Command) -> _Parser:
    """Return the parser of one command; the whole job has no name."""
    commands = "\n".join(f"  {name:<9} {command.help}" for name, command in COMMANDS.items())
    parser = _Parser(
        prog=f"rustgpt {name}".strip(),
        usage=f"%(prog)s {command.arguments}",
        description=command.help if name else f"{command.help}\n\ncommands:\n{commands}",
        epilog="\n  ".join(("example:", *command.examples)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    version, text = f"rustgpt {__version__}", "show the version and exit"
    parser.add_argument("--version", action="version", version=version, help=text)
    parser.add_argument(DEBUG, action="store_true", help="show the traceback of an error")
    command.module.add_arguments(parser)
    return parser


def _run(argv: list[str]) -> int:
    while argv and argv[0] == DEBUG:  # also allowed before the command
        argv = argv[1:]
    name = argv[0] if argv and argv[0] in COMMANDS else ""
    command = COMMANDS.get(name, JOB)
    ranks.begin(name, asks=bool({"-h", "--help", "--version"} & {*argv}))
    parser = parser_of(name, command)
    # Paths may stand between the options too.
    mixed = command.arguments.startswith("[PATH")
    parse = parser.parse_known_intermixed_args if mixed else parser.parse_known_args
    args, unknown = parse(argv[1:] if name else argv)
    if unknown and not name:
        for word in COMMANDS.keys() & unknown:
            parser.error(f"the command comes first: rustgpt {word} [options]")
        if not unknown[0].startswith("-"):
            parser.error(f"there is no command {unknown[0]!r:.60}: choose {', '.join(COMMANDS)}")
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        meant = likely_flags(unknown[0], flags)
        guess = f": did you mean {meant}?" if meant else ""
        parser.error(f"there is no option or place for {unknown[0]!r:.60}{guess}")
    status: int = command.module.run(args)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status.

    Parameters
    ----------
    argv
        The arguments; by default those of the process.

    Returns
    -------
    int
        0 if all went well, 1 if the data, a model or the run failed, 2 if the command or a setting
        is wrong, 130 after Ctrl-C, 143 after SIGTERM and 129 after SIGHUP in a training.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _guarded(arguments)
    except KeyboardInterrupt:
        if is_terminal(sys.stderr):
            note("")  # what comes next begins a line
        status = 130
    status = ranks.leave(status)
    return status if _flushed() else status or 1


def _guarded(arguments: list[str]) -> int:
    """Run, and turn every error into one line and a status."""
    try:
        return _run(arguments)
    except SystemExit as end:  # --help and --version
        return int(end.code or 0)
    except BrokenPipeError:
        return 1
    except Exception as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # came while a class was made
            raise KeyboardInterrupt from error
        if DEBUG in arguments:
            note(traceback.format_exc().rstrip())
        message = str(error)
        if isinstance(error, MemoryError):
            message = "there is not enough memory: choose smaller sizes, or fewer threads"
        elif not isinstance(error, (RustGPTError, OSError)):
            message = (
                f"this is a mistake in rustgpt, please report it: {type(error).__name__}: {error} "
                f"({DEBUG} shows where)"
            )
        complain(message)
        return 2 if isinstance(error, ConfigError) else 1


def _flushed() -> bool:
    """Flush standard output; if that fails, keep the interpreter from trying once more."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):  # it may be no real file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True
