"""Owns packages that are extras: imported where they are needed, and asked for by name."""

from __future__ import annotations

import importlib
from typing import Any

from rustgpt.errors import RustGPTError


def extra(package: str, part: str, name: str, purpose: str, error: type[RustGPTError]) -> Any:
    """Return a package that is an extra.

    Parameters
    ----------
    package
        What is imported.
    part
        Something that is in it; a folder of the same name, which may be in the way, lacks it.
    name
        Of the extra: ``pip install 'rustgpt[name]'``.
    purpose
        What needs it.
    error
        The error for when it is not there.
    """
    try:
        found = importlib.import_module(package)
        getattr(found, part)
    except (ImportError, AttributeError):
        raise error(
            f"{purpose} needs the package {package}: install it by pip install 'rustgpt[{name}]'"
        ) from None
    return found
