"""Owns files of the library `tokenizers`: which tokenizer of ours each is, and ours as such."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

from rustgpt.text.bpe_tokenizer import BpeTokenizer
from rustgpt.text.char_tokenizer import FIRST_CHARACTER, ByteTokenizer, CharTokenizer
from rustgpt.text.sentence_tokenizer import SentenceTokenizer, is_sentence
from rustgpt.text.tokens import PieceTokenizer
from rustgpt.text.vocab import END

Content = dict[str, Any]
BYTES: Final = tuple(f"<0x{byte:02X}>" for byte in range(256))


def from_library(content: Content) -> CharTokenizer | ByteTokenizer | None:
    """Return our tokenizer of what `characters_json` has written; None if it is none of these."""
    model = content.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict) or [*vocab][:FIRST_CHARACTER] != [END, *BYTES]:
        return None
    characters = "".join([*vocab][FIRST_CHARACTER:])
    written = characters_json(characters)
    if any(content.get(name) != written[name] for name in written if name != "post_processor"):
        return None
    return CharTokenizer(characters) if characters else ByteTokenizer()


def read_library(
    content: Content, end: str | None = None, size: int | None = None
) -> PieceTokenizer:
    """Return our tokenizer of a file of the library.

    Parameters
    ----------
    end, size
        As of `LibraryTokenizer`.

    Raises
    ------
    TokenizerError
        If it is none that can be read.
    """
    if found := from_library(content):
        return found
    return (SentenceTokenizer if is_sentence(content) else BpeTokenizer)(content, end, size)


def characters_json(characters: str) -> Content:
    """Return what gives each of these characters a token, and any other one its bytes.

    That is a BPE which merges nothing.
    """
    return bpe_json(
        [END, *BYTES, *characters], [], [added_token(0, END)],
        decoder={"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        byte_fallback=True,
    )  # fmt: skip


def added_token(token_id: int, name: str, special: bool = True) -> Content:
    """Return a token that is not made of others, as a `tokenizer.json` has it."""
    return {
        "id": token_id, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
        "normalized": False, "special": special,
    }  # fmt: skip


def bpe_json(
    tokens: Iterable[str],
    merges: Sequence[Any],
    added: Sequence[Content],
    *,
    decoder: Content,
    normalizer: Content | None = None,
    pre_tokenizer: Content | None = None,
    **model: Any,
) -> Content:
    """Return a `tokenizer.json` of a BPE; `model` is what of it is otherwise than usual."""
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [*added],
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": None,
        "decoder": decoder,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False, **model,
            "vocab": {token: i for i, token in enumerate(tokens)}, "merges": [*merges],
        },
    }  # fmt: skip


def beginning_json(name: str, bos_id: int) -> Content:
    """Return what puts a token before each text."""
    special, text = {"SpecialToken": {"id": name, "type_id": 0}}, {"id": "A", "type_id": 0}
    other = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [special, {"Sequence": text}],
        "pair": [special, {"Sequence": text}, other],
        "special_tokens": {name: {"id": name, "ids": [bos_id], "tokens": [name]}},
    }


def first_id(content: Content) -> int:
    """Return the token that a `tokenizer.json` puts before each text, or -1."""
    post = content.get("post_processor")
    found = post.get("processors") if isinstance(post, dict) else None
    for each in found if isinstance(found, list) else [post]:
        if isinstance(each, dict) and each.get("type") == "TemplateProcessing":
            with suppress(LookupError, TypeError):  # which the library has found sound
                name = each["single"][0]["SpecialToken"]["id"]
                found = each["special_tokens"][name]["ids"][0]
                return found if type(found) is int else -1
    return -1
