"""Owns the start and the end of the program: `rustgpt`, or `python -m rustgpt`."""

# Nothing else, for until Ctrl-C is taken care of, it makes Python print a traceback.
import os
import signal
import sys


def _quit(*_: object) -> None:
    os._exit(130)


def main() -> None:
    """Run the command line and end the process with its exit status.

    Ctrl-C before the commands are loaded, or after their work is done, ends it without a word.
    """
    heeds = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeds:  # not in a job that a script put in the background
        signal.signal(signal.SIGINT, _quit)
    status = 130
    try:
        from rustgpt import cli

        if heeds:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        status = cli.main()
        if heeds:
            signal.signal(signal.SIGINT, _quit)
    except KeyboardInterrupt:  # between two of these lines
        _quit()
    sys.exit(status)


if __name__ == "__main__":
    main()
