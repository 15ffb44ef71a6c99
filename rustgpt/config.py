"""Owns what is configured: the sizes of a model and the settings of a training."""

import math
import numbers
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, Self

from rustgpt.errors import ConfigError
from rustgpt.presets import PRESETS

UNLIMITED = 10**9  # epochs that end nothing
LONGEST = 31 * 86_400  # seconds of a training
MOST_THREADS = 1024
# The forms of dialogues; see `rustgpt/text/chat_template.py`.
CHAT_TEMPLATES = ("rustgpt", "chatml", "smollm2", "qwen2.5", "llama3", "zephyr", "unknown")
# The settings of rotary positions that a scaling makes use of.
ROPE_SETTINGS = {
    "none": "rope_theta",
    "linear": "rope_theta rope_scaling rope_factor",
    "llama3": "rope_theta rope_scaling rope_factor rope_low_freq_factor rope_high_freq_factor "
    "rope_original_max_seq_len",
}
# The settings that say when a training ends.
LIMITS = ("pretrain_epochs", "tune_epochs", "max_steps", "max_tokens", "max_time")


def _number(
    default: float, lowest: float, highest: float = math.inf, below: bool = False, **more: Any
) -> Any:
    """A field for a number of the default's type, from lowest to highest, or below highest."""
    return field(default=default, metadata={"limits": (lowest, highest, below), **more})


def _follows(kind: type, lowest: float, highest: float) -> Any:
    """A field for a number that follows from other fields unless it is given."""
    return field(default=None, metadata={"limits": (lowest, highest, False), "kind": kind})


def kind_of(setting: Field[Any]) -> type:
    """Return the type of a field's values."""
    kind: type = setting.metadata.get("kind", type(setting.default))
    return kind


def _token_ids() -> Any:
    """A field for token ids, by default none."""
    return field(default=(), metadata={"limits": (0, 2**31 - 1, False), "of_tokenizer": True})


def _choice(*choices: str, **more: Any) -> Any:
    """A field for one of these, by default the first."""
    return field(default=choices[0], metadata={"choices": choices, **more})


@dataclass(frozen=True)
class _Config:
    """What both configurations share: reading from and writing to plain values."""

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = _checked(setting, getattr(self, setting.name))
            object.__setattr__(self, setting.name, value)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        values = asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a configuration from plain values.

        Raises
        ------
        ConfigError
            If a field is unknown, of the wrong type or out of range.
        """
        known = sorted(setting.name for setting in fields(cls))
        for name in values:
            if name not in known:
                raise ConfigError(
                    f"{cls.__name__} has no field {name!r}; it has {', '.join(known)}"
                )
        return cls(**values)


def _checked(setting: Field[Any], value: Any) -> Any:
    """Return a field's value, NumPy's as Python's, or raise ConfigError."""
    kind: Any = kind_of(setting)
    if kind is str:
        choices = setting.metadata["choices"]
        if not isinstance(value, str) or value not in choices:
            raise ConfigError(f"{setting.name} must be one of {', '.join(choices)}, got {value!r}")
        return value
    if kind is tuple:
        if not isinstance(value, (tuple, list)):
            raise ConfigError(f"{setting.name} must be a list, got {value!r:.60}")
        return tuple(_in_limits(setting, int, each) for each in value)
    return _in_limits(setting, kind, value)


