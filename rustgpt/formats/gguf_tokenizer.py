"""Owns the tokenizer in a GGUF file, as a `tokenizer.json`; and where texts begin and end."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from rustgpt.errors import TokenizerError
from rustgpt.formats.chat_template_jinja import template_of
from rustgpt.formats.gguf_file import GgufFile
from rustgpt.formats.hf_tokenizer import ReadTokenizer
from rustgpt.text.bpe_tokenizer import BpeTokenizer
from rustgpt.text.tokens import PieceTokenizer

PREFIX: Final = "tokenizer.ggml."
NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 3, 4, 5, 6  # types of tokens
_END: Final = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
LLAMA3_CUT: Final = _WORDS + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _END
QWEN2_CUT: Final = _WORDS + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _END
# How texts are cut before pairs are merged, by "tokenizer.ggml.pre".
GPT2: Final = ("gpt-2", "jina-es", "jina-de", "mpt", "phi-2", "gigachat")
DIGITS: Final = ("smollm", "starcoder", "refact", "command-r", "codeshell")
LLAMA3: Final = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral")
QWEN2: Final = ("qwen2", "deepseek-r1-qwen", "stablelm2")
KNOWN_CUTS: Final = (*GPT2, *DIGITS, *LLAMA3, *QWEN2)
LEVEL: Final = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def read_tokenizer(file: GgufFile) -> ReadTokenizer:
    """Return the tokenizer of a file, or raise TokenizerError."""
    try:
        return _read(file)
    except TokenizerError as error:
        raise TokenizerError(f"{file.path}: {error}") from None


def read_template(file: GgufFile, tokenizer: PieceTokenizer) -> str:
    """Return the name of the model's chat template; see `ModelConfig.chat_template`."""
    source = file.metadata.get("tokenizer.chat_template")
    if source is not None and not isinstance(source, str):
        raise TokenizerError(f"{file.path}: tokenizer.chat_template must be a text")
    return template_of(source, tokenizer, _id(file, "bos_token_id", tokenizer.vocab_size))


def _read(file: GgufFile) -> ReadTokenizer:
    kind = _get(file, "model", str, None)
    if kind != "gpt2":
        raise TokenizerError(
            f"its tokenizer is of the kind {kind!r:.40}; only byte-level BPE, called 'gpt2', can "
            "be read"
        )
    cut = _get(file, "pre", str, "default")
    if cut not in KNOWN_CUTS:
        raise TokenizerError(
            f"how its tokenizer cuts texts is called {cut!r:.40}, which is not known here; known "
            f"are {', '.join(KNOWN_CUTS)}"
        )
    tokens, types = _tokens(file)
    ends = [
        i for name in ("eos_token_id", "eot_token_id", "eom_token_id")
        if (i := _id(file, name, len(tokens))) >= 0
    ]  # fmt: skip
    bos_id = _id(file, "bos_token_id", len(tokens))
    types[[i for i in (*ends, bos_id) if i >= 0]] = CONTROL
    content = _content(file, tokens, types, cut)
    end = tokens[ends[0]] if ends else None
    tokenizer = BpeTokenizer(content, end, len(tokens))
    begins = _get(file, "add_bos_token", bool, cut in LLAMA3)
    return ReadTokenizer(
        tokenizer, bos_id if begins else -1, tuple(dict.fromkeys(ends or [tokenizer.end_id]))
    )


def _tokens(file: GgufFile) -> tuple[list[str], Any]:
    """Return the tokens, and the type of each."""
    tokens = _get(file, "tokens", list, None)
    if not tokens or not all(isinstance(token, str) for token in tokens):
        raise TokenizerError("its tokenizer lacks the list of tokens")
    if len({*tokens}) != len(tokens):
        raise TokenizerError("its tokenizer has a token twice")
    types = file.metadata.get(PREFIX + "token_type")
    if types is None:
        types = np.full(len(tokens), NORMAL)
    if not isinstance(types, np.ndarray) or types.shape != (len(tokens),):
        raise TokenizerError(f"its tokenizer must have a type for each of {len(tokens):,} tokens")
    types = types.astype(np.int64)
    for wrong in {*types.tolist()} - {NORMAL, CONTROL, USER_DEFINED, UNUSED, BYTE}:
        raise TokenizerError(f"its tokenizer has tokens of type {wrong}, which is not known here")
    return tokens, types


def _content(file: GgufFile, tokens: list[str], types: Any, cut: str) -> dict[str, Any]:
    """Return the `tokenizer.json` of a tokenizer."""
    merges = _get(file, "merges", list, None)
    if not isinstance(merges, list) or not all(isinstance(merge, str) for merge in merges):
        raise TokenizerError("its tokenizer lacks the list of merges")
    added = [
        {
            "id": i, "content": tokens[i], "special": types[i] != USER_DEFINED,
            "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
        }
        for i in np.flatnonzero(np.isin(types, (CONTROL, USER_DEFINED, UNUSED))).tolist()
    ]  # fmt: skip
    for token in added:
        token["special"] = bool(token["special"])
    _get(file, "add_space_prefix", bool, False)  # which llama.cpp heeds in other kinds alone
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer(cut),
        "post_processor": None,
        "decoder": {**LEVEL, "use_regex": True},
        "model": {
            "type": "BPE", "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": cut in LLAMA3,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": merges,
        },
    }  # fmt: skip


def pre_tokenizer(cut: str) -> dict[str, Any]:
    """Return what cuts texts by a rule of `KNOWN_CUTS`, in the form of the package `tokenizers`."""
    if cut in GPT2:
        return {**LEVEL, "use_regex": True}
    if cut in DIGITS:
        first: dict[str, Any] = {"type": "Digits", "individual_digits": True}
        return {"type": "Sequence", "pretokenizers": [first, {**LEVEL, "use_regex": True}]}
    pattern = LLAMA3_CUT if cut in LLAMA3 else QWEN2_CUT
    first = {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip
    return {"type": "Sequence", "pretokenizers": [first, {**LEVEL, "use_regex": False}]}


def _get(file: GgufFile, name: str, kind: type, default: Any) -> Any:
    """Return an entry about the tokenizer, of a type; None or the default if there is none."""
    value = file.metadata.get(PREFIX + name, default)
    if value is not None and type(value) is not kind:
        raise TokenizerError(f"{PREFIX}{name} must be {kind.__name__}, not {value!r:.40}")
    return value


def _id(file: GgufFile, name: str, size: int) -> int:
    """Return the number of a token that has a role; -1 if there is none."""
    found = _get(file, name, int, None)
    if found is None:
        return -1
    if not 0 <= found < size:
        raise TokenizerError(f"{PREFIX}{name} must be below {size:,}, not {found}")
    return int(found)
