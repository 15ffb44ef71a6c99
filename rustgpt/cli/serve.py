"""Owns `rustgpt serve`: a model behind HTTP."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from rustgpt.cli.chat import DEFAULT_MODEL
from rustgpt.cli.options import add_model, add_number, add_path, add_template, number
from rustgpt.cli.terminal import note
from rustgpt.config import MOST_THREADS
from rustgpt.errors import RustGPTError

MOST_SLOTS: Final = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rustgpt serve`."""
    text = "a model's folder or file (default: %(default)s)"
    add_model(parser, text, nargs="?", default=DEFAULT_MODEL)
    group = parser.add_argument_group("server")
    text = "the address to listen at (default: %(default)s); one that others reach needs a key"
    group.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help=text)
    text = "the port to listen at (default: 8000); 0 for any that is free"
    add_number(group, "--port", (0, 65535), text, 8000)
    text = (
        "a file with the key that clients must send, 32 random bytes at least "
        "(openssl rand -hex 32); or RUSTGPT_API_KEY in the environment"
    )
    add_path(group, "--key-file", "FILE", text)
    more = {"action": "append", "default": [], "metavar": "NAME"}
    text = "a name in the Host header to accept beside localhost; may be given several times"
    group.add_argument("--allow-host", help=text, **more)  # type: ignore[arg-type]
    more["metavar"] = "ORIGIN"
    text = "a page of another server that may use this one, such as https://chat.example.org"
    group.add_argument("--allow-origin", help=text, **more)  # type: ignore[arg-type]
    _add_model_flags(parser)


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    text = "what clients call the model (default: as its folder)"
    group.add_argument("--name", default="", metavar="NAME", help=text)
    text = "texts that are made at once (default: as memory allows, up to 16)"
    add_number(group, "--slots", (1, MOST_SLOTS), text, 0)
    text = "that make a token of a large model together; 0 for as many as help (default: 0)"
    add_number(group, "--threads", (0, MOST_THREADS), text, 0)
    text = "of requests that name none (default: 1.0, as at OpenAI)"
    add_number(group, "--temperature", (0, 2), text, 1.0, number)
    text = "use system messages, or leave them out and say so (default: as the model was trained)"
    choices = ("auto", "use", "leave-out")
    group.add_argument("--system-messages", choices=choices, default="auto", help=text)
    add_template(group)


def run(args: argparse.Namespace) -> int:
    """Serve a model until a signal comes."""
    try:
        from rustgpt.serve.config import ServeConfig, read_key
        from rustgpt.serve.server import ModelServer
    except ModuleNotFoundError as error:
        raise RustGPTError(
            f"serving needs the package {error.name}: pip install 'rustgpt[serve]'"
        ) from None
    from rustgpt.llm import LLM

    config = ServeConfig(
        host=args.host,
        port=int(args.port),
        key=read_key(args.key_file),
        hosts=tuple(args.allow_host),
        origins=tuple(args.allow_origin),
        name=args.name,
        slots=int(args.slots),
        temperature=args.temperature,
        system_messages=args.system_messages,
    )

    def load() -> LLM:
        model = LLM.load(args.model, chat_template=args.template)
        model.threads = int(args.threads)
        return model

    name = Path(args.model).resolve().name or "model"
    return ModelServer(name, load, config, lambda text: note(f"rustgpt: {text}")).run()
