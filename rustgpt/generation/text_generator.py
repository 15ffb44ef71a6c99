"""Owns how a model continues a text, and how one talks to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from rustgpt.backend import single_threaded_blas
from rustgpt.generation.chat import Chat
from rustgpt.generation.decoding import generate_ids
from rustgpt.generation.sampling import check_sampling
from rustgpt.layers.cache import Cache
from rustgpt.layers.memory import Array, Indices
from rustgpt.text.tokenizer import Tokenizer, token_ids


class TextGenerator:
    """What a model does with texts: `LLM` is one, and says how tokens are decoded."""

    tokenizer: Tokenizer

    @property
    def max_seq_len(self) -> int:
        """The most tokens that the model sees at once."""
        raise NotImplementedError

    def _decode(self, rows: list[Indices], cache: Cache, slots: list[int]) -> Array:
        """Continue texts in a cache; return (B, V) the scores of what may follow."""
        raise NotImplementedError

    @property
    def add_bos_token(self) -> bool:
        """Whether a prompt begins with the end token."""
        raise NotImplementedError

    def prompt_ids(self, text: str) -> list[int]:
        """Return the token ids of a prompt; TokenizerError if it is not text."""
        return [self.tokenizer.end_id] * self.add_bos_token + self.tokenizer.encode(text)

    def stream(
        self,
        prompt: Sequence[int],
        max_new_tokens: int = 60,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[int]:
        """Yield the tokens that follow the prompt's, as they are made; see `generate`.

        Raises
        ------
        ConfigError, TokenizerError
            At once, if a setting is out of range or an id is not in the vocabulary.
        """
        return self._stream(prompt, max_new_tokens, temperature, seed, waits=True)

    def _stream(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        temperature: float,
        seed: int,
        waits: bool,
    ) -> Iterator[int]:
        check_sampling(max_new_tokens, temperature, seed)
        ids = token_ids(prompt, self.tokenizer.vocab_size).tolist() or [self.tokenizer.end_id]
        return self._tokens(ids, max_new_tokens, temperature, seed, waits)

    def _tokens(
        self, ids: list[int], max_new_tokens: int, temperature: float, seed: int, waits: bool
    ) -> Iterator[int]:
        one_thread = single_threaded_blas()

        def decode(fresh: Sequence[int], cache: Cache) -> Array:
            logits: Array = self._decode([np.array(fresh, np.int32)], cache, [0])[0]
            return logits

        def limited(fresh: Sequence[int], cache: Cache) -> Array:
            with one_thread:  # not while whoever reads the stream does other things
                return decode(fresh, cache)

        return generate_ids(
            limited if waits else decode,
            self.max_seq_len,
            ids,
            max_new_tokens,
            self.tokenizer.end_id,
            temperature,
            seed,
        )

    def generate(
        self, prompt: str, max_new_tokens: int = 60, temperature: float = 0.0, seed: int = 0
    ) -> str:
        """Continue a text as it is, and return what follows it.

        Parameters
        ----------
        prompt
            The text; of one longer than the context, the end is seen.
        max_new_tokens
            The most tokens to make; fewer if the model ends the text.
        temperature
            0 for the likeliest token each time; higher is more varied.
        seed
            The same seed gives the same text.

        Raises
        ------
        ConfigError
            If `max_new_tokens` or `seed` is not a whole number from 0 on, or `temperature` is
            negative or not finite.
        TokenizerError
            If the prompt is not text.
        """
        ids = self.prompt_ids(prompt)
        made = self._made(ids, max_new_tokens, temperature, seed)
        return self.tokenizer.decode(made, after=ids)

    def _made(
        self, ids: Sequence[int], max_new_tokens: int, temperature: float, seed: int
    ) -> list[int]:
        """Return all that `stream` yields."""
        with single_threaded_blas():
            return list(self._stream(ids, max_new_tokens, temperature, seed, waits=False))

    def chat(self, max_new_tokens: int = 60, temperature: float = 0.0, seed: int = 0) -> Chat:
        """Return a chat whose `send` asks a question and returns the answer alone.

        Raises
        ------
        ConfigError
            As `generate`.
        """
        check_sampling(max_new_tokens, temperature, seed)
        return Chat(
            self.prompt_ids,
            self.tokenizer.decode,
            self.max_seq_len,
            lambda ids: self._made(ids, max_new_tokens, temperature, seed),
        )
