"""The entry point of the command `gradflow`: until training starts, Ctrl-C ends the process at once, with one line.

This holds during the slow imports too. `python -m gradflow` runs this file after importing the package; the installed
script runs it first, since a wheel also contains this file as the module `gradflow_command`.
"""

import contextlib
import os
import signal
import sys


def stop(*_: object) -> None:
    """End the process at once: a module that is being imported must not report the interrupt as an error."""
    with contextlib.suppress(OSError):
        os.write(2, b"gradflow: error: interrupted\n")
    os._exit(130)


if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # otherwise the process ignores Ctrl-C
    signal.signal(signal.SIGINT, stop)


def main() -> int:
    """Run the command line and return the exit status."""
    from gradflow.cli import main

    status = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the end of the interpreter is left
    return status


if __name__ == "__main__":
    sys.exit(main())
