"""What can be wrong with a request, said in one line; and the errors that end a run with a plain word."""

from __future__ import annotations

import errno
from typing import Final

from tiling.errors import ImageError
from veca_core.errors import ModelError


class RequestError(Exception):
    """Something that a user asked for and that cannot be done: what was found, what was expected, what to do."""


USER_ERRORS: Final = (RequestError, ImageError, ModelError)
"""What a command reports in one line, without a traceback."""


def said_by_system(error: OSError) -> str:
    """One line for what the system would not do: its reason, the file, and for a full disk what then."""
    reason = " ".join(f"{error.strerror or error} {error.filename or ''}".split())
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return reason
    return f"{reason}; free some space, and the same command goes on from here"
