"""Owns the chat: a question in, the answer alone out."""

from collections.abc import Callable, Sequence

from rustgpt.errors import DataError, TokenizerError
from rustgpt.text.dialogue import chat_prompt


class Chat:
    """A conversation in which every question stands by itself.

    Parameters
    ----------
    encode
        Returns the token ids of a prompt.
    decode
        Returns the text of token ids.
    max_seq_len
        The most tokens that the model sees at once.
    generate
        Returns what follows a list of token ids; see `LLM.stream`.
    """

    def __init__(
        self,
        encode: Callable[[str], Sequence[int]],
        decode: Callable[[Sequence[int]], str],
        max_seq_len: int,
        generate: Callable[[Sequence[int]], Sequence[int]],
    ) -> None:
        self._encode = encode
        self._decode = decode
        self._max_seq_len = max_seq_len
        self._generate = generate

    def send(self, question: str) -> str:
        """Ask, and return the answer: no prompt, no "Assistant:", no end mark.

        Raises
        ------
        DataError
            If the question leaves no room for an answer in the model's context.
        TokenizerError
            If it is not text.
        """
        if not isinstance(question, str):
            raise TokenizerError(f"a question must be text, not {type(question).__name__}")
        ids = self._encode(chat_prompt(question.strip()))
        if len(ids) >= self._max_seq_len:
            raise DataError(
                f"the question has {len(ids)} tokens with its frame, but the model sees "
                f"{self._max_seq_len} at once: ask a shorter one"
            )
        return self._decode(self._generate(ids)).strip()
