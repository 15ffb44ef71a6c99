"""Owns chat templates in Jinja, as other programs have them: known by their text, never run."""

from __future__ import annotations

import hashlib
import re
from typing import Final

from rustgpt.text.chat_template import RUSTGPT, TEMPLATES, UNKNOWN
from rustgpt.text.tokens import PieceTokenizer
from rustgpt.text.vocab import END

_PROMPT: Final = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
_SAID: Final = (
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
)
_CHATML: Final = "{% for message in messages %}" + _SAID + "{% endfor %}" + _PROMPT
_NO_PROMPT: Final = (
    "{% if not add_generation_prompt is defined %}"
    "{% set add_generation_prompt = false %}{% endif %}"
)
_LLAMA3: Final = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}"
)
_LLAMA3_PROMPT: Final = "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
_ZEPHYR: Final = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\\n' + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}"
)
_OURS: Final = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + ' ' }}"
    "{% else %}{{ 'System: ' + message['content'] + ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def _with_system(text: str) -> str:
    """Return the form of ChatML in which the system says something unless it is told what."""
    first = (
        "{% if loop.first and messages[0]['role'] != 'system' %}"
        f"{{{{ '<|im_start|>system\\n{text}<|im_end|>\\n' }}}}{{% endif %}}"
    )
    return "{% for message in messages %}" + first + _SAID + "{% endfor %}" + _PROMPT


# By the name in `TEMPLATES`: its texts, of which the first is the one that is written.
_TEXTS: Final[dict[str, tuple[str, ...]]] = {
    RUSTGPT: (_OURS, "{{ bos_token }}" + _OURS),
    "chatml": (_CHATML, _NO_PROMPT + _CHATML),
    **{
        name: (_with_system(template.default_system),)
        for name, template in TEMPLATES.items()
        if template.default_system
    },
    "llama3": (
        _LLAMA3 + "{% if add_generation_prompt %}" + _LLAMA3_PROMPT + "{% endif %}",
        _LLAMA3 + _LLAMA3_PROMPT,
    ),
    "zephyr": (_ZEPHYR,),
}
# Long texts, most of it about tools, by the SHA-256 of `_normal_form`.
_LONG: Final = {
    "a90800887cc9228cb63c6c59f1d5eae0bd385d32ba1fac569507ba484be52f1d": "qwen2.5",
}
_BOS: Final = {"llama3": "<|begin_of_text|>"}  # what `bos_token` must be
_PARTS: Final = re.compile(r"(\{%.*?%\}|\{\{.*?\}\}|\{#.*?#\})", re.DOTALL)
_LITERAL: Final = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""", re.DOTALL)
_TRIM: Final = re.compile(r"^[-+]|-$")
_FREE_SPACE: Final = re.compile(r"(?<=\w) (?=\W)|(?<=\W) (?=\w)|(?<=[][()+|]) | (?=[][()+|])")


def template_of(source: str | None, tokenizer: PieceTokenizer, bos_id: int) -> str:
    """Return the name in `TEMPLATES` of a model's chat template, or "unknown".

    Parameters
    ----------
    source
        What its file has; None for a model that has none: its dialogues are plain text.
    bos_id
        The token that the template calls `bos_token`; -1 if there is none.
    """
    if source is None:
        return RUSTGPT
    specials = tokenizer.special_ids
    bos = next((name for name, i in specials.items() if i == bos_id), None)
    name = recognised(source, bos)
    known = name != UNKNOWN and TEMPLATES[name].end in {END, *specials}
    return name if known else UNKNOWN


def recognised(source: str, bos: str | None = None) -> str:
    """Return the name in `TEMPLATES` of a chat template in Jinja, or "unknown".

    It is known by its text alone, in which white space and quotes that change nothing may differ.

    Parameters
    ----------
    source
        The text.
    bos
        The name of the token with which texts begin, which a template calls `bos_token`.
    """
    form = _normal_form(source)
    name = _known().get(form) or _LONG.get(hashlib.sha256(form.encode()).hexdigest(), UNKNOWN)
    return UNKNOWN if bos not in (None, _BOS.get(name, bos)) else name


def written(name: str, begins: bool) -> str | None:
    """Return a chat template in Jinja; None if it is unknown.

    Parameters
    ----------
    begins
        Whether the model's texts begin with a token of their own.
    """
    if name == UNKNOWN:
        return None
    return _TEXTS[name][1 if begins and name == RUSTGPT else 0]


def _known() -> dict[str, str]:
    return {_normal_form(text): name for name, texts in _TEXTS.items() for text in texts}


def _normal_form(source: str) -> str:
    """Return a text that two templates share only if both give the same, whatever is said.

    As transformers and llama.cpp have it, a line break behind a statement is dropped, and so is
    white space before one where nothing else stands before it in its line.
    """
    parts = _PARTS.split(source.replace("\r\n", "\n").removesuffix("\n"))
    line_begins = True
    for i in range(1, len(parts), 2):
        tag = parts[i]
        parts[i - 1] = _before(parts[i - 1], tag, line_begins)
        after = parts[i + 1]
        if tag[-3] == "-":
            parts[i + 1] = after.lstrip()
        elif tag[-2] != "}":
            parts[i + 1] = after.removeprefix("\n")
        line_begins = after[: len(after) - len(parts[i + 1])].endswith("\n")
    return "".join(_plain(part) if i % 2 else part for i, part in enumerate(parts))


def _before(text: str, tag: str, line_begins: bool) -> str:
    """Return what is left of the text before a tag."""
    if tag[2] == "-":
        return text.rstrip()
    line = text.rpartition("\n")[2]
    if tag[1] == "{" or tag[2] == "+" or line.strip() or not (line_begins or "\n" in text):
        return text
    return text.removesuffix(line)


def _plain(tag: str) -> str:
    """Return a tag with white space and quotes as `_normal_form` has them."""
    if tag[1] == "#":
        return ""
    parts = _LITERAL.split(_TRIM.sub("", tag[2:-2]))
    for i, part in enumerate(parts):
        if i % 2:
            text = part[1:-1].replace("\n", "\\n")
            plain = not {"'", '"', "\\"} & {*text.replace("\\n", "")}
            parts[i] = f"'{text}'" if plain else part
        elif "'" in part or '"' in part:
            return tag  # a literal that does not end
        else:
            part = re.sub(r"\bmessage\.(role|content)\b", r"message['\1']", part)
            parts[i] = _FREE_SPACE.sub("", re.sub(r"\s+", " ", part.strip()))
    return tag[:2] + "".join(parts) + tag[-2:]
