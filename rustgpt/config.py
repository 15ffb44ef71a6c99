"""Owns what is configured: the sizes of a model and the settings of a training."""

import dataclasses
import math
import numbers
from dataclasses import dataclass
from typing import Any, Self

from rustgpt.errors import ConfigError


class _Config:
    """What both configurations share: reading from and writing to plain values."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a configuration from plain values.

        Raises
        ------
        ConfigError
            If a field is unknown, of the wrong type or out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for name in values:
            if name not in known:
                raise ConfigError(
                    f"{cls.__name__} has no field {name!r}; it has {', '.join(sorted(known))}"
                )
        return cls(**values)

    def _check(
        self,
        name: str,
        kind: type,
        lowest: float,
        highest: float = math.inf,
        below: float = math.inf,
    ) -> None:
        """Raise ConfigError unless a number is of `kind`, from lowest to highest and below `below`.

        NumPy's numbers become Python's.
        """
        value: Any = getattr(self, name)
        accepted: Any = numbers.Integral if kind is int else numbers.Real
        if isinstance(value, bool) or not isinstance(value, accepted):
            raise ConfigError(f"{name} must be of type {kind.__name__}, got {value!r:.60}")
        if type(value) is not int:  # which may be one that no float can hold
            try:
                value = kind(value)
            except OverflowError:  # a fraction that no float can hold
                value = math.inf
            object.__setattr__(self, name, value)
        too_large = type(value) is int and abs(value) >= 2**63
        inside = lowest <= value <= highest and not value >= below < math.inf  # NaN fails too
        if not inside or too_large:
            limits = f"at least {_plain(lowest)}"
            if below < math.inf:
                limits = f"from {_plain(lowest)} to below {_plain(below)}"
            elif highest < math.inf:
                limits = f"from {_plain(lowest)} to {_plain(highest)}"
            raise ConfigError(f"{name} must be {limits}, got {value!r:.60}")

    def _check_flag(self, name: str) -> None:
        """Raise ConfigError unless the field is True or False, be it NumPy's."""
        value: Any = getattr(self, name)
        if type(value).__name__ not in ("bool", "bool_"):
            raise ConfigError(f"{name} must be of type bool, got {value!r:.60}")
        object.__setattr__(self, name, bool(value))

    def _choose(self, name: str, choices: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if not isinstance(value, str) or value not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _plain(limit: float) -> str:
    return f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"


@dataclass(frozen=True)
class ModelConfig(_Config):
    """The shape of a model. The vocabulary's size comes from its tokenizer.

    Parameters
    ----------
    embedding_dim
        C, numbers that represent one token.
    hidden_dim
        F, width of the feed-forward layer.
    n_layers
        Transformer blocks.
    n_heads
        H, attention heads; must divide `embedding_dim`.
    max_seq_len
        The longest text, in tokens, that the model sees at once.
    activation
        "relu" or "gelu".
    norm
        "post": layer norm after each residual sum (Vaswani et al. 2017); "pre": before each
        sub-layer and once at the end (GPT-2).
    attention_projection
        Whether attention ends in an output projection; RustGPT has none.
    attention_bias
        Whether the products of the attention have a bias.
    output_bias
        Whether the output projection has a bias.
    tie_embeddings
        Whether the output projection is the embedding table, transposed (Press and Wolf 2017).
    dtype
        "float32", or "float64" for checking gradients.
    seed
        Of the initial parameters.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    embedding_dim: int = 128
    hidden_dim: int = 256
    n_layers: int = 3
    n_heads: int = 4
    max_seq_len: int = 80
    activation: str = "relu"
    norm: str = "post"
    attention_projection: bool = True
    attention_bias: bool = False
    output_bias: bool = True
    tie_embeddings: bool = False
    dtype: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("embedding_dim", "hidden_dim", "n_heads"):
            self._check(name, int, 1, 2**20)
        self._check("n_layers", int, 0, 10_000)
        self._check("max_seq_len", int, 2, 2**20)
        self._check("seed", int, 0, 2**63 - 1)
        for name in ("attention_projection", "attention_bias", "output_bias", "tie_embeddings"):
            self._check_flag(name)
        self._choose("activation", ("relu", "gelu"))
        self._choose("norm", ("post", "pre"))
        self._choose("dtype", ("float32", "float64"))
        if self.embedding_dim % self.n_heads:
            raise ConfigError(
                f"n_heads must divide embedding_dim: {self.n_heads} does not divide "
                f"{self.embedding_dim}"
            )


@dataclass(frozen=True)
class TrainConfig(_Config):
    """The settings of a training.

    Parameters
    ----------
    pretrain_epochs
        Passes over the statements.
    pretrain_rate
        Highest learning rate of the pre-training.
    tune_epochs
        Passes over the dialogues.
    tune_rate
        Highest learning rate of the instruction tuning.
    batch_size
        Texts in one step of the optimizer.
    beta1
        Of Adam: how much of the gradient's running mean a step keeps.
    beta2
        Of Adam: how much of the squared gradient's running mean a step keeps.
    epsilon
        Of Adam: keeps the division defined where no gradient was ever seen.
    weight_decay
        Of AdamW; applies to all matrices, embeddings too, not to biases and layer norms.
    max_grad_norm
        L2 norm to which the whole gradient is clipped.
    schedule
        "constant", or "cosine": from the rate down to `final_rate` times the rate.
    final_rate
        Where a cosine schedule ends, as a share of the rate.
    warmup_steps
        Steps over which the rate rises from 0.
    seed
        Of the order in which the texts are seen.
    threads
        Among which each batch is divided; 0 for one a processor.
    precision
        "float32", or "bfloat16": the linear layers' products round their factors to it, about 1.5
        times as fast on a processor with AVX512-BF16; all else stays float32.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    pretrain_epochs: int = 20
    pretrain_rate: float = 1e-3
    tune_epochs: int = 30
    tune_rate: float = 1e-3
    batch_size: int = 16
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 5.0
    schedule: str = "cosine"
    final_rate: float = 0.1
    warmup_steps: int = 0
    seed: int = 0
    threads: int = 0
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name in ("pretrain_epochs", "tune_epochs", "warmup_steps"):
            self._check(name, int, 0, 10**9)
        self._check("batch_size", int, 1, 10**6)
        for name in ("pretrain_rate", "tune_rate", "weight_decay"):
            self._check(name, float, 0, 1e3)
        self._check("epsilon", float, 1e-30, 1)
        self._check("max_grad_norm", float, 1e-30)
        for name in ("beta1", "beta2"):
            self._check(name, float, 0, below=1)
        self._check("final_rate", float, 0, 1)
        self._choose("schedule", ("constant", "cosine"))
        self._check("seed", int, 0, 2**63 - 1)
        self._check("threads", int, 0, 1024)
        self._choose("precision", ("float32", "bfloat16"))
