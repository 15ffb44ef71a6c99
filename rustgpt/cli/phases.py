"""Owns the two phases of a training: their texts, and their parts of what it may take."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rustgpt.cli.terminal import span
from rustgpt.config import UNLIMITED, TrainConfig

if TYPE_CHECKING:
    from rustgpt.text.dataset import Dataset
    from rustgpt.trainer import Trainer

OWN_SHARE: Final = 0.1  # of own texts, for the validation
MANY_DIALOGUES: Final = 1000  # of fewer, none is left out: each may hold a fact


@dataclass(frozen=True)
class Phase:
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
    """

    name: str
    texts: Sequence[Any]
    epochs: int
    part: float

    @property
    def tunes(self) -> bool:
        """Whether it learns dialogues."""
        return self.name != "pre-training"

    def learn(self, trainer: Trainer) -> None:
        """Train."""
        (trainer.instruction_tune if self.tunes else trainer.pretrain)(self.texts, self.part)

    def ends(self, config: TrainConfig) -> str:
        """Return what ends it, for people."""
        found = [f"{self.epochs:,} epochs"] if self.epochs < UNLIMITED else []
        for limit, unit in ((config.max_steps, "steps"), (config.max_tokens, "tokens")):
            if limit:
                found.append(f"at most {max(1, round(self.part * limit)):,} {unit}")
        if config.max_time:
            found.append(f"at most {span(self.part * config.max_time)}")
        return ", ".join(found)


def phases_of(dataset: Dataset, config: TrainConfig) -> list[Phase]:
    """Return both phases; their parts are as large as the texts that they read, times epochs."""
    usual = TrainConfig()
    found: list[tuple[str, Sequence[Any], int, int]] = [
        ("pre-training", dataset.pretraining_data, config.pretrain_epochs, usual.pretrain_epochs),
        ("instruction tuning", dataset.tuning_data, config.tune_epochs, usual.tune_epochs),
    ]
    amounts = [
        sum(map(_size, texts)) * (epochs if epochs < UNLIMITED else otherwise)
        for _, texts, epochs, otherwise in found
    ]
    return [
        Phase(name, texts, epochs, max(amount / max(1, sum(amounts)), 1e-6))
        for (name, texts, epochs, _), amount in zip(found, amounts, strict=True)
    ]


def _size(text: Any) -> int:
    return len(text if isinstance(text, str) else text.text())


def with_validation(config: TrainConfig, dataset: Dataset) -> TrainConfig:
    """Return the settings with the shares that are held out of own data."""
    many = len(dataset.chat_training_data) >= MANY_DIALOGUES
    return dataclasses.replace(
        config, validation_share=OWN_SHARE, tune_validation_share=OWN_SHARE if many else 0.0
    )


def held_out(config: TrainConfig) -> bool:
    """Whether a share of any data is for the validation."""
    return config.validation_share > 0 or config.tune_validation_share > 0
