"""Owns what a GGUF file that we write says of a model: its form, tokenizer and chat template."""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

from rustgpt.config import ModelConfig
from rustgpt.errors import CheckpointError, TokenizerError
from rustgpt.formats import gguf_tokenizer as reader
from rustgpt.formats.chat_template_jinja import written
from rustgpt.formats.gguf_sentence import describe_sentence
from rustgpt.formats.gguf_tokenizer import pre_tokenizer
from rustgpt.formats.gguf_types import CONTROL, NORMAL, UNUSED, USER_DEFINED
from rustgpt.text.bpe_tokenizer import BpeTokenizer
from rustgpt.text.library import UNUSED as FILLED
from rustgpt.text.sentence_tokenizer import SentenceTokenizer
from rustgpt.text.text_format import TextFormat

LLAMA: Final = {"norm_type": "rms_norm", "positions": "rotary", "activation": "swiglu"}
GPT2: Final = {"norm_type": "layer_norm", "positions": "learned", "activation": "gelu"}
ENDS: Final = ("eos", "eot", "eom")  # what a file can name of tokens that end a text


def architecture_of(config: ModelConfig) -> str:
    """Return the architecture of llama.cpp that computes as a model does, or raise CheckpointError.

    Its bias of the output projection must be gone before.
    """
    forms = {"llama": LLAMA, "gpt2": GPT2}
    kinds = [kind for kind, form in forms.items() if {k: getattr(config, k) for k in form} == form]
    if not kinds:
        _refuse(", ".join(f"{key} {getattr(config, key)}" for key in GPT2))
    if config.norm != "pre":
        _refuse(f"norm {config.norm}")
    if kinds == ["gpt2"] and config.n_kv_heads != config.n_heads:
        _refuse(f"{config.n_kv_heads} heads of keys for {config.n_heads}")
    return kinds[0]


def _refuse(what: str) -> NoReturn:
    raise CheckpointError(
        f"llama.cpp has no model that computes as this one does, with {what}: it has GPT-2's form "
        "(layer_norm, learned, gelu, norm pre) and Llama's (rms_norm, rotary, swiglu, norm pre); "
        "train one of these, with --preset gpt2 or --preset llama-tiny"
    )


def describe(writer: Any, config: ModelConfig, vocab_size: int) -> None:
    """Tell a writer of the package `gguf` of a model's form."""
    writer.add_context_length(config.max_seq_len)
    writer.add_embedding_length(config.embedding_dim)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_head_count(config.n_heads)
    if writer.arch == "gpt2":
        writer.add_layer_norm_eps(config.norm_epsilon)
        return
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_rope_dimension_count(config.embedding_dim // config.n_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(vocab_size)
    if config.rope_scaling == "linear":
        writer.add_string("llama.rope.scaling.type", "linear")
        writer.add_rope_scaling_factor(config.rope_factor)
    if config.rope_scaling == "llama3":  # the rest is in a tensor
        original = config.rope_original_max_seq_len or config.max_seq_len
        writer.add_rope_scaling_orig_ctx_len(original)


def describe_texts(writer: Any, texts: TextFormat, end_ids: tuple[int, ...]) -> None:
    """Tell a writer of a model's tokenizer, and of how its texts and dialogues begin and end.

    Raises
    ------
    TokenizerError
        If llama.cpp would give other tokens.
    """
    tokenizer = texts.tokenizer
    if not isinstance(tokenizer, (BpeTokenizer, SentenceTokenizer)):
        raise TokenizerError(
            f"a {type(tokenizer).__name__} cannot be written as GGUF: of our tokenizers llama.cpp "
            "has BPE alone; train with --tokenizer bpe"
        )
    content = json.loads(tokenizer.to_json())
    tokens, types = _tokens(content, tokenizer.vocab_size)
    ends = [*dict.fromkeys((tokenizer.end_id, *end_ids))]
    if len(ends) > len(ENDS):
        raise TokenizerError(
            f"the model has {len(ends)} tokens that end a text: GGUF can name {len(ENDS)}"
        )
    if isinstance(tokenizer, SentenceTokenizer):
        describe_sentence(writer, content, tokens, types)
    else:
        _describe_byte_level(writer, content)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for name, i in zip(ENDS, ends, strict=False):
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", i)
    writer.add_pad_token_id(tokenizer.end_id)
    bos = texts.bos
    writer.add_bos_token_id(bos[0] if bos else tokenizer.end_id)
    writer.add_add_bos_token(bool(bos))
    template = written(texts.template, bool(bos))
    if template is not None:
        writer.add_chat_template(template)


def _describe_byte_level(writer: Any, content: dict[str, Any]) -> None:
    merges = content["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_cut(content))
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_add_space_prefix(False)


def _tokens(content: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Return the tokens and the type of each."""
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [UNUSED] * size
    for token, i in content["model"]["vocab"].items():
        tokens[i], types[i] = token, NORMAL
    for token in content["added_tokens"]:
        i, name = token["id"], token["content"]
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise TokenizerError(
                f"the added token {name!r:.60} takes white space beside it, or stands by itself "
                "alone, which GGUF cannot express"
            )
        filled = name == FILLED.format(i)
        tokens[i] = name
        types[i] = UNUSED if filled else CONTROL if token["special"] else USER_DEFINED
    return tokens, types


def _cut(content: dict[str, Any]) -> str:
    """Return what llama.cpp calls the rule that cuts texts, or raise TokenizerError."""
    found = _essential(content["pre_tokenizer"])
    whole = bool(content["model"].get("ignore_merges"))
    known = (reader.GPT2, reader.DIGITS, reader.LLAMA3, reader.QWEN2)
    for name, *_ in known if content["normalizer"] is None else ():
        if found == _essential(pre_tokenizer(name)) and whole == (name in reader.LLAMA3):
            return name
    raise TokenizerError(
        "how the tokenizer cuts or changes texts has no name in llama.cpp that is known here: it "
        "must be that of GPT-2, SmolLM, Llama 3 or Qwen 2, and leave the texts as they are"
    )


def _essential(part: Any) -> Any:
    """Return the settings of what cuts texts without one that changes no token."""
    if isinstance(part, dict):
        return {key: _essential(value) for key, value in part.items() if key != "trim_offsets"}
    return [_essential(one) for one in part] if isinstance(part, list) else part
