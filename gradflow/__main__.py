"""The command `gradflow`, from its first line: until a run trains, Ctrl-C ends it at once, with one line.

What takes time is imported under that rule. `python -m gradflow` comes here once the package is imported; the installed
script comes here first, since a wheel holds this file as `gradflow_command`, too.
"""

import contextlib
import os
import signal
import sys


def stop(*_: object) -> None:
    """End the process, without a word from what is being imported and might take the interrupt for a fault."""
    with contextlib.suppress(OSError):
        os.write(2, b"gradflow: error: interrupted\n")
    os._exit(130)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else the process is to ignore it
    signal.signal(signal.SIGINT, stop)


def main() -> int:
    """Run the command with the words of the command line; the exit status."""
    from gradflow.cli import main

    status = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is over, but for the end of the interpreter
    return status


if __name__ == "__main__":
    sys.exit(main())
