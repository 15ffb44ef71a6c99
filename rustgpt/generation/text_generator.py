"""Owns what is done with a model and texts: continue them, talk, see how likely they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from rustgpt.config import ModelConfig
from rustgpt.errors import ConfigError, DataError, check_integer
from rustgpt.generation.chat import Chat
from rustgpt.generation.continuation import Continuation, Sample, ScoredToken, scored
from rustgpt.generation.engine import SLOTS, Engine
from rustgpt.generation.request import Token
from rustgpt.generation.sampling import Likely, likeliest, log_softmax
from rustgpt.generation.sampling_config import UNSET, SamplingConfig
from rustgpt.layers.cache import Cache
from rustgpt.layers.context import Context, offsets_of
from rustgpt.layers.layer import Layer
from rustgpt.layers.memory import Array, Indices
from rustgpt.text.text_format import TextFormat
from rustgpt.text.tokenizer import Tokenizer, token_ids
from rustgpt.weights_lock import WeightsLock

ROWS: Final = 64  # of which there are logits at once, where all of a text's are needed


class TextGenerator:
    """What a model does with texts: `LLM` is one, and says how tokens are decoded.

    Whatever makes text takes `max_new_tokens`, `temperature`, `seed`, and by their names all other
    settings of a `SamplingConfig`; or one of these as `sampling`, in which what is named changes.
    """

    config: ModelConfig
    tokenizer: Tokenizer
    layers: list[Layer]
    weights_lock: WeightsLock

    @property
    def max_seq_len(self) -> int:
        """The most tokens that the model sees at once."""
        return self.config.max_seq_len

    @property
    def weights_version(self) -> int:
        """Another number whenever the weights have changed."""
        return self.weights_lock.version

    def _decode(self, rows: list[Indices], cache: Cache, slots: list[int]) -> Array:
        """Continue texts in a cache; return (B, V) the scores of what may follow."""
        raise NotImplementedError

    def logits(self, ids: Sequence[int] | Indices) -> Array:  # (T,) -> (T, V)
        """Return the scores of every token to follow each of the text's tokens."""
        raise NotImplementedError

    @property
    def text_format(self) -> TextFormat:
        """How texts and dialogues become tokens."""
        config = self.config
        bos = self.tokenizer.end_id if config.bos_token_id < 0 else config.bos_token_id
        bos_id = bos if config.add_bos_token else None
        return TextFormat(self.tokenizer, bos_id, config.chat_template)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens with which the model ends what it writes."""
        return self.text_format.ends(self.config.end_token_ids)

    def prompt_ids(self, text: str) -> list[int]:
        """Return the token ids of a prompt; TokenizerError if it is not text."""
        return self.text_format.prompt(text)

    # Texts that are made

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = UNSET,
        temperature: float = UNSET,
        seed: int = UNSET,
        *,
        sampling: SamplingConfig | None = None,
        **settings: Any,
    ) -> str:
        """Continue a text as it is, and return what follows it.

        Parameters
        ----------
        prompt
            The text; of one longer than the context, the end is seen.
        max_new_tokens
            The most tokens to make (default: 60); fewer if the model ends the text.
        temperature
            0 for the likeliest token each time (default); higher is more varied.
        seed
            The same seed gives the same text (default: 0).
        sampling, settings
            See the class.

        Raises
        ------
        ConfigError
            If a setting is out of range.
        TokenizerError
            If the prompt is not text.
        """
        given = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        config = _single(SamplingConfig.of(sampling, **given, **settings))
        ids = self.prompt_ids(prompt)
        engine = Engine(self, config.num_beams)
        is_plain = not config.stop and not config.is_held
        request = engine.add(ids, config, text=not is_plain)
        tokens = engine.finish()
        if is_plain:
            return self.tokenizer.decode(request.made, after=ids)
        return "".join(token.text for token in tokens)

    def samples(
        self, prompt: str, *, sampling: SamplingConfig | None = None, **settings: Any
    ) -> list[Sample]:
        """Continue a text `n` times, and return what follows with its tokens and its end.

        With beam search they are the best, the likeliest first.

        Raises
        ------
        ConfigError, TokenizerError
            As `generate`.
        """
        config = SamplingConfig.of(sampling, **settings)
        ids = self.prompt_ids(prompt)
        engine = Engine(self, max(config.num_beams, min(config.n, SLOTS)))
        first = engine.add(ids, config)
        requests = [first]
        if config.num_beams == 1:
            requests += [engine.add(ids, config, sample=i, like=first) for i in range(1, config.n)]
        made: list[list[Token]] = [[] for _ in range(config.n)]
        for token in engine.finish():
            made[requests.index(token.request) + token.rank].append(token)
        return [self._sample(tokens) for tokens in made]

    def _sample(self, tokens: list[Token]) -> Sample:
        text = "".join(token.text for token in tokens)
        told = (scored(self.tokenizer, t.id, t.logprob, t.likeliest) for t in tokens)
        return Sample(text, tuple(told), (tokens and tokens[-1].ended) or "length")

    def stream(
        self,
        prompt: str,
        max_new_tokens: int = UNSET,
        temperature: float = UNSET,
        seed: int = UNSET,
        *,
        sampling: SamplingConfig | None = None,
        **settings: Any,
    ) -> Continuation:
        """Continue a text, and return an iterator of what follows, piece by piece.

        Raises
        ------
        ConfigError, TokenizerError
            At once, as `generate`.
        """
        given = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        config = _single(SamplingConfig.of(sampling, **given, **settings))
        engine = Engine(self, config.num_beams)
        return Continuation(engine, engine.add(self.prompt_ids(prompt), config), self.tokenizer)

    def stream_ids(
        self,
        prompt: Sequence[int],
        max_new_tokens: int = UNSET,
        temperature: float = UNSET,
        seed: int = UNSET,
        *,
        sampling: SamplingConfig | None = None,
        **settings: Any,
    ) -> Iterator[int]:
        """Return an iterator of the tokens that follow the prompt's, as they are made.

        The end token is not among them.

        Raises
        ------
        ConfigError, TokenizerError
            At once, if a setting is out of range or an id is not in the vocabulary.
        """
        given = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        config = _single(SamplingConfig.of(sampling, **given, **settings))
        engine = Engine(self, config.num_beams)
        engine.add(prompt, config, text=False)
        return (token.id for token in engine.run() if token.ended != "end")

    def chat(
        self,
        max_new_tokens: int = UNSET,
        temperature: float = UNSET,
        seed: int = UNSET,
        *,
        system: str = "",
        remembers: bool = True,
        sampling: SamplingConfig | None = None,
        **settings: Any,
    ) -> Chat:
        """Return a chat whose `send` asks a question and returns the answer alone.

        Parameters
        ----------
        system
            What the model is told before all questions.
        remembers
            Whether a question is read after those before it, or by itself.
        max_new_tokens, temperature, seed, sampling, settings
            As `generate`.

        Raises
        ------
        ConfigError
            As `generate`.
        """
        given = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
        return Chat(self, SamplingConfig.of(sampling, **given, **settings), system, remembers)

    # What a model makes of a text

    def logprobs(self, text: str, top: int = 0) -> list[ScoredToken]:
        """Return the log-probability of each token of a text, given those before it.

        A text longer than the context is read in windows that overlap by half.

        Parameters
        ----------
        text
            The text.
        top
            How many of the likeliest tokens in each place to tell of.

        Raises
        ------
        TokenizerError
            If it is not text.
        """
        ids, skipped = self.prompt_ids(text), len(self.text_format.bos)
        found = zip(ids, self.logprobs_ids(ids, top), strict=True)
        return [scored(self.tokenizer, token, *told) for token, told in found][skipped:]

    def logprobs_ids(
        self, ids: Sequence[int] | Indices, top: int = 0
    ) -> list[tuple[float | None, Likely]]:
        """Return the log-probability of each token, and the likeliest in its place.

        Of the first one nothing is known. See `logprobs`.

        Raises
        ------
        TokenizerError
            If an id is not in the vocabulary.
        """
        check_integer("top", top)
        ids, S = token_ids(ids, self.tokenizer.vocab_size), self.max_seq_len
        found: list[tuple[float | None, Likely]] = [(None, ())] if len(ids) else []
        begin = 0
        while (known := len(found)) < len(ids):
            window = ids[begin : begin + S]
            found += self.weights_lock.read(self._told_of(window, known - begin, top))
            begin = len(found) - max(1, S // 2)
        return found

    def _told_of(
        self, ids: Indices, first: int, top: int
    ) -> Callable[[], list[tuple[float, Likely]]]:
        """Tell of a text's tokens from one on; the logits are there of some rows at a time."""

        def work() -> list[tuple[float, Likely]]:
            dtype, found = self.config.dtype, []
            x = Context(offsets_of(len(ids)), dtype).forward(self.layers[:-1], ids)  # (T, C)
            for i in range(first - 1, len(ids) - 1, ROWS):
                some = x[i : min(i + ROWS, len(ids) - 1)]  # (N, C)
                logits = Context(offsets_of(len(some)), dtype).forward(self.layers[-1:], some)
                for token, row in zip(ids[i + 1 :].tolist(), logits, strict=False):
                    logprobs = log_softmax(row)
                    found.append((float(logprobs[token]), likeliest(logprobs, top)))
            return found

        return work

    def embed(self, text: str) -> Array:  # -> (C,)
        """Return a vector of a text: the mean of what the last block makes of its tokens.

        A text longer than the context is read in parts.

        Raises
        ------
        DataError
            If the text has no token.
        TokenizerError
            If it is not text.
        """
        return self.embed_ids(self.prompt_ids(text))

    def embed_ids(self, ids: Sequence[int] | Indices) -> Array:  # (T,) -> (C,)
        """Return the vector of a text of these tokens; see `embed`.

        Raises
        ------
        DataError
            If there is no token.
        TokenizerError
            If an id is not in the vocabulary.
        """
        ids, S = token_ids(ids, self.tokenizer.vocab_size), self.max_seq_len
        if not len(ids):
            raise DataError("an empty text has no vector: give it one word or more")
        total: Any = 0
        for begin in range(0, len(ids), S):
            total = total + self.weights_lock.read(self._sum_of(ids[begin : begin + S]))
        mean: Array = (total / len(ids)).astype(total.dtype)
        return mean

    def _sum_of(self, ids: Indices) -> Callable[[], Array]:
        def work() -> Array:
            x = Context(offsets_of(len(ids)), self.config.dtype).forward(self.layers[:-1], ids)
            total: Array = x.sum(axis=0)  # (T, C) -> (C,)
            return total

        return work


def _single(config: SamplingConfig) -> SamplingConfig:
    """Return settings for one text; ConfigError if they are for several."""
    if config.n > 1:
        raise ConfigError(f"n={config.n} makes several texts: call `samples`")
    return config
