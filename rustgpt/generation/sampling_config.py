"""Owns what may be set of a text to be made: how its tokens are chosen, and when it ends."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Final, Self

from rustgpt.config import _checked, _follows, _number
from rustgpt.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Takes the tokens so far and the scores (V,) of what may follow; returns the scores to choose by.
Processor = Callable[[Sequence[int], "NDArray[Any]"], "NDArray[Any]"]

LARGEST_BIAS: Final = 1_000_000
UNSET: Any = object()  # an argument that was not given


@dataclass(frozen=True)
class SamplingConfig:
    """How a text is made: which token is chosen each time, and when it ends.

    What narrows the choice (`top_k`, `top_p`, `min_p`) counts at a temperature above 0.

    Parameters
    ----------
    max_new_tokens
        The most tokens to make.
    temperature
        0 for the likeliest token each time; higher is more varied.
    top_k
        Draw among the k likeliest tokens; 0 for all.
    top_p
        Draw among the likeliest tokens whose probabilities together reach p; 1 for all.
    min_p
        Draw among tokens at least this many times as likely as the likeliest; 0 for all.
    repetition_penalty
        Divides the scores of tokens that the text has (multiplies those below 0); 1 for none.
    presence_penalty
        Is subtracted from the score of each token that the text has.
    frequency_penalty
        Is subtracted from the score of a token once for each time that the text has it.
    no_repeat_ngram
        No run of so many tokens comes twice in the text; 0 for any.
    logit_bias
        A number to be added to the score of a token, by token id; -inf rules it out.
    stop
        Texts before which the answer ends.
    seed
        Of the draws: the same seed gives the same text.
    n
        How many texts to make of one prompt.
    logprobs
        How many of the likeliest tokens to tell of with each one, with their log-probabilities as
        the model gives them; by default none.
    num_beams
        Texts that are followed at once, to find the likeliest as a whole; 1 for no beam search.
    length_penalty
        The power of the number of new tokens by which a beam's log-probability is divided; higher
        favours longer texts.
    choices
        Texts of which the answer must be one, as far as `max_new_tokens` reach.
    json_schema
        A JSON schema that the answer follows, as far as `max_new_tokens` reach.
    processors
        Functions of your own (history, scores) -> scores, called before the temperature.

    Raises
    ------
    ConfigError
        If a value is out of range, or two contradict each other.
    """

    max_new_tokens: int = _number(60, 0, 2**31 - 1)
    temperature: float = _number(0.0, 0, below=True)
    top_k: int = _number(0, 0, 2**31 - 1)
    top_p: float = _number(1.0, 0, 1)
    min_p: float = _number(0.0, 0, 1)
    repetition_penalty: float = _number(1.0, 1e-3, 1e3)
    presence_penalty: float = _number(0.0, -1e3, 1e3)
    frequency_penalty: float = _number(0.0, -1e3, 1e3)
    no_repeat_ngram: int = _number(0, 0, 2**31 - 1)
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: Sequence[str] = ()
    seed: int = _number(0, 0, 2**63 - 1)
    n: int = _number(1, 1, 1000)
    logprobs: int | None = _follows(int, 0, 1000)
    num_beams: int = _number(1, 1, 64)
    length_penalty: float = _number(1.0, -10, 10)
    choices: Sequence[str] = ()
    json_schema: Mapping[str, Any] | bool | None = None
    processors: Sequence[Processor] = ()

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if "limits" in setting.metadata and not (setting.name == "logprobs" and value is None):
                object.__setattr__(self, setting.name, _checked(setting, value))
        for name in ("stop", "choices"):
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        object.__setattr__(self, "json_schema", _json(self.json_schema))
        object.__setattr__(self, "processors", _functions(self.processors))
        self._check_beams()
        if self.choices and self.json_schema is not None:
            raise ConfigError("an answer follows choices or a json_schema, not both")

    @property
    def is_held(self) -> bool:
        """Whether the answer is held to choices or a schema."""
        return bool(self.choices) or self.json_schema is not None

    def _check_beams(self) -> None:
        """Raise ConfigError unless beam search and the other settings go together."""
        if self.num_beams == 1:
            return
        if self.temperature:
            raise ConfigError(
                f"num_beams {self.num_beams} looks for the likeliest text: it needs temperature 0, "
                f"got {self.temperature}"
            )
        if self.n > self.num_beams:
            raise ConfigError(f"num_beams must be at least n, {self.n}, got {self.num_beams}")

    @classmethod
    def of(cls, sampling: SamplingConfig | None = None, **settings: Any) -> Self | SamplingConfig:
        """Return a configuration, or another one with these settings changed.

        A setting that is `UNSET` is left as it is.

        Raises
        ------
        ConfigError
            If there is no such setting, or see the class.
        """
        given = {name: value for name, value in settings.items() if value is not UNSET}
        known = sorted(setting.name for setting in fields(cls))
        for name in given:
            if name not in known:
                raise ConfigError(
                    f"there is no setting {name!r:.60} of generation; there are {', '.join(known)}"
                )
        if sampling is None:
            return cls(**given)
        if not isinstance(sampling, SamplingConfig):
            raise ConfigError(f"sampling must be a SamplingConfig, got {sampling!r:.60}")
        return replace(sampling, **given) if given else sampling


def _texts(name: str, value: Any) -> tuple[str, ...]:
    """Return texts as a tuple; one alone may be given without a list."""
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(t, str) and t for t in texts):
        raise ConfigError(f"{name} must be a list of texts that are not empty, got {value!r:.60}")
    return tuple(texts)


def _biases(value: Any) -> dict[int, float]:
    """Return biases by token id; ids are checked where the vocabulary is known."""
    wrong = ConfigError(f"logit_bias must have a number for each token id, got {value!r:.60}")
    if not isinstance(value, Mapping):
        raise wrong
    try:
        # Keys of JSON are text.
        keys = [int(i) if isinstance(i, str) else operator.index(i) for i in value]
        found = dict(zip(keys, map(float, value.values()), strict=True))
    except (TypeError, ValueError, OverflowError):
        raise wrong from None
    if not all(bias <= LARGEST_BIAS for bias in found.values()):  # NaN fails too
        raise ConfigError(f"logit_bias must be at most {LARGEST_BIAS:,}, got {value!r:.60}")
    return found


def _json(schema: Any) -> Any:
    """Return a JSON schema as a copy of its own."""
    if schema is None or isinstance(schema, bool):
        return schema
    if not isinstance(schema, Mapping):
        raise ConfigError(f"json_schema must be an object of JSON, got a {type(schema).__name__}")
    try:
        return json.loads(json.dumps(dict(schema), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"json_schema cannot be written as JSON: {error!s:.80}") from None


def _functions(value: Any) -> tuple[Processor, ...]:
    if not isinstance(value, Sequence) or not all(map(callable, value)):
        raise ConfigError(f"processors must be a list of functions, got {value!r:.60}")
    return tuple(value)
