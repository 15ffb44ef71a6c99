"""Owns the plan of a training: its two phases, and the whole way from files to a model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final

from rustgpt.config import LIMITS, UNLIMITED, ModelConfig, TrainConfig
from rustgpt.errors import ConfigError
from rustgpt.file_set import locked
from rustgpt.llm import LLM
from rustgpt.text.dataset import Dataset
from rustgpt.text.sources import StrPath
from rustgpt.text.stored import Paths, characters
from rustgpt.text.tokenizer import AUTO
from rustgpt.trainer import Trainer

OWN_SHARE: Final = 0.1  # of own texts, for the validation
MOST_HELD_OUT: Final = 2**18  # characters
PATIENCE: Final = 5  # evaluations of own texts
# With which the bundled data are learned, that fit into less than a minute of two processors.
BUNDLED: Final[dict[str, Any]] = {
    "pretrain_epochs": 12, "pretrain_rate": 3e-3, "tune_epochs": 8, "tune_rate": 3e-3,
    "batch_size": 32, "warmup_steps": 60, "final_rate": 0.01,
}  # fmt: skip
FEWEST_STEPS: Final = 200  # of a tuning: with less, few dialogues are not learned by heart
MANY_DIALOGUES: Final = 1000  # of fewer, none is left out: each may hold a fact


@dataclass(frozen=True)
class PlannedPhase:
    """A phase that is to come.

    Parameters
    ----------
    name
        "pre-training" or "instruction tuning".
    texts
        To learn.
    epochs
        Passes over them.
    part
        Share of the training's steps, tokens and time.
    statements
        What was learned before, of which some is learned again.
    """

    name: str
    texts: Sequence[Any]
    epochs: int
    part: float
    statements: Sequence[str] = ()

    @property
    def tunes(self) -> bool:
        """Whether it learns dialogues."""
        return self.name != "pre-training"

    def learn(self, trainer: Trainer) -> None:
        """Train."""
        if self.tunes:
            trainer.instruction_tune(self.texts, self.part, self.statements)
        else:
            trainer.pretrain(self.texts, self.part)


def phases_of(dataset: Dataset, config: TrainConfig) -> list[PlannedPhase]:
    """Return both phases; their parts are as large as the texts that they read, times epochs."""
    usual = TrainConfig()
    found: list[tuple[str, Sequence[Any], int, int]] = [
        ("pre-training", dataset.pretraining_data, config.pretrain_epochs, usual.pretrain_epochs),
        ("instruction tuning", dataset.tuning_data, config.tune_epochs, usual.tune_epochs),
    ]
    amounts = [
        characters(texts) * (epochs if epochs < UNLIMITED else otherwise)
        for _, texts, epochs, otherwise in found
    ]
    statements = dataset.pretraining_data if config.pretrain_epochs else ()
    return [
        PlannedPhase(name, texts, epochs, max(amount / max(1, sum(amounts)), 1e-6), statements)
        for (name, texts, epochs, _), amount in zip(found, amounts, strict=True)
    ]


def for_data(
    config: TrainConfig, dataset: Dataset, given: Collection[str] = (), anew: bool = True
) -> TrainConfig:
    """Return the settings with what the data decide.

    The bundled ones have epochs and rates of their own; of others it is decided how much is held
    out, the patience, and how often few dialogues are seen.

    Parameters
    ----------
    given
        The names of the settings that somebody has chosen. With one of `LIMITS` among them the
        training ends there and not before.
    anew
        Whether a new model learns them, and not a finished one in addition.
    """
    if dataset.is_bundled:
        unlimited = {name for name in LIMITS[:2] if getattr(config, name) == UNLIMITED}
        left = BUNDLED.keys() - {*given} - unlimited
        return dataclasses.replace(config, **{name: BUNDLED[name] for name in left})
    if not {"validation_share", "tune_validation_share"} & {*given}:
        texts, chats = map(own_share, (dataset.pretraining_data, dataset.chat_training_data))
        many = len(dataset.chat_training_data) >= MANY_DIALOGUES
        config = dataclasses.replace(
            config, validation_share=texts, tune_validation_share=chats if many else 0.0
        )
    if held_out(config) and not {"patience", *LIMITS} & {*given}:
        config = dataclasses.replace(config, patience=PATIENCE)
    few = len(dataset.chat_training_data)
    if anew and few and not {"batch_tokens", *LIMITS[1:]} & {*given}:
        epochs = math.ceil(FEWEST_STEPS * config.batch_size / few)
        config = dataclasses.replace(config, tune_epochs=max(config.tune_epochs, epochs))
    return config


def own_share(texts: Sequence[Any]) -> float:
    """Return which share of own texts is held out: a tenth, but no more than is of use."""
    return min(OWN_SHARE, MOST_HELD_OUT / max(1, characters(texts)))


def held_out(config: TrainConfig) -> bool:
    """Whether a share of any data is for the validation."""
    return config.validation_share > 0 or config.tune_validation_share > 0


def train(
    paths: Paths | None = None,
    minutes: float | None = None,
    *,
    model: ModelConfig | None = None,
    training: TrainConfig | None = None,
    tokenizer: str = AUTO,
    vocab_size: int | None = None,
    out: StrPath | None = None,
) -> LLM:
    """Read data, train a model on them, and return it: the whole way in one line.

    Parameters
    ----------
    paths
        Files, folders, patterns; texts are pre-trained on, dialogues tuned on. By default the data
        that come with rustgpt.
    minutes
        How long to train at most; the learning rate comes to its end then.
    model, training
        Sizes and settings; `training` says when to end, so it is instead of `minutes`.
    tokenizer, vocab_size
        See `LLM.from_dataset`.
    out
        A folder to save the model in, and how it was trained; it is locked from the beginning, and
        a model that is in it is replaced at the end.

    Raises
    ------
    DataError, ConfigError, TrainingError, CheckpointError
        As `Dataset.load`, the configurations, `Trainer.fit` and `Trainer.save`.

    Examples
    --------
    >>> rustgpt.train("notes/", minutes=10).generate("Dear")  # doctest: +SKIP
    """
    if minutes is not None and training is not None:
        raise ConfigError("give minutes, or a training with its max_time, not both")
    if minutes is not None and not minutes > 0:
        raise ConfigError(f"minutes must be above 0, got {minutes!r:.60}")
    config = training or TrainConfig(max_time=60.0 * (minutes or 0.0))
    given = None if training else ("max_time",) * bool(minutes)
    with nullcontext() if out is None else locked(out) as folder:  # before any work
        trainer = _trained(paths, model, config, given, tokenizer, vocab_size)
        if folder is not None:
            trainer.save(folder)
    return trainer.model


def _trained(
    paths: Paths | None, model: ModelConfig | None, config: TrainConfig,
    given: Collection[str] | None, tokenizer: str, vocab_size: int | None,
) -> Trainer:  # fmt: skip
    dataset = Dataset.bundled() if paths is None else Dataset.load(paths)
    if given is not None:
        config = for_data(config, dataset, given)
    trainer = Trainer(LLM.from_dataset(dataset, model, tokenizer, vocab_size), config)
    for phase in phases_of(dataset, config):
        if phase.texts and phase.epochs:
            phase.learn(trainer)
    return trainer
