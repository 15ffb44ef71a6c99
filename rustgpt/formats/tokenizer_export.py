"""Owns our tokenizers as files that transformers opens."""

from __future__ import annotations

from typing import Any

from rustgpt.errors import TokenizerError
from rustgpt.formats.chat_template_jinja import written
from rustgpt.text.char_tokenizer import ByteTokenizer, CharTokenizer
from rustgpt.text.chat_template import UNKNOWN
from rustgpt.text.library import LibraryTokenizer
from rustgpt.text.library_json import beginning_json, characters_json, first_id
from rustgpt.text.tokenizer import Tokenizer

Content = dict[str, Any]


def library_json(
    tokenizer: Tokenizer, bos_id: int | None, length: int, template: str = UNKNOWN
) -> tuple[Content, Content]:
    """Return the tokenizer.json and tokenizer_config.json that give the same ids and texts.

    Parameters
    ----------
    bos_id
        The token with which each text begins; None for none.
    length
        The most tokens that the model sees.
    template
        The name of its chat template.

    Raises
    ------
    TokenizerError
        If the library cannot express the tokenizer.
    """
    if isinstance(tokenizer, LibraryTokenizer):
        content = tokenizer.library_content()
    elif isinstance(tokenizer, CharTokenizer):
        content = characters_json(tokenizer.characters)
    elif isinstance(tokenizer, ByteTokenizer):
        content = characters_json("")
    else:
        raise TokenizerError(
            f"a {type(tokenizer).__name__} cannot be written for other programs: where spaces "
            "stand between its words, and how it spells those that it does not know, their "
            "tokenizers cannot express; train with --tokenizer bpe or --tokenizer char instead"
        )
    names = {i: name for name, i in tokenizer.special_ids.items()}
    if bos_id is not None and bos_id not in names:
        raise TokenizerError(f"token {bos_id}, with which texts begin, is no special token")
    if first_id(content) != (-1 if bos_id is None else bos_id):
        content["post_processor"] = (
            None if bos_id is None else beginning_json(names[bos_id], bos_id)
        )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": names[tokenizer.end_id],
        "pad_token": names[tokenizer.end_id],
        "model_max_length": length,
        "clean_up_tokenization_spaces": False,
    }
    if bos_id is not None:
        settings["bos_token"] = names[bos_id]
    if text := written(template, bos_id is not None):
        settings["chat_template"] = text
    return content, settings
