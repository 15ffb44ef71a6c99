"""Owns the command `rustgpt`: its parsers, and the border at which errors become exit statuses."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, NoReturn

from rustgpt import __version__
from rustgpt.cli import bench, chat, generate, info, train
from rustgpt.cli.options import likely_flags
from rustgpt.cli.terminal import complain, is_terminal, note, say
from rustgpt.errors import ConfigError, RustGPTError

__all__ = ["main"]

DEBUG: Final = "--debug"


class Command(NamedTuple):
    """A command: what it does, how it is called, its arguments, its work."""

    help: str
    usage: str
    examples: tuple[str, ...]
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS: Final = {
    "train": Command(
        "Train on the bundled data or on your own, and save the model.",
        "rustgpt train [options]",
        ("rustgpt train --pretrain facts.json --chat chat.json --n-layers 2 --out my-model",),
        train.add_arguments,
        train.run,
    ),
    "chat": Command(
        "Talk to a saved model; 'exit' or the end of input ends it.",
        "rustgpt chat [MODEL] [options]",
        ("rustgpt chat my-model", "echo 'How do mountains form?' | rustgpt chat my-model"),
        chat.add_arguments,
        chat.run,
    ),
    "generate": Command(
        "Continue a text.",
        "rustgpt generate MODEL TEXT [options]",
        ("rustgpt generate my-model 'The sun rises' --temperature 0.8 --seed 1",),
        generate.add_arguments,
        generate.run,
    ),
    "info": Command(
        "Show the machine and the kernels in use; or a model's layers and sizes.",
        "rustgpt info [MODEL] [options]",
        ("rustgpt info", "rustgpt info my-model --json"),
        info.add_arguments,
        info.run,
    ),
    "bench": Command(
        "Measure how fast a model of given sizes trains here, and where the time goes.",
        "rustgpt bench [MODEL] [options]",
        (
            "rustgpt bench --n-layers 4 --batch-size 12 --max-seq-len 64 --threads 1",
            "rustgpt bench my-model --profile",
        ),
        bench.add_arguments,
        bench.run,
    ),
}
JOB: Final = Command(
    "A small GPT from scratch, on the CPU. Without a command it does the whole job: it\n"
    "reads the training data, trains a model in two phases, saves it and talks to you.",
    "rustgpt [options]\n       rustgpt COMMAND [options]",
    ("rustgpt --language en --pretrain-epochs 50", "rustgpt chat"),
    train.add_job_arguments,
    train.run_job,
)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors and help take the way of all others."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see '{self.prog} --help'")

    def flags(self) -> list[str]:
        """Return the names of all flags."""
        return [name for action in self._actions for name in action.option_strings]

    def print_help(self, file: object = None) -> None:
        say(self.format_help(), end="")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        say(f"rustgpt {__version__}")
        parser.exit()


def _parser(name: str, command: Command) -> _Parser:
    """Return the parser of one command; the whole job has no name."""
    parser = _Parser(
        prog=f"rustgpt {name}".strip(),
        usage=command.usage,
        description=command.help if name else f"{command.help}\n\ncommands:\n{_overview()}",
        epilog="\n  ".join(("example:", *command.examples)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parser.add_argument(DEBUG, action="store_true", help="show the traceback of an error")
    command.add_arguments(parser)
    return parser


def _overview() -> str:
    return "\n".join(f"  {name:<9} {command.help}" for name, command in COMMANDS.items())


def _run(argv: list[str]) -> int:
    while argv and argv[0] == DEBUG:  # also allowed before the command
        argv = argv[1:]
    if argv and argv[0] in COMMANDS:
        name, command, argv = argv[0], COMMANDS[argv[0]], argv[1:]
    else:
        name, command = "", JOB
    parser = _parser(name, command)
    args, unknown = parser.parse_known_args(argv)
    if unknown and not name:
        for word in COMMANDS.keys() & unknown:
            parser.error(f"the command comes first: rustgpt {word} [options]")
        if not unknown[0].startswith("-"):
            parser.error(f"there is no command {unknown[0]!r:.60}: choose {', '.join(COMMANDS)}")
    if unknown:
        meant = likely_flags(unknown[0], parser.flags())
        guess = f": did you mean {meant}?" if meant else ""
        parser.error(f"there is no option or place for {unknown[0]!r:.60}{guess}")
    return command.run(args)


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
        complain(_explained(error))
        return 2 if isinstance(error, ConfigError) else 1


def _explained(error: Exception) -> Exception:
    """Return an error whose message a user understands."""
    if isinstance(error, RustGPTError):
        return error
    if isinstance(error, MemoryError):
        return RustGPTError("there is not enough memory: choose smaller sizes, or fewer threads")
    if isinstance(error, OSError):
        return error
    return RustGPTError(
        f"this is a mistake in rustgpt, please report it: {type(error).__name__}: {error} "
        f"({DEBUG} shows where)"
    )


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
