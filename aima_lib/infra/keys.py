"""What a key looks like, and what is kept of it.

A key is 256 random bits in letters, with a checksum behind them that tells a slip of the hand from a key that nobody has. Of the key
itself only its HMAC is kept: a copy of the store opens no door, and the secret of the HMAC lies outside the store.
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
import zlib

START = "aima-"
SHOWN = len(START) + 4  # enough to tell keys apart in a list, and no help in guessing one
CHECK = 6
SHAPE = re.compile(rf"{START}[A-Za-z0-9_-]{{{43 + CHECK}}}")


def mint() -> str:
    """A new key."""
    body = START + _letters(secrets.token_bytes(32))
    return body + _checksum(body)


def is_whole(text: str) -> bool:
    """Whether `text` could be a key: a mistyped one, or a part of one, could not."""
    return SHAPE.fullmatch(text) is not None and _checksum(text[:-CHECK]) == text[-CHECK:]


def digest(secret: bytes, text: str) -> str:
    """What is kept of a key."""
    return hmac.digest(secret, text.encode(), "sha256").hex()


def _checksum(body: str) -> str:
    return _letters(zlib.crc32(body.encode()).to_bytes(4, "big"))


def _letters(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
