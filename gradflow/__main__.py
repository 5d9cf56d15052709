"""The entry point of the command `gradflow`: until training starts, a signal ends the process at once, with one line.

This holds during the slow imports too. `python -m gradflow` runs this file after importing the package; the installed
script runs it first, since a wheel also contains this file as the module `gradflow_command`.
"""

import contextlib
import os
import signal
import sys


def stop(number: int, _: object) -> None:
    """End the process at once: a module that is being imported must not report the interrupt as an error."""
    what = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    with contextlib.suppress(OSError):
        os.write(2, f"gradflow: error: {what}\n".encode())
    os._exit(128 + number)


SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
for _number in SIGNALS:
    if signal.getsignal(_number) is not signal.SIG_IGN:  # as under nohup
        signal.signal(_number, stop)


def main() -> int:
    """Run the command line and return the exit status."""
    from gradflow.cli import main

    status = main()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # only the end of the interpreter is left
    return status


if __name__ == "__main__":
    sys.exit(main())
