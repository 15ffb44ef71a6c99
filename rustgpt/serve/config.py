"""Owns what may be set of a server, and what a request may ask for at most."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from rustgpt.config import ModelConfig
from rustgpt.errors import ConfigError
from rustgpt.generation.batch import CHUNK

KEY_BYTES: Final = 32  # random ones
KEY_CHARACTERS: Final = 43  # that many bytes in base64
KEY_VARIABLE: Final = "RUSTGPT_API_KEY"
MOST_SLOTS: Final = 16
SHORTEST_CHUNK: Final = 16
CHUNK_OPERATIONS: Final = 2**34
MEMORY_SHARE: Final = 4  # a quarter of what is free, at most, is taken for texts


@dataclass(frozen=True)
class Limits:
    """What a server takes at most.

    Attributes
    ----------
    head_bytes, head_lines, body_bytes
        Of a request.
    messages, characters
        Of a prompt; so many inputs of an embedding, and characters of all of them.
    n, stops, stop_characters, logprobs
        Of a text to be made.
    connections
        That are open at once.
    queued
        Texts that wait for their turn.
    head_seconds, body_seconds, generation_seconds
        That a request may take to arrive, and to be answered.
    stalled_seconds
        For which a client may read nothing of its answer.
    drain_seconds
        For which running requests go on when the server is asked to end.
    """

    head_bytes: int = 16 * 1024
    head_lines: int = 100
    body_bytes: int = 1024 * 1024
    messages: int = 500
    characters: int = 32_000
    n: int = 4
    stops: int = 4
    stop_characters: int = 64
    logprobs: int = 20
    connections: int = 64
    queued: int = 64
    head_seconds: float = 10.0
    body_seconds: float = 30.0
    generation_seconds: float = 300.0
    stalled_seconds: float = 30.0
    drain_seconds: float = 30.0


@dataclass(frozen=True)
class ServeConfig:
    """How a model is served.

    Parameters
    ----------
    host, port
        Where the server listens; port 0 for any that is free.
    key
        What clients must send as "Authorization: Bearer KEY"; "" for nothing.
    hosts
        Names in the Host header that are accepted beside those of this machine.
    origins
        Pages of other servers that may use this one, such as "https://chat.example.org".
    name
        What the model is called; by default as its folder.
    slots
        Texts that are made at once; 0 for as many as memory allows, up to 16.
    temperature
        Of requests that name none.
    system_messages
        "use" or "leave-out"; "auto" for what the model was trained with, as far as it shows.
    limits
        What a request may ask for.

    Raises
    ------
    ConfigError
        If an address that others reach has no key, or a value is not of its form.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    key: str = ""
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    name: str = ""
    slots: int = 0
    temperature: float = 1.0
    system_messages: str = "auto"
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not self.key and not is_local(self.host):
            raise ConfigError(
                f"whoever reaches {self.host} could use the model: give a key with --key-file or "
                f"in {KEY_VARIABLE} (openssl rand -hex {KEY_BYTES})"
            )
        for origin in self.origins:
            scheme, _, rest = origin.partition("://")
            if scheme not in ("http", "https") or not rest or "/" in rest or "*" in rest:
                raise ConfigError(
                    f"an origin is such as https://chat.example.org, not {origin!r:.60}"
                )


def is_local(host: str) -> bool:
    """Tell whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_key(file: str | None) -> str:
    """Return the key of a file, or of the environment; "" if there is none.

    Raises
    ------
    ConfigError
        If it cannot be read, or is too short to be random.
    """
    if file is None:
        where, key = KEY_VARIABLE, os.environ.get(KEY_VARIABLE, "").strip()
        if not key:
            return ""
    else:
        where = repr(file)
        try:
            key = Path(file).read_bytes()[:4096].decode("ascii").strip()
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"cannot read the key in {where}: {reason}") from None
        except UnicodeError:
            raise ConfigError(f"the key in {where} must be ASCII") from None
    if len(key) < KEY_CHARACTERS or len(set(key)) < 10 or not key.isprintable() or " " in key:
        raise ConfigError(
            f"the key in {where} must be {KEY_BYTES} random bytes at least, as text of "
            f"{KEY_CHARACTERS} characters or more: make one with openssl rand -hex {KEY_BYTES}"
        )
    return key


def slots_for(config: ModelConfig, free: int | None = None) -> int:
    """Return how many texts are made at once, as free memory in bytes allows."""
    head_dim = config.embedding_dim // config.n_heads
    size = 8 if config.dtype == "float64" else 4
    each = 2 * config.n_layers * config.n_kv_heads * head_dim * config.max_seq_len * size
    if free is None:
        free = free_memory()
    return max(1, min(MOST_SLOTS, free // MEMORY_SHARE // max(1, each)))


def chunk_for(n_parameters: int) -> int:
    """Return how many tokens of a prompt are read at once while others wait for their next one.

    They take about as long as 2 * N * n operations, which are to be some tenths of a second.
    """
    return max(SHORTEST_CHUNK, min(CHUNK, CHUNK_OPERATIONS // (2 * n_parameters)))


def free_memory() -> int:
    """Return how many bytes of memory are free; of a system that does not tell, enough."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 62
