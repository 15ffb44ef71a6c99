"""Owns the chat: a question in, the answer alone out."""

from collections.abc import Callable, Iterator, Sequence

from rustgpt.errors import DataError
from rustgpt.text.dataset import chat_prompt
from rustgpt.text.tokenizer import WordTokenizer


class Chat:
    """A conversation in which every question stands by itself.

    Parameters
    ----------
    tokenizer
        Of the model.
    max_seq_len
        The most tokens that the model sees at once.
    generate
        Continues a list of token ids; see `LLM.stream`.
    """

    def __init__(
        self,
        tokenizer: WordTokenizer,
        max_seq_len: int,
        generate: Callable[[Sequence[int]], Iterator[int]],
    ) -> None:
        self._tokenizer = tokenizer
        self._max_seq_len = max_seq_len
        self._generate = generate

    def send(self, question: str) -> str:
        """Ask, and return the answer: no prompt, no "Assistant:", no end mark.

        Raises
        ------
        DataError
            If the question leaves no room for an answer in the model's context.
        """
        ids = self._tokenizer.encode(chat_prompt(question.strip()))
        if len(ids) >= self._max_seq_len:
            raise DataError(
                f"the question has {len(ids)} tokens with its frame, but the model sees "
                f"{self._max_seq_len} at once: ask a shorter one"
            )
        return self._tokenizer.decode(list(self._generate(ids))).strip()
