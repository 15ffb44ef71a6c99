"""Owns the tokenizer in a GGUF file, as a `tokenizer.json`; and where texts begin and end."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from rustgpt.errors import TokenizerError
from rustgpt.formats.chat_template_jinja import template_of
from rustgpt.formats.gguf_file import GgufFile
from rustgpt.formats.gguf_sentence import sentence_json
from rustgpt.formats.gguf_types import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from rustgpt.formats.hf_tokenizer import ReadTokenizer
from rustgpt.text.library_json import added_token, bpe_json, read_library
from rustgpt.text.tokens import PieceTokenizer

PREFIX: Final = "tokenizer.ggml."
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
    if kind not in KINDS:
        raise TokenizerError(
            f"its tokenizer is of the kind {kind!r:.40}; these can be read: 'gpt2', which is "
            "byte-level BPE, and 'llama', BPE as SentencePiece has it"
        )
    read, bos, end = KINDS[kind]
    tokens, types = _tokens(file)
    ends = [
        i for name, default in (("eos", end), ("eot", -1), ("eom", -1))
        if (i := _id(file, f"{name}_token_id", len(tokens), default)) >= 0
    ]  # fmt: skip
    bos_id = _id(file, "bos_token_id", len(tokens), bos)
    types[[i for i in (*ends, bos_id) if i >= 0]] = CONTROL
    content, begins = read(file, tokens, types)
    tokenizer = read_library(content, tokens[ends[0]] if ends else None, len(tokens))
    begins = _get(file, "add_bos_token", bool, begins)
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
    for wrong in {*types.tolist()} - {*range(NORMAL, BYTE + 1)}:
        raise TokenizerError(f"its tokenizer has tokens of type {wrong}, which is not known here")
    return tokens, types


def _added(tokens: list[str], types: Any) -> list[dict[str, Any]]:
    """Return the tokens that are not made of others."""
    which = np.flatnonzero(np.isin(types, (UNKNOWN, CONTROL, USER_DEFINED, UNUSED))).tolist()
    return [added_token(i, tokens[i], bool(types[i] != USER_DEFINED)) for i in which]


def _byte_level(file: GgufFile, tokens: list[str], types: Any) -> tuple[dict[str, Any], bool]:
    """Return byte-level BPE as a `tokenizer.json`, and whether texts begin with a token."""
    cut = _get(file, "pre", str, "default")
    if cut not in KNOWN_CUTS:
        raise TokenizerError(
            f"how its tokenizer cuts texts is called {cut!r:.40}, which is not known here; known "
            f"are {', '.join(KNOWN_CUTS)}"
        )
    merges = _get(file, "merges", list, None)
    if not isinstance(merges, list) or not all(isinstance(merge, str) for merge in merges):
        raise TokenizerError("its tokenizer lacks the list of merges")
    _get(file, "add_space_prefix", bool, False)  # which llama.cpp heeds in the other kind alone
    decoder, whole = {**LEVEL, "use_regex": True}, cut in LLAMA3
    content = bpe_json(
        tokens, merges, _added(tokens, types), pre_tokenizer=pre_tokenizer(cut), decoder=decoder,
        ignore_merges=whole,
    )  # fmt: skip
    return content, whole


def _sentence(file: GgufFile, tokens: list[str], types: Any) -> tuple[dict[str, Any], bool]:
    """Return SentencePiece's BPE as a `tokenizer.json`, and that texts begin with a token."""
    scores = file.metadata.get(PREFIX + "scores")
    if not isinstance(scores, np.ndarray) or scores.shape != types.shape:
        raise TokenizerError(f"its tokenizer must have a score for each of {len(tokens):,} tokens")
    if scores.dtype.kind != "f" or not np.isfinite(scores).all():
        raise TokenizerError("the scores of its tokens must be finite numbers")
    made = {tokens[i]: float(scores[i]) for i in np.flatnonzero(types == NORMAL).tolist()}
    prefix = _get(file, "add_space_prefix", bool, True)
    return sentence_json(tokens, made, _added(tokens, types), prefix), True


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


def _id(file: GgufFile, name: str, size: int, default: int = -1) -> int:
    """Return the number of a token that has a role; -1 if there is none."""
    found = _get(file, name, int, None)
    if found is None:
        return default
    if not 0 <= found < size:
        raise TokenizerError(f"{PREFIX}{name} must be below {size:,}, not {found}")
    return int(found)


# By "tokenizer.ggml.model": what reads it, and the tokens that begin and end texts where the file
# does not say.
KINDS: Final = {"gpt2": (_byte_level, -1, -1), "llama": (_sentence, 1, 2)}
