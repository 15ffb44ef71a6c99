"""Owns the tokenizer of a folder of Hugging Face: its files, and where texts begin and end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from rustgpt.errors import TokenizerError
from rustgpt.formats.chat_template_jinja import recognised
from rustgpt.formats.json_file import read_object, read_text
from rustgpt.text.chat_template import RUSTGPT, UNKNOWN
from rustgpt.text.library_json import added_token, bpe_json, first_id, read_library
from rustgpt.text.tokens import PieceTokenizer

FILE: Final = "tokenizer.json"
VOCAB: Final = "vocab.json"
MERGES: Final = "merges.txt"
SETTINGS: Final = "tokenizer_config.json"
SPECIAL: Final = "special_tokens_map.json"
TEMPLATE: Final = "chat_template.jinja"
GENERATION: Final = "generation_config.json"
# Of what vocab.json and merges.txt alone tell enough: the rule that cuts texts is GPT-2's.
GPT2: Final = (None, "GPT2Tokenizer", "GPT2TokenizerFast")
GPT2_END: Final = "<|endoftext|>"


class ReadTokenizer(NamedTuple):
    """A tokenizer, and what its folder says of the beginning and the end of texts.

    Parameters
    ----------
    tokenizer
        Ours.
    bos_id
        The token with which texts begin; -1 if they begin with a word.
    end_ids
        The tokens with which they end, the tokenizer's own among them.
    """

    tokenizer: PieceTokenizer
    bos_id: int
    end_ids: tuple[int, ...]


def read_folder(folder: Path, size: int | None, config: Mapping[str, Any]) -> ReadTokenizer:
    """Read the tokenizer of a folder.

    Parameters
    ----------
    size
        V, the tokens of the model.
    config
        What is in config.json.

    Raises
    ------
    TokenizerError
        If there is none, or it is damaged or none that can be read.
    """
    settings = read_object(folder / SETTINGS, TokenizerError, missing={})
    special = read_object(folder / SPECIAL, TokenizerError, missing={})
    generation = read_object(folder / GENERATION, TokenizerError, missing={})
    names = {**_names(special, folder / SPECIAL), **_names(settings, folder / SETTINGS)}
    if (folder / FILE).exists():
        path, content = folder / FILE, read_object(folder / FILE, TokenizerError)
    else:
        path, content = folder / VOCAB, _from_vocab(folder, settings, names)
    try:
        tokenizer = read_library(content, names.get("eos_token"), size)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None
    if size is not None and tokenizer.vocab_size != size:
        raise TokenizerError(f"{path} has {tokenizer.vocab_size:,} tokens, but the model {size:,}")
    ends = [tokenizer.end_id, *_ids(generation if "eos_token_id" in generation else config)]
    ends = [i for i in dict.fromkeys(ends) if 0 <= i < tokenizer.vocab_size]
    asked = settings.get("add_bos_token")
    if asked is not None and not isinstance(asked, bool):
        raise TokenizerError(f"{folder / SETTINGS}: add_bos_token must be true or false")
    bos_id = first_id(content) if asked is None else _named_bos(tokenizer, asked, names, folder)
    if not -1 <= bos_id < tokenizer.vocab_size:
        raise TokenizerError(f"{path}: texts begin with {bos_id!r:.30}, which is no token of it")
    return ReadTokenizer(tokenizer, bos_id, tuple(ends))


def read_template(folder: Path, bos: str | None) -> str:
    """Return the name of a folder's chat template, which is known by its text and never run.

    Parameters
    ----------
    bos
        The name of the token with which texts begin.

    Raises
    ------
    TokenizerError
        If its file cannot be read.
    """
    if (folder / TEMPLATE).exists():
        return recognised(read_text(folder / TEMPLATE, TokenizerError), bos)
    found = read_object(folder / SETTINGS, TokenizerError, missing={}).get("chat_template")
    if isinstance(found, list):  # of several, by name
        named = [t for t in found if isinstance(t, dict) and t.get("name") == "default"]
        found = named[0].get("template") if named else ""
    if found is None:
        return RUSTGPT
    return recognised(found, bos) if isinstance(found, str) else UNKNOWN


def _names(content: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Return the special tokens that a file names: text, or an object with its "content"."""
    found = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = content.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None and not (isinstance(token, str) and token):
            raise TokenizerError(f"{path}: {name} must be a text, not {token!r:.60}")
        if token is not None:
            found[name] = token
    return found


def _ids(content: Mapping[str, Any]) -> list[int]:
    """Return the tokens that a file says end a text."""
    found = content.get("eos_token_id")
    return [i for i in (found if isinstance(found, list) else [found]) if type(i) is int]


def _named_bos(
    tokenizer: PieceTokenizer, asked: bool, names: Mapping[str, str], folder: Path
) -> int:
    """Return the token that the settings put before each text, or -1."""
    name = names.get("bos_token")
    if not asked or name is None:
        return -1
    if name not in tokenizer.special_ids:
        raise TokenizerError(f"{folder / SETTINGS}: bos_token {name!r:.60} is no special token")
    return tokenizer.special_ids[name]


def _from_vocab(
    folder: Path, settings: Mapping[str, Any], names: Mapping[str, str]
) -> dict[str, Any]:
    """Return the tokenizer.json that vocab.json and merges.txt stand for."""
    if not (folder / VOCAB).exists():
        raise TokenizerError(
            f"{folder} holds no tokenizer: neither {FILE} nor {VOCAB} and {MERGES}; save it there "
            "with tokenizer.save_pretrained(FOLDER) of transformers"
        )
    kind = settings.get("tokenizer_class")
    if kind not in GPT2:
        raise TokenizerError(
            f"{folder}: {VOCAB} and {MERGES} do not tell how a {kind!s:.60} cuts texts: save it "
            f"with transformers, whose tokenizer.save_pretrained(FOLDER) writes {FILE}"
        )
    vocab = read_object(folder / VOCAB, TokenizerError)
    if not all(type(i) is int and 0 <= i < 2**31 for i in vocab.values()):
        raise TokenizerError(f"{folder / VOCAB}: each token must have a number")
    lines = read_text(folder / MERGES, TokenizerError).split("\n")
    merges = [line.removesuffix("\r") for line in lines if not line.startswith("#version")]
    special = {names.get("eos_token", GPT2_END), *names.values()}
    named = special & vocab.keys()
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    prefix = bool(settings.get("add_prefix_space", False))
    found = bpe_json(
        [], [line for line in merges if line],
        [added_token(i, token) for i, token in sorted((vocab[name], name) for name in named)],
        pre_tokenizer={**byte_level, "add_prefix_space": prefix},
        decoder={**byte_level, "add_prefix_space": True},
    )  # fmt: skip
    found["model"]["vocab"] = vocab
    return found
