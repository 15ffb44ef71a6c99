"""Writes docs/commands.md, the reference of the command line, from the parsers of the commands."""

import argparse
from pathlib import Path

from rustgpt.cli import COMMANDS, JOB, parser_of

PAGE = Path(__file__).with_name("commands.md")
HEAD = """# The commands

What `--help` says of each command, on one page. `python docs/commands.py` writes it from the
same source. Every command also has `--help`, `--version` and `--debug`, which
shows the traceback of an error.
"""
EVERYWHERE = ("help", "version", "debug")


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """Return the page."""
    about = JOB.help.replace("\n", " ")
    whole = f"## `rustgpt`\n\n{about} It takes the options of `rustgpt train` and of the answers.\n"
    others = (
        section(f"rustgpt {name}", parser_of(name, command), command.examples)
        for name, command in COMMANDS.items()
    )
    return "\n".join([HEAD, whole, *others])


def section(title: str, parser: argparse.ArgumentParser, examples: tuple[str, ...] = ()) -> str:
    """Return what there is to say of one command."""
    about = (parser.description or "").partition("\n\ncommands:")[0].replace("\n", " ")
    lines = [f"## `{title}`", "", about, ""]
    if examples:
        lines += ["```console", *examples, "```", ""]
    inner = []
    for group in parser._action_groups:
        rows = []
        for action in group._group_actions:
            if isinstance(action, argparse._SubParsersAction):
                inner += [section(f"{title} {name}", p) for name, p in action.choices.items()]
            elif action.help is not argparse.SUPPRESS and action.dest not in EVERYWHERE:
                rows.append(f"| {called(action)} | {explained(action, parser)} |")
        if rows:
            lines += [f"{(group.title or '').capitalize()}:", "", "| | |", "|---|---|", *rows, ""]
    return "\n".join([*lines, *inner])


def called(action: argparse.Action) -> str:
    """Return the names of an argument, and what follows them."""
    names = action.option_strings or [str(action.metavar or action.dest)]
    value = " ".join(action.metavar) if isinstance(action.metavar, tuple) else action.metavar
    value = value or ("{" + ",".join(action.choices) + "}" if action.choices else "")
    takes_value = action.nargs != 0 and action.option_strings
    shown = [f"`{name} {value}`" if takes_value and value else f"`{name}`" for name in names]
    return ", ".join(shown).replace("|", "\\|")


def explained(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    """Return the help of an argument, with its default."""
    text = (action.help or "") % {**vars(action), "prog": parser.prog}
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    main()
