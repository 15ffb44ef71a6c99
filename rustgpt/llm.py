"""Owns the model: its layers in one flat parameter buffer, forward and backward through them."""

from __future__ import annotations

import copy
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from rustgpt import checkpoint
from rustgpt.backend import check_bfloat16, single_threaded_blas
from rustgpt.config import ModelConfig
from rustgpt.errors import CheckpointError, ConfigError, DataError, TrainingError
from rustgpt.generation.chat import Chat
from rustgpt.generation.decoding import generate_ids
from rustgpt.generation.sampling import check_sampling
from rustgpt.layers.embeddings import Embeddings
from rustgpt.layers.layer import Cache, Layer, copy_into
from rustgpt.layers.layer_norm import LayerNorm
from rustgpt.layers.memory import Array, Buffers, Indices, aligned
from rustgpt.layers.output_projection import OutputProjection
from rustgpt.layers.team import Member
from rustgpt.layers.transformer import TransformerBlock
from rustgpt.reader import Reader
from rustgpt.text.dataset import Dataset
from rustgpt.text.tokenizer import Tokenizer, WordTokenizer, token_ids
from rustgpt.weights_lock import WeightsLock

IDLE: Final = 8  # calls whose working memory is kept for the next ones


def build_layers(config: ModelConfig, vocab_size: int, initialise: bool = True) -> list[Layer]:
    """Return the layers of a GPT: embeddings, blocks, a last norm if "pre", output projection.

    Put a layer of your own into the list and hand it to `LLM`.

    Parameters
    ----------
    config
        The sizes and options, and the seed of the initial values.
    vocab_size
        V, tokens that the model knows.
    initialise
        Whether to draw initial values; without, they are zero, to be read from a file.
    """
    rng = np.random.default_rng(config.seed) if initialise else None
    C, dtype = config.embedding_dim, config.dtype
    layers: list[Layer] = [Embeddings(vocab_size, config.max_seq_len, C, rng, dtype)]
    layers += [TransformerBlock(config, rng) for _ in range(config.n_layers)]
    if config.norm == "pre":
        layers.append(LayerNorm(C, dtype=dtype))
    layers.append(
        OutputProjection(C, vocab_size, rng, config.output_bias, config.tie_embeddings, dtype)
    )
    return layers


