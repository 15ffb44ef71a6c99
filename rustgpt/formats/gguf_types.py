"""Owns the types of tokens in a GGUF file, by number."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
