"""Owns the exceptions that rustgpt raises for what a user can mend."""

from __future__ import annotations

from numbers import Integral
from typing import Any


class RustGPTError(Exception):
    """Base of all errors below; its message says what, where and how to mend it."""


class DataError(RustGPTError):
    """Training data are missing, unreadable or not in the expected form."""


class TokenizerError(RustGPTError):
    """A vocabulary, a token id or a text to be encoded is not valid."""


class CheckpointError(RustGPTError):
    """A saved model is damaged, incomplete or does not fit its configuration."""


class ConfigError(RustGPTError):
    """A setting is outside its range or contradicts another."""


class TrainingError(RustGPTError):
    """Training cannot go on, for instance because the loss is not finite."""


def check_integer(name: str, value: Any, lowest: int = 0, highest: int = 2**63 - 1) -> None:
    """Raise ConfigError unless a value is a whole number with lowest <= value <= highest."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not lowest <= value <= highest:
        raise ConfigError(
            f"{name} must be a whole number from {lowest} to {highest}, got {value!r:.60}"
        )