class LLM:
    """A GPT: layers, and the tokenizer whose tokens they read and write.

    Parameters
    ----------
    config
        The sizes and options.
    tokenizer
        Gives the vocabulary.
    layers
        Instead of `build_layers(config, tokenizer.vocab_size)`; the first must be `Embeddings` and
        the last `OutputProjection`.

    Attributes
    ----------
    parameters, gradients
        (P,) flat buffers; every layer's parameters and gradients are views into them. To set one
        copies the values into it.

    Raises
    ------
    ConfigError
        If the layers do not begin and end as they must, or are another model's.

    Notes
    -----
    Any number of threads may use a model at once, also while one of them trains it: each call has
    working memory of its own, and sees the parameters as they are between two steps. Only
    `begin_gradients` and `loss_and_gradients`, which a training is made of, are for one thread.
    A copy (`copy`, `pickle`, a process) is a whole model of its own; its gradients are zero.
    """

    def __init__(
        self, config: ModelConfig, tokenizer: Tokenizer, layers: Sequence[Layer] | None = None
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.layers = list(layers or build_layers(config, tokenizer.vocab_size))
        if not isinstance(self.layers[0], Embeddings) or not isinstance(
            self.layers[-1], OutputProjection
        ):
            raise ConfigError("the first layer must be Embeddings and the last OutputProjection")
        for i, layer in enumerate(self.layers):
            if layer.owner is not None and layer.owner() is not None:
                raise ConfigError(
                    f"layer {i} is part of another model, which would lose its parameters: pass a "
                    "copy of it (copy.deepcopy)"
                )
        self._take_over()

    def _take_over(self) -> None:
        """Move the layers' parameters into flat buffers of this model."""
        size = sum(layer.n_parameters for layer in self.layers)
        self._parameters = aligned(size, np.dtype(self.config.dtype))
        self._gradients = aligned(size, self._parameters.dtype)
        self._member: Member | None = None
        self.weights_lock = WeightsLock()
        self._trained_by: Callable[[], object] = _nobody  # a weak reference
        self._idle: list[dict[object, Buffers]] = []  # working memory of calls that have ended
        self._bind(self._parameters)
        for layer in self.layers:
            layer.owner = weakref.ref(self)

    @classmethod
    def from_dataset(cls, dataset: Dataset, config: ModelConfig | None = None) -> LLM:
        """Return an untrained model whose vocabulary is that of the data."""
        texts = [*dataset.pretraining_data, *dataset.chat_training_data]
        return cls(config or ModelConfig(), WordTokenizer.train(texts))

    def _bind(self, parameters: Array | None) -> None:
        """Give every layer its place in the flat buffers.

        A layer reads the gradient that the layer above has left in scratch memory. So neighbours
        alternate between two sets of it; blocks, which read it before they write over it, all
        share a third, which then stays in the cache.
        """
        alternating, of_blocks = (Buffers(), Buffers()), Buffers()
        taken = 0
        for i, layer in enumerate(self.layers):
            layer.number = i
            here = None if parameters is None else parameters[taken:]
            scratch = of_blocks if type(layer) is TransformerBlock else alternating[i % 2]
            taken += layer.bind(here, self.gradients[taken:], scratch)
        if self._output.tied:
            self._output.tie(self._embeddings.tokens, self._embeddings.dtokens)
            # It comes first on the way back.
            self._embeddings.written_over = self._output.overwrites()

    @property
    def parameters(self) -> Array:
        return self._parameters

    @parameters.setter
    def parameters(self, values: Array) -> None:
        with self.weights_lock.writing():
            copy_into(self._parameters, values, "parameters")

    @property
    def gradients(self) -> Array:
        return self._gradients

    @gradients.setter
    def gradients(self, values: Array) -> None:
        copy_into(self._gradients, values, "gradients")

    def check_parameters(self) -> None:
        """Raise ConfigError if a layer has parameters that are not among the model's."""
        for name, value in self.named_parameters().items():
            if value.size and not np.may_share_memory(value, self._parameters):
                raise ConfigError(
                    f"{name} is not among the model's parameters, for its layer was put in when "
                    "the model was there: make another model of the layers"
                )

    def begin_training(self, by: object) -> None:
        """Let nobody else train the model until `end_training`, or the death of `by`.

        Raises
        ------
        TrainingError
            If it is being trained already.
        """
        with _one_by_one:
            if self._trained_by() is not None:
                raise TrainingError(
                    "this model is being trained already: wait until that has ended, or train a "
                    "copy"
                )
            self._trained_by = weakref.ref(by)

    def end_training(self) -> None:
        """Let the next one train the model."""
        self._trained_by = _nobody

    # Copies

    def __copy__(self) -> LLM:
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> LLM:
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        with self.weights_lock.alone:
            twin.__setstate__(copy.deepcopy(self._state(), memo))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        with self.weights_lock.alone:
            # Copied here and now. A layer may know its model, which is written but once.
            return {**self._state(), "layers": copy.deepcopy(self.layers, {id(self): self})}

    def _state(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in _MEMORY}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._take_over()

    @property
    def _embeddings(self) -> Embeddings:
        return self.layers[0]  # type: ignore[return-value]

    @property
    def _output(self) -> OutputProjection:
        return self.layers[-1]  # type: ignore[return-value]

    @property
    def max_seq_len(self) -> int:
        """The most tokens that the model sees at once."""
        return self.config.max_seq_len

    @property
    def n_parameters(self) -> int:
        """P, how many numbers the model learns."""
        return self.parameters.size

    def named_parameters(self) -> dict[str, Array]:
        """Return the parameters by name: "layers.1.attention.qkv_weight"."""
        return _numbered([layer.parameters() for layer in self.layers])

    def named_gradients(self) -> dict[str, Array]:
        """Return the gradients by the names of their parameters."""
        return _numbered([layer.gradients() for layer in self.layers])

    def replica(self, gradients: Array | None = None) -> LLM:
        """Return a model with the same parameters, and memory of its own.

        Parameters
        ----------
        gradients
            (P,) where its gradients shall be, as a team shares them; without, its own.
        """
        if gradients is None:
            gradients = aligned(self.parameters.size, self.parameters.dtype)
        twin = object.__new__(type(self))
        vars(twin).update(vars(self), layers=[layer.replica() for layer in self.layers])
        twin._gradients = gradients
        twin._bind(None)
        return twin

    @contextmanager
    def _reader(self) -> Iterator[Reader]:
        """Yield what makes one caller's forward passes."""
        try:
            memory = self._idle.pop()
        except IndexError:
            memory = {}
        try:
            yield Reader(self.layers, self.weights_lock, memory)
        finally:
            if len(self._idle) < IDLE:
                self._idle.append(memory)

    def use_bfloat16(self, use: bool) -> None:
        """Let the linear layers' products round their factors to bfloat16 in a training, or not.

        Whatever else uses the model meanwhile, to generate say, does not.

        Raises
        ------
        ConfigError
            If the model is not of float32, or the kernels in use cannot.
        """
        if use:
            check_bfloat16(self.config.dtype)
        for layer in self.layers:
            layer.use_bfloat16(use)

    def works_in_team(self) -> bool:
        """Whether a team of replicas may take one batch through the layers together."""
        return all(layer.works_in_team() for layer in self.layers)

    def join(self, member: Member | None) -> None:
        """Take part in a team, or none any more; see `rustgpt.layers.team`."""
        if member is not self._member:
            for layer in self.layers:
                layer.join(member)
            self._member = member

    def describe(self) -> str:
        """Return the layers with their sizes, for people."""
        rows = []

        def add(layer: Layer, depth: int) -> None:
            rows.append((f"{'  ' * depth}{layer.describe()}", layer.n_parameters))
            for _, child in layer.children():
                add(child, depth + 1)

        for layer in self.layers:
            add(layer, 0)
        width = max(len(text) for text, _ in rows)
        lines = [f"{text:<{width}} {count:>12,}" for text, count in rows]
        return "\n".join([*lines, f"{'Parameters':<{width}} {self.n_parameters:>12,}"])

    # Through the layers

    def _hidden(self, ids: Indices, offsets: Indices) -> Array:  # (N,) -> (N, C)
        x: Array = ids
        for layer in self.layers[:-1]:
            x = layer.forward(x, offsets)
        return x

    def logits(self, ids: Sequence[int] | Indices) -> Array:  # (T,) -> (T, V)
        """Return the scores of every token to follow each of the text's tokens.

        Raises
        ------
        DataError
            If the text is empty or longer than the model's context.
        TokenizerError
            If an id is not in the vocabulary.
        """
        ids = token_ids(ids, self.tokenizer.vocab_size)
        if not 0 < len(ids) <= self.max_seq_len:
            raise DataError(f"a text must have 1 to {self.max_seq_len} tokens, got {len(ids)}")
        with self._reader() as reader:
            return reader.logits(ids).copy()

    def loss(self, ids: Indices, targets: Indices, offsets: Indices) -> float:
        """Return the sum of the cross-entropies (in nats) of the targets that are not -1.

        Parameters
        ----------
        ids, targets
            (N,) each token and the one that follows it.
        offsets
            (B + 1,) where each text begins and ends.

        Raises
        ------
        TokenizerError
            If an id or a target is not in the vocabulary.
        """
        ids = token_ids(ids, self.tokenizer.vocab_size)
        targets = token_ids(targets, self.tokenizer.vocab_size, lowest=-1)
        with self._reader() as reader:
            return float(reader.losses(ids, targets, offsets).sum(dtype=np.float64))

    def begin_gradients(self) -> None:
        """Forget the gradients: the next ones are written over them.

        They are undefined until `loss_and_gradients` was called.
        """
        for layer in self.layers:
            layer.begin_gradients()

    def loss_and_gradients(
        self, ids: Indices, targets: Indices, offsets: Indices, scale: float
    ) -> float:
        """Return the sum of the cross-entropies; add the gradients of `scale` times it.

        A member of a team returns the sum of its own rows, and adds its part of the gradients.
        """
        x = self._hidden(ids, offsets)
        loss, dx = self._output.loss(x, targets, scale)
        for layer in reversed(self.layers[:-1]):
            dx = layer.backward(dx)
        return loss

    def decode(self, ids: Sequence[int] | Indices, cache: Cache) -> Array:  # (n,) -> (V,)
        """Continue the text in `cache` by `ids`; return the scores of what may follow.

        Raises
        ------
        DataError
            If there is no token, or more than the cache and the model's context have room for.
        TokenizerError
            If an id is not in the vocabulary.
        """
        ids = token_ids(ids, self.tokenizer.vocab_size)
        room = min(cache.capacity, self.max_seq_len) - cache.length
        if not 0 < len(ids) <= room:
            raise DataError(f"there is room for 1 to {room} more tokens, got {len(ids)}")
        with self._reader() as reader:
            return reader.decode(ids, cache).copy()

    # Text

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
        with self._reader() as reader:
            one_thread = single_threaded_blas()

            def limited(fresh: Sequence[int], cache: Cache) -> Array:
                with one_thread:  # not while whoever reads the stream does other things
                    return reader.decode(fresh, cache)

            end_id = self.tokenizer.end_id
            decode = limited if waits else reader.decode
            yield from generate_ids(
                decode, self.max_seq_len, ids, max_new_tokens, end_id, temperature, seed
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
        ids = self.tokenizer.encode(prompt)
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
            self.tokenizer,
            self.max_seq_len,
            lambda ids: self._made(ids, max_new_tokens, temperature, seed),
        )

    # On disk

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json, model.safetensors and tokenizer.json; see `checkpoint.save`.

        Parameters
        ----------
        folder
            A path, or a `FolderLock` that the caller has entered.
        """
        self.check_parameters()
        tokenizer = self.tokenizer.to_json()
        # The folder first: others shall not wait for the weights while this waits for it.
        with checkpoint.locked(folder) as held, self.weights_lock.alone:
            checkpoint.save(held, self.config.to_dict(), self.named_parameters(), tokenizer)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        layers: Sequence[Layer] | None = None,
        tokenizer: type[Any] | None = None,
    ) -> LLM:
        """Return the model that `save` wrote.

        Parameters
        ----------
        layers
            For a model with layers of your own: layers as it was built with.
        tokenizer
            For a model with a tokenizer of your own: its class, whose `from_json` reads what its
            `to_json` wrote.

        Raises
        ------
        CheckpointError
            If a file is missing or damaged, or does not fit the others.
        """
        with checkpoint.load(folder) as saved:
            config, words = saved.model_config(), saved.tokenizer(tokenizer)
            try:
                layers = list(layers or build_layers(config, words.vocab_size, initialise=False))
                needed = _numbered([layer.parameters() for layer in layers])
                # Before the parameters' memory is touched: a wrong config could ask for any amount.
                saved.check_shapes({name: (v.shape, v.dtype) for name, v in needed.items()})
                model = cls(config, words, layers)
            except (MemoryError, ValueError) as error:
                raise CheckpointError(
                    f"the model in {folder} is too large to load: {error}"
                ) from error
            saved.read_into(model.named_parameters())
        return model


def _nobody() -> None:
    """Stand for a weak reference to nothing."""


_one_by_one = threading.Lock()

# Attributes of a model that a copy of it has anew.
_MEMORY: Final = (
    "_parameters", "_gradients", "_member", "weights_lock", "_trained_by", "_idle",
)  # fmt: skip


def _numbered(layers: list[dict[str, Array]]) -> dict[str, Array]:
    """Join the arrays of several layers, each layer's names beginning with its number."""
    return {
        f"layers.{i}.{name}": value
        for i, arrays in enumerate(layers)
        for name, value in arrays.items()
    }
