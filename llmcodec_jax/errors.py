"""What a person can mend, and how every command answers it: one line and an exit status.

0: done. 1: it failed. 2: it was asked for something that cannot be. 75: saved, not finished; the
same command goes on. Any other error is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import errno
import functools
import sys
from collections.abc import Callable

FAILED, USAGE, UNFINISHED = 1, 2, 75  # 75 is EX_TEMPFAIL of sysexits.h: try again

MENDABLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EFBIG,
    errno.ENAMETOOLONG,
    errno.EIO,
    errno.ESTALE,
}
"""System errors that the machine's owner answers: a full disk, a folder without permission."""


class UserError(Exception):
    """Something failed that a person can mend; the message says how. Exit status 1."""


class UsageError(UserError, ValueError):
    """A command line or a config that cannot be. Exit status 2."""


def answer_errors(main: Callable[..., int]) -> Callable[..., int]:
    """`main`, with the errors that a person can mend as one line on stderr and a status."""

    @functools.wraps(main)
    def answering(*arguments) -> int:
        try:
            return main(*arguments)
        except (UsageError, FileNotFoundError) as error:
            return _tell(error, USAGE)
        except UserError as error:
            return _tell(error, FAILED)
        except OSError as error:
            if error.errno not in MENDABLE:
                raise
            return _tell(error, FAILED)

    return answering


def _tell(error: Exception, status: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return status
