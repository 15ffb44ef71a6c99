"""Owns what config.json of Hugging Face says of rotary positions, in three spellings."""

from __future__ import annotations

from typing import Any, Final

from rustgpt.config import ModelConfig
from rustgpt.formats.json_file import Fields

TYPE: Final = "rope_type type"  # of which the second is the older
# What each kind of scaling has beside its type.
KNOWN: Final = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    ),
}  # fmt: skip


def rope_settings(fields: Fields, length: int) -> dict[str, Any]:
    """Return our settings of rotary positions.

    They stand in "rope_parameters", or as "rope_theta" and "rope_scaling", as older files have it.

    Parameters
    ----------
    fields
        Of config.json.
    length
        The positions of the model.

    Raises
    ------
    CheckpointError
        If a kind of scaling, or one of its settings, is not known here.
    """
    whole = fields.get(dict, "rope_parameters rope_scaling", {})
    scaling = Fields(fields.path, whole, fields.error)
    theta = scaling.get(float, "rope_theta", None)
    given = fields.get(float, "rope_theta", theta)
    if theta is not None and given != theta:
        fields.refuse(f"rope_theta is {given:g}, but in rope_parameters {theta:g}")
    kind = scaling.get(str, TYPE, "default")
    if kind not in KNOWN:
        fields.refuse(
            f"rope_type {kind!r:.60} cannot be expressed here; these can: {', '.join(KNOWN)}"
        )
    for holder in (scaling, fields):
        holder.must_be("partial_rotary_factor", 1.0, "a part of each head alone cannot be turned")
    known = {*TYPE.split(), "rope_theta", "partial_rotary_factor", *KNOWN[kind]}
    for name, value in whole.items():
        if name not in known and value is not None:
            fields.refuse(f"rope_type {kind!r} has no {name!r:.60}, which cannot be expressed here")
    found: dict[str, Any] = {} if given is None else {"rope_theta": given}
    if kind == "default":
        return found
    found |= {"rope_scaling": kind, "rope_factor": _needed(scaling, kind, "factor")}
    if kind == "llama3":
        found |= {
            f"rope_{name}": _needed(scaling, kind, name)
            for name in ("low_freq_factor", "high_freq_factor")
        }
        original = scaling.get(int, "original_max_position_embeddings", length)
        found["rope_original_max_seq_len"] = 0 if original == length else original
    return found


def _needed(scaling: Fields, kind: str, name: str) -> float:
    value: float | None = scaling.get(float, name, None)
    if value is None:
        scaling.refuse(f"rope_type {kind!r} needs {name!r}")
    return value


def written_rope(config: ModelConfig) -> dict[str, Any]:
    """Return what config.json says of rotary positions, as old and new versions read it."""
    kind = config.rope_scaling
    found: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_scaling": None}
    if kind == "none":
        return found
    scaling = {"rope_type": kind, "factor": config.rope_factor}
    if kind == "llama3":
        scaling |= {
            "low_freq_factor": config.rope_low_freq_factor,
            "high_freq_factor": config.rope_high_freq_factor,
            "original_max_position_embeddings": (
                config.rope_original_max_seq_len or config.max_seq_len
            ),
        }
    return {**found, "rope_scaling": scaling}
