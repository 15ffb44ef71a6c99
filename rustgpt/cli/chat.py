"""Owns `rustgpt chat`: questions from a terminal or a pipe, answers to standard output."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from rustgpt.cli.chat_commands import Commands
from rustgpt.cli.options import add_model, add_template
from rustgpt.cli.sampling import NOT_OF_A_CHAT, add_sampling, sampling_of, without_effect
from rustgpt.cli.terminal import complain, is_terminal, note, paint, say
from rustgpt.errors import ConfigError, DataError
from rustgpt.generation.sampling_config import SamplingConfig

if TYPE_CHECKING:
    from rustgpt.generation.chat import Chat
    from rustgpt.llm import LLM

DEFAULT_MODEL: Final = "rustgpt-model"
PROMPT: Final = "Enter prompt: "
ANSWER: Final = "Model output: "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rustgpt chat`."""
    text = "a model's folder (default: %(default)s)"
    add_model(parser, text, nargs="?", default=DEFAULT_MODEL)
    add_template(add_chat(parser))
    add_sampling(parser, NOT_OF_A_CHAT)


def add_chat(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add what a chat knows beside its answers' settings, and return the group."""
    group = parser.add_argument_group("chat")
    text = "what the model is told before all questions"
    group.add_argument("--system", metavar="TEXT", default=argparse.SUPPRESS, help=text)
    text = "read each question by itself, not after those before it"
    group.add_argument("--no-history", action="store_true", default=argparse.SUPPRESS, help=text)
    return group


def run(args: argparse.Namespace) -> int:
    """Load a model and talk to it."""
    config = sampling_of(args)
    from rustgpt.llm import LLM

    model = LLM.load(args.model, chat_template=args.template)
    return talk(model, args, config)


def talk(model: LLM, args: argparse.Namespace, config: SamplingConfig) -> int:
    """Talk to a model as the flags say; return the exit status."""
    if idle := without_effect(config):
        note(f"rustgpt: {idle}")
    known = vars(args)
    return converse(
        model.chat(
            sampling=config,
            logprobs=Commands.LIKELIEST,
            system=known.get("system", ""),
            remembers=not known.get("no_history", False),
        )
    )


def converse(chat: Chat) -> int:
    """Answer prompts until `exit` or the end of input; return the exit status."""
    commands, interrupted = Commands(chat), False
    while True:
        try:
            prompt = read_prompt()
            interrupted = False
            if prompt is None or prompt.strip().lower() in ("exit", "/exit"):
                return 0
            reply(chat, prompt, commands)
        except KeyboardInterrupt:  # perhaps meant for an answer that had just ended
            if interrupted or not is_terminal(sys.stdin):
                raise
            interrupted = True
            say()
            note("rustgpt: Ctrl-C once more, or exit, ends the chat")


def reply(chat: Chat, prompt: str, commands: Commands) -> None:
    """Do what was typed: answer a question, or carry out a command."""
    if not prompt.strip():
        return
    try:
        question = commands.run(prompt) if prompt.startswith("/") else prompt
        if question is not None:
            answer(chat, question, commands)
    except (DataError, ConfigError) as error:  # the next one may be better
        complain(error)


def answer(chat: Chat, question: str, commands: Commands) -> None:
    """Ask, and print the answer while it is made; on a terminal, Ctrl-C ends it."""
    began = time.perf_counter()
    pieces = chat.stream(question)
    if chat.forgotten:
        n = chat.forgotten
        what = "the oldest question is" if n == 1 else f"the {n} oldest questions are"
        note(f"rustgpt: the model sees no more at once: {what} forgotten, with what was answered")
    if is_terminal(sys.stdin):
        say(paint(ANSWER, "label"), end="", raw=True)
    with ctrl_c(is_terminal(sys.stdin)) as pressed:
        while not pressed and (piece := pieces.step()) is not None:
            if piece:
                say(piece, end="")
    pieces.stop()
    say(" ..." if pressed else "")
    commands.answered(pieces, time.perf_counter() - began)


@contextlib.contextmanager
def ctrl_c(is_heeded: bool) -> Iterator[list[bool]]:
    """While it is entered, a first Ctrl-C fills the list that is given; a second one interrupts."""
    pressed: list[bool] = []
    before = signal.getsignal(signal.SIGINT)
    if not is_heeded or before is not signal.default_int_handler:
        yield pressed
        return

    def handle(number: int, frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(True)

    signal.signal(signal.SIGINT, handle)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def read_prompt() -> str | None:
    """Read one line; None at the end of input. Bytes that are not UTF-8 become U+FFFD."""
    asks = is_terminal(sys.stdin)  # a script gets answers alone
    if asks and is_terminal(sys.stdout):
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (gives `input` editing and a history)
        try:
            return input(paint(PROMPT, "prompt"))
        except EOFError:
            say()
            return None
        except UnicodeDecodeError as error:
            return error.object.decode(error.encoding, "replace")
        except KeyboardInterrupt:
            if not _typed():
                raise
            say()
            return ""  # what was typed is given up, as in a shell
    if asks:
        say(PROMPT, end="")
    line = sys.stdin.buffer.readline() if sys.stdin is not None else b""
    if asks and not line:
        say()
    return line.decode("utf-8", "replace") if line else None


def _typed() -> str:
    """Return what had been typed when Ctrl-C came, if that is known."""
    editor = sys.modules.get("readline")
    return editor.get_line_buffer() if editor else ""
