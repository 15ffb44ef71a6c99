"""Owns the exceptions that rustgpt raises for what a user can mend."""

from __future__ import annotations


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
