"""What can be wrong with a request, said in one line; and the errors that end a run with a plain word."""

from __future__ import annotations

from typing import Final

from tiling.errors import ImageError
from veca_core.errors import ModelError


class RequestError(Exception):
    """Something that a user asked for and that cannot be done: what was found, what was expected, what to do."""


USER_ERRORS: Final = (RequestError, ImageError, ModelError)
"""What a command reports in one line, without a traceback."""
