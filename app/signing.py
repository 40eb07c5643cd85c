"""Passes: short texts that say until when somebody may ask for tiles, and that nobody else can make."""

from __future__ import annotations

import hashlib
import hmac
import time
from typing import Final

HOURS: Final = 8
"""For which a pass is good; a page that is used renews it."""
ROUND: Final = 900
"""Seconds: a pass changes no more often, so that what a browser knows keeps its address."""


class Signer:
    """Makes passes and checks them."""

    def __init__(self, key: bytes) -> None:
        self._key = hashlib.sha256(b"veca passes" + key).digest()

    def issue(self, now: float | None = None) -> str:
        """A pass from now on."""
        until = int(((time.time() if now is None else now) // ROUND + 1) * ROUND) + HOURS * 3600
        return f"{until}.{self._sign(until)}"

    def accepts(self, text: str, now: float | None = None) -> bool:
        """Whether this is a pass of ours that has not run out."""
        until, _, signature = text.partition(".")
        if not until.isascii() or not until.isdigit() or len(until) > 12:
            return False
        good = hmac.compare_digest(signature.encode(errors="replace"), self._sign(int(until)).encode())
        return good and int(until) > (time.time() if now is None else now)

    def _sign(self, until: int) -> str:
        return hmac.new(self._key, str(until).encode(), hashlib.sha256).hexdigest()[:40]
