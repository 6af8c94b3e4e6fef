"""Being asked to stop: noted at once, answered between two steps."""

from __future__ import annotations

import os
import signal

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Interrupted:
    """Notes SIGTERM, SIGHUP and SIGINT while it is entered; `name` is the first that came.

    They may come any number of times. Only a second SIGINT (Ctrl-C) leaves at once, and not while
    `saving` is set. A SIGHUP that is ignored (nohup) stays ignored.
    """

    def __init__(self) -> None:
        self.name = ""
        self.saving = False

    def __enter__(self) -> Interrupted:
        self._old = {
            number: signal.signal(number, self._note)
            for number in SIGNALS
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        return self

    def _note(self, number: int, _) -> None:
        if not self.name:
            self.name = signal.Signals(number).name
            told = f"\n{self.name}: stopping after this step, once it is saved"
            again = " (Ctrl-C again: at once, unsaved)" if number == signal.SIGINT else ""
            os.write(2, f"{told}{again}\n".encode())  # a handler must not enter a buffered stream
        elif number == signal.SIGINT and not self.saving:
            raise KeyboardInterrupt

    def __exit__(self, *_) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