def _in_limits(setting: Field[Any], kind: Any, value: Any) -> Any:
    """Return a number of a field, or a flag, or raise ConfigError."""
    accepted = {int: numbers.Integral, float: numbers.Real, bool: object}[kind]
    is_flag = type(value).__name__ in ("bool", "bool_")
    if is_flag != (kind is bool) or not isinstance(value, accepted):
        raise ConfigError(f"{setting.name} must be of type {kind.__name__}, got {value!r:.60}")
    if is_flag:
        return bool(value)
    lowest, highest, below = setting.metadata["limits"]
    try:
        plain = kind(value)
    except OverflowError:  # more than a float can hold
        plain = math.nan
    if not lowest <= plain <= highest or (below and plain == highest):  # NaN fails too
        finite = "" if -math.inf < plain < math.inf else "finite and "
        limits = f"{finite}at least {_plain(lowest)}"
        if highest < math.inf:
            limits = f"from {_plain(lowest)} to {'below ' * below}{_plain(highest)}"
        raise ConfigError(f"{setting.name} must be {limits}, got {value!r:.60}")
    return plain


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
    n_kv_heads
        K, heads of keys and values, by default as many as `n_heads`, which K must divide: each
        serves H / K heads of queries (grouped-query attention; Ainslie et al. 2023).
    max_seq_len
        The longest text, in tokens, that the model sees at once.
    activation
        "relu", "gelu" (the tanh form, as in GPT-2) or "swiglu", whose hidden layer is the product
        of two, one of them through SiLU (Shazeer 2020, as in Llama).
    feed_forward_bias
        Whether the products of the feed-forward layer have a bias.
    norm
        "post": layer norm after each residual sum (Vaswani et al. 2017); "pre": before each
        sub-layer and once at the end (GPT-2).
    norm_type
        "layer_norm", or "rms_norm", which does not subtract the mean and has no bias (Zhang and
        Sennrich 2019, as in Llama).
    norm_epsilon
        What a norm adds to the variance, so that the division is defined.
    positions
        "learned": a table of vectors that are added to the tokens'; "rotary": queries and keys are
        turned by their position (Su et al. 2021, as in Llama).
    rope_theta
        Of rotary positions: the base of the angles' frequencies.
    rope_scaling
        Of rotary positions, for a context longer than that of the training: "none", "linear", or
        "llama3", which leaves high frequencies as they are.
    rope_factor
        By how much the scaling divides frequencies.
    rope_low_freq_factor
        Of "llama3": waves longer than the original context divided by it are divided whole.
    rope_high_freq_factor
        Of "llama3": waves shorter than the original context divided by it stay as they are.
    rope_original_max_seq_len
        Of "llama3": the original context; 0 for `max_seq_len`.
    attention_projection
        Whether attention ends in an output projection; RustGPT has none.
    attention_bias
        Whether the products of the attention have a bias.
    output_bias
        Whether the output projection has a bias.
    tie_embeddings
        Whether the output projection is the embedding table, transposed (Press and Wolf 2017).
    add_bos_token
        Whether each text, and each prompt, begins with the end token, so that the model learns how
        texts begin.
    bos_token_id
        The token with which texts begin where `add_bos_token` says so; -1 for the end token.
    end_token_ids
        The tokens with which the model ends what it writes; none for the tokenizer's end token.
    chat_template
        The form of dialogues, one of `rustgpt.text.chat_template.TEMPLATES`; "unknown" if it is
        that of a model of others which is not known here.
    dtype
        "float32", or "float64" for checking gradients.
    seed
        Of the initial parameters.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    embedding_dim: int = _number(128, 1, 2**20)
    hidden_dim: int = _number(256, 1, 2**20)
    n_layers: int = _number(3, 0, 10_000)
    n_heads: int = _number(4, 1, 2**20)
    n_kv_heads: int = _follows(int, 1, 2**20)
    max_seq_len: int = _number(80, 2, 2**20)
    activation: str = _choice("relu", "gelu", "swiglu")
    feed_forward_bias: bool = True
    norm: str = _choice("post", "pre")
    norm_type: str = _choice("layer_norm", "rms_norm")
    norm_epsilon: float = _number(1e-5, 0, 1)
    positions: str = _choice("learned", "rotary")
    rope_theta: float = _number(10000.0, 1, 1e12)
    rope_scaling: str = _choice("none", "linear", "llama3")
    rope_factor: float = _number(1.0, 1, 1e6)
    rope_low_freq_factor: float = _number(1.0, 1e-6, 1e6)
    rope_high_freq_factor: float = _number(4.0, 1e-6, 1e6)
    rope_original_max_seq_len: int = _number(0, 0, 2**31 - 1)
    attention_projection: bool = True
    attention_bias: bool = False
    output_bias: bool = True
    tie_embeddings: bool = False
    add_bos_token: bool = True
    bos_token_id: int = _number(-1, -1, 2**31 - 1, of_tokenizer=True)
    end_token_ids: tuple[int, ...] = _token_ids()
    chat_template: str = _choice(*CHAT_TEMPLATES, of_tokenizer=True)
    dtype: str = _choice("float32", "float64")
    seed: int = _number(0, 0, 2**63 - 1)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """Return a shape that has a name, "llama-tiny" say, with changes; or raise ConfigError."""
        if name not in PRESETS:
            raise ConfigError(f"preset must be one of {', '.join(PRESETS)}, got {name!r:.60}")
        return cls.from_dict(PRESETS[name] | changes)

    def __post_init__(self) -> None:
        if getattr(self, "n_kv_heads", None) is None:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        super().__post_init__()
        for name, part, whole in (
            ("embedding_dim", self.n_heads, self.embedding_dim),
            ("n_heads", self.n_kv_heads, self.n_heads),
        ):
            if whole % part:
                divisor = "n_heads" if name == "embedding_dim" else "n_kv_heads"
                raise ConfigError(f"{divisor} must divide {name}: {part} does not divide {whole}")
        if self.positions == "rotary" and self.embedding_dim // self.n_heads % 2:
            raise ConfigError(
                "rotary positions turn pairs of numbers: embedding_dim / n_heads must be even, got "
                f"{self.embedding_dim // self.n_heads}"
            )
        self._check_rope()

    def _check_rope(self) -> None:
        """Raise ConfigError if a setting of rotary positions has no effect, or none is defined."""
        for setting in fields(self):
            name, value = setting.name, getattr(self, setting.name)
            if not name.startswith("rope_") or value == setting.default:
                continue
            if self.positions != "rotary":
                raise ConfigError(f"{name} {value} is for rotary positions, not learned ones")
            if name not in ROPE_SETTINGS[self.rope_scaling].split():
                which = " or ".join(k for k, s in ROPE_SETTINGS.items() if name in s.split())
                raise ConfigError(
                    f"{name} {value} is for rope_scaling {which}, not {self.rope_scaling}"
                )
        if self.rope_low_freq_factor >= self.rope_high_freq_factor:
            raise ConfigError(
                "rope_low_freq_factor must be below rope_high_freq_factor, got "
                f"{self.rope_low_freq_factor:g} and {self.rope_high_freq_factor:g}"
            )


