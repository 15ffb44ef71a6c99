"""Owns `python -m rustgpt`, which is the same as the command `rustgpt`."""

import sys

from rustgpt.cli import main

if __name__ == "__main__":
    sys.exit(main())
