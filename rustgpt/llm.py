"""Owns the model: forward and backward through its layers, its tokenizer, and both on disk."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rustgpt import checkpoint, formats
from rustgpt.config import MOST_THREADS, ModelConfig
from rustgpt.errors import ConfigError, DataError, check_integer
from rustgpt.file_set import explained
from rustgpt.generation.text_generator import TextGenerator
from rustgpt.layers.cache import Cache
from rustgpt.layers.context import Context, offsets_of
from rustgpt.layers.decoder import Decoder
from rustgpt.layers.embeddings import Embeddings
from rustgpt.layers.gpt import build_layers, named_parameters
from rustgpt.layers.layer import Layer
from rustgpt.layers.memory import Array, Indices, Workspace
from rustgpt.layers.output_projection import OutputProjection
from rustgpt.network import Network
from rustgpt.parallel.decoding import decoding_threads
from rustgpt.text.dataset import Dataset
from rustgpt.text.tokenizer import AUTO, Tokenizer, token_ids
from rustgpt.vocab_extension import extended_layers, extended_tokenizer


class LLM(Network, TextGenerator):
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
    parameters
        (P,) flat buffer; every layer's parameters are views into it. To set it copies the values.
        Who asks for it may change numbers where they lie: open chats then read anew what they have
        read before. If other threads use the model meanwhile, or the change is made later, through
        an array that was kept or a layer, let it be within `with model.weights_lock.writing():`.
    threads : int
        How many threads at most make a token of a large model; 0, the default, is as many as help.

    Raises
    ------
    ConfigError
        If the layers do not begin and end as they must, or are another model's.

    Notes
    -----
    Any number of threads may use a model at once, also while one of them trains it: each call has
    working memory of its own, and sees the parameters as they are between two steps.
    A copy (`copy`, `pickle`, a process) is a whole model of its own.
    """

    _threads = 0
    _memory = (*Network._memory, "_decoder")

    def __init__(
        self, config: ModelConfig, tokenizer: Tokenizer, layers: Sequence[Layer] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        for token in (config.bos_token_id, *config.end_token_ids):
            if token >= tokenizer.vocab_size:
                raise ConfigError(
                    f"bos_token_id and end_token_ids must be tokens below {tokenizer.vocab_size}, "
                    f"the size of the vocabulary, got {token}"
                )
        layers = list(layers or build_layers(config, tokenizer.vocab_size))
        if not isinstance(layers[0], Embeddings) or not isinstance(layers[-1], OutputProjection):
            raise ConfigError("the first layer must be Embeddings and the last OutputProjection")
        super().__init__(config, layers)

    def _take_over(self) -> None:
        super()._take_over()
        self._decoder: Decoder | None = None  # of the layers as they were when it was made
        if self._output.tied:
            self._output.tie(self._embeddings.tokens)

    @classmethod
    def from_dataset(
        cls,
        dataset: Dataset,
        config: ModelConfig | None = None,
        tokenizer: str = AUTO,
        vocab_size: int | None = None,
    ) -> LLM:
        """Return an untrained model whose vocabulary is that of the data; see `tokenizer_for`."""
        return cls(config or ModelConfig(), dataset.tokenizer(tokenizer, vocab_size))

    @property
    def threads(self) -> int:
        return self._threads

    @threads.setter
    def threads(self, n: int) -> None:
        check_integer("threads", n, 0, MOST_THREADS)
        self._threads = int(n)

    @property
    def _embeddings(self) -> Embeddings:
        return self.layers[0]  # type: ignore[return-value]

    @property
    def _output(self) -> OutputProjection:
        return self.layers[-1]  # type: ignore[return-value]

    def extend_vocab(self, texts: Iterable[str]) -> LLM:
        """Return a copy of the model that has a token for each word of some texts.

        The tokens that there are keep their ids and what was learned of them; a new one begins as
        the mean of those that have spelled the word so far. ConfigError if the tokenizer cannot be
        extended, or the first or last layer is of a class of one's own.
        """
        tokenizer = extended_tokenizer(self.tokenizer, texts)
        with self.weights_lock.alone:
            layers = copy.deepcopy(self.layers)
        layers = extended_layers(layers, self.tokenizer, tokenizer)
        return type(self)(self.config, tokenizer, layers)

    # Through the layers

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
        offsets = offsets_of(len(ids))
        return self._read(lambda m: Context(offsets, workspace=m).forward(self.layers, ids).copy())

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
        DataError
            If a text is longer than the model's context.
        TokenizerError
            If an id or a target is not in the vocabulary.
        """
        longest = int(np.diff(offsets).max(initial=0))
        if longest > self.max_seq_len:
            raise DataError(f"a text must have at most {self.max_seq_len} tokens, got {longest}")
        ids = token_ids(ids, self.tokenizer.vocab_size)
        targets = token_ids(targets, self.tokenizer.vocab_size, lowest=-1)

        def work(memory: Workspace) -> float:
            ctx = Context(offsets, workspace=memory)
            x = ctx.forward(self.layers[:-1], ids)  # (N, C)
            return float(self._output.losses(x, targets, ctx).sum(dtype=np.float64))

        return self._read(work)

    def loss_and_gradients(
        self, ids: Indices, targets: Indices, scale: float, ctx: Context
    ) -> float:
        """Return the sum of the cross-entropies, and give the gradients of `scale` times it.

        Parameters
        ----------
        ids, targets
            (N,) each token and the one that follows it, which must be in the vocabulary; a target
            of -1 does not count.
        scale
            What each token's loss is worth, such as 1 / N.
        ctx
            Where the texts begin, and with `gradients`, to which this pass adds (or which it
            overwrites, if it is the first of a step; see `Gradients`). With a shard, the sum is
            that of its rows.
        """
        x = ctx.forward(self.layers[:-1], ids)  # (N, C)
        loss, dx = self._output.loss(x, targets, scale, ctx)
        ctx.backward(self.layers[:-1], dx)
        return loss

    def decode(self, ids: Sequence[int] | Indices, cache: Cache) -> Array:  # (n,) -> (V,)
        """Continue the text in a cache of one slot by `ids`; return the scores of what may follow.

        Raises
        ------
        DataError, TokenizerError
            As `decode_batch`.
        """
        logits: Array = self.decode_batch([ids], cache)[0]
        return logits

    def decode_batch(
        self,
        texts: Sequence[Sequence[int] | Indices],
        cache: Cache,
        slots: Sequence[int] | None = None,
    ) -> Array:  # -> (B, V)
        """Continue several texts in a cache, each by its ids; return the scores of what may follow.

        Parameters
        ----------
        texts
            B lists of ids, which may differ in length.
        cache
            What was seen of each text; it sees these ids too from then on.
        slots
            Where each text is in the cache; by default the first B slots.

        Raises
        ------
        DataError
            If a text has no token, or more than the cache and the model's context have room for; or
            if the slots are not B different ones of the cache.
        TokenizerError
            If an id is not in the vocabulary.
        """
        rows = [token_ids(ids, self.tokenizer.vocab_size) for ids in texts]
        where = list(range(len(rows)) if slots is None else slots)
        cache.check_room(list(map(len, rows)), where, self.max_seq_len)
        return self._decode(rows, cache, where)

    def _decode(self, rows: list[Indices], cache: Cache, slots: list[int]) -> Array:
        """`decode_batch` of what was checked."""
        decoder = self._decoder
        if decoder is None or not decoder.of(self.layers):
            decoder = self._decoder = Decoder(self.layers, self._parameters)
        threads = decoding_threads(self.n_parameters, self.threads)
        logits = self._read(lambda memory: decoder.logits(rows, cache, slots, memory, threads))
        for slot, row in zip(slots, rows, strict=True):
            cache.lengths[slot] += len(row)  # not before: it may have been read twice
        return logits

    # On disk

    def save(
        self,
        folder: str | os.PathLike[str],
        more: Mapping[str, Iterable[bytes | memoryview]] | None = None,
        format: str = formats.RUSTGPT,
    ) -> None:
        """Write config.json, model.safetensors and tokenizer.json; see `checkpoint.save`.

        Parameters
        ----------
        folder
            A path, or a `FolderLock` that the caller has entered.
        more
            The contents of other files that lie beside them, by name.
        format
            "hf" for a folder of Hugging Face instead; see `formats.export`.
        """
        if format != formats.RUSTGPT:
            return formats.export(self, folder, format, overwrite=True)
        self.check_parameters()
        tokenizer = self.tokenizer.to_json()
        # The folder first: others shall not wait for the weights while this waits for it.
        with checkpoint.locked(folder) as held, self.weights_lock.alone:
            config = self.config.to_dict()
            checkpoint.save(held, config, named_parameters(self.layers), tokenizer, more)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        layers: Sequence[Layer] | None = None,
        tokenizer: type[Any] | None = None,
        chat_template: str | None = None,
    ) -> LLM:
        """Return the model that `save`, or another program, wrote; see `formats.open_model`.

        Parameters
        ----------
        layers
            For a model with layers of your own: those that it was built with.
        tokenizer
            For a model with a tokenizer of your own: its class, whose `from_json` reads what its
            `to_json` wrote.
        chat_template
            The form of dialogues, instead of the model's own; see `ModelConfig`.

        Raises
        ------
        ConfigError
            If there is no such template.
        CheckpointError
            If a file is missing or damaged, or does not fit the others.
        """
        with formats.open_model(folder) as saved:
            model = cls.from_saved(saved, layers, tokenizer)
        if chat_template is not None:
            model.config = dataclasses.replace(model.config, chat_template=chat_template)
        return model

    @classmethod
    def from_saved(
        cls,
        saved: formats.OpenModel,
        layers: Sequence[Layer] | None = None,
        tokenizer: type[Any] | None = None,
    ) -> LLM:
        """Return the model of open files; see `load`."""
        config, words = saved.model_config(), saved.tokenizer(tokenizer)
        with explained(f"the model in {saved.folder} is too large to load"):
            layers = list(layers or build_layers(config, words.vocab_size, initialise=False))
            # Before the parameters' memory is touched: a wrong config could ask for any amount.
            saved.check_shapes(
                {name: (v.shape, v.dtype) for name, v in named_parameters(layers).items()}
            )
            model = cls(config, words, layers)
        saved.read_into(model.named_parameters())
        return model