@dataclass(frozen=True)
class TrainConfig(_Config):
    """The settings of a training.

    Parameters
    ----------
    pretrain_epochs
        Passes over the statements; by default 20, of the bundled ones 12, or as many as it takes if
        there is one of `max_steps`, `max_tokens` and `max_time`.
    pretrain_rate
        Highest learning rate of the pre-training; by default 0.001, with the bundled data 0.003.
    tune_epochs
        Passes over the dialogues; by default 30, of the bundled ones 8, or as many as it takes if
        there is one of `max_steps`, `max_tokens` and `max_time`. On the command line, of few
        dialogues of your own, as many as make 200 steps.
    tune_rate
        Highest learning rate of the instruction tuning; by default 0.001, with the bundled data
        0.003.
    tune_replay
        Share of the texts of an epoch of the instruction tuning that are statements of the
        pre-training, so that the model does not forget them.
    tune_join
        Share of the texts of the instruction tuning that follow another one in the same row, where
        there is room, so that the model learns to answer in the midst of a chat.
    max_steps
        Steps of the optimizer after which a training ends; 0 for no limit.
    max_tokens
        Tokens read, after which a training ends; 0 for no limit.
    max_time
        Seconds (or such as 90s, 10m, 1.5h) after which a training ends, and its schedule too; 0 for
        no limit.
    loss_on
        What counts in the loss of instruction tuning: the words of the "assistant", or "all".
    batch_size
        Texts in one step of the optimizer; by default 16, with the bundled data 32.
    batch_tokens
        The most tokens in one step, instead of a number of texts; 0 to count texts.
    beta1
        Of Adam: how much of the gradient's running mean a step keeps.
    beta2
        Of Adam: how much of the squared gradient's running mean a step keeps.
    epsilon
        Of Adam: keeps the division defined where no gradient was ever seen.
    weight_decay
        Of AdamW; applies to all matrices, embeddings too, not to biases and layer norms.
    dropout
        Share of the numbers that a step sets to zero, in the embeddings' sum and in what each
        sub-layer gives (Srivastava et al. 2014). 0.1 to 0.2 where a model would learn its texts by
        heart.
    max_grad_norm
        L2 norm to which the whole gradient is clipped.
    schedule
        "constant", or from the rate down to `final_rate` times the rate: "linear", or "cosine".
    final_rate
        Where a linear or cosine schedule ends, as a share of the rate; by default 0.1, with the
        bundled data 0.01.
    warmup_steps
        Steps over which the rate rises from 0; by default none, with the bundled data 60.
    validation_share
        Share of the texts that is not learned but evaluated; of fewer than ten, of the end of each.
        On the command line, by default a tenth of texts of your own.
    tune_validation_share
        The same of the dialogues; by default as `validation_share`. On the command line, by default
        a tenth of dialogues of your own, if there are 1,000 of them.
    eval_every
        Steps from one evaluation to the next; 0 for one an epoch.
    patience
        Evaluations in a row without a lower loss after which a phase ends; 0 for no such end. On
        the command line, by default 5 with texts of your own, if nothing else says when it ends.
    seed
        Of the order in which the texts are seen, and of what dropout leaves out.
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

    pretrain_epochs: int = _follows(int, 0, UNLIMITED)
    pretrain_rate: float = _number(1e-3, 0, 1e3)
    tune_epochs: int = _follows(int, 0, UNLIMITED)
    tune_rate: float = _number(1e-3, 0, 1e3)
    tune_replay: float = _number(0.1, 0, 1, below=True)
    tune_join: float = _number(0.3, 0, 1)
    max_steps: int = _number(0, 0, 10**15)
    max_tokens: int = _number(0, 0, 10**15)
    max_time: float = _number(0.0, 0, LONGEST, time=True)
    loss_on: str = _choice("assistant", "all")
    batch_size: int = _number(16, 1, 10**6)
    batch_tokens: int = _number(0, 0, 10**9)
    beta1: float = _number(0.9, 0, 1, below=True)
    beta2: float = _number(0.999, 0, 1, below=True)
    epsilon: float = _number(1e-8, 1e-30, 1)
    weight_decay: float = _number(0.0, 0, 1e3)
    dropout: float = _number(0.0, 0, 1, below=True)
    max_grad_norm: float = _number(5.0, 1e-30)
    schedule: str = _choice("cosine", "linear", "constant")
    final_rate: float = _number(0.1, 0, 1)
    warmup_steps: int = _number(0, 0, 10**9)
    validation_share: float = _number(0.0, 0, 0.5)
    tune_validation_share: float = _follows(float, 0, 0.5)
    eval_every: int = _number(0, 0, 10**9)
    patience: int = _number(0, 0, 10**9)
    seed: int = _number(0, 0, 2**63 - 1)
    threads: int = _number(0, 0, MOST_THREADS)
    precision: str = _choice("float32", "bfloat16")

    def __post_init__(self) -> None:
        limited = self.max_steps or self.max_tokens or self.max_time
        for name, value in (
            ("pretrain_epochs", UNLIMITED if limited else 20),
            ("tune_epochs", UNLIMITED if limited else 30),
            ("tune_validation_share", self.validation_share),
        ):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        super().__post_init__()
