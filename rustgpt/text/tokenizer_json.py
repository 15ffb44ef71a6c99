"""Owns the checks of a tokenizer's JSON, as rustgpt writes it: format, version, content."""

from __future__ import annotations

import json
from typing import Any

from rustgpt.errors import TokenizerError


def read_object(text: str) -> dict[str, Any] | None:
    """Return the object that a JSON holds; None if it holds something else.

    Raises
    ------
    TokenizerError
        If it is not JSON, or a name stands twice in one object.
    """
    if not isinstance(text, str):
        raise TokenizerError(f"a tokenizer is read from text, not from {type(text).__name__}")
    try:
        content = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError, MemoryError) as error:
        raise TokenizerError(
            f"the tokenizer cannot be read as JSON: {str(error) or type(error).__name__}"
        ) from None
    return content if isinstance(content, dict) else None


def read_content(text: str, form: str, version: int, part: str, kind: type) -> Any:
    """Return what a tokenizer of rustgpt consists of, checked down to the type of its one part.

    Parameters
    ----------
    text
        The JSON.
    form, version
        The "format" that it must have, and the newest version that is known.
    part, kind
        The name and type of what is returned.

    Raises
    ------
    TokenizerError
        If anything is otherwise.
    """
    content = read_object(text) or {}
    if (found := content.get("format")) is None:
        raise TokenizerError(f'this is no tokenizer of rustgpt: it lacks "format": "{form}"')
    if found != form:
        raise TokenizerError(
            f"the tokenizer is of the format {found!r:.60}, not {form}: one of your own is read "
            "with LLM.load(folder, tokenizer=Class)"
        )
    found = content.get("version")
    if type(found) is not int or found < 1:
        raise TokenizerError('the "version" of the tokenizer must be a whole number from 1 on')
    if found > version:
        raise TokenizerError("the tokenizer was written by a newer rustgpt; please update rustgpt")
    if content.keys() != {"format", "version", part} or type(content[part]) is not kind:
        name = {list: "a list", str: "a text", int: "a number"}[kind]
        raise TokenizerError(f'a tokenizer consists of "format", "version" and {name} "{part}"')
    return content[part]


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise TokenizerError("a name stands twice in one object of the tokenizer")
    return content
