"""Secrets at rest: AES-256-GCM under a key that lies outside the store.

The key is derived from the home's own secret with a label of its own, so what hashes API keys and what encrypts secrets tell nothing of
one another. A secret's name goes into the seal: a ciphertext moved to another name does not open.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping

LABEL = b"aima: secrets at rest: AES-256-GCM: 1"
NONCE_BYTES = 12


class Unreadable(Exception):
    """What was sealed cannot be opened: by another key, under another name, or changed since."""


class Vault:
    """Seals and opens texts with the key derived from `secret`. The library is imported late: hosts without secrets need none."""

    def __init__(self, secret: bytes) -> None:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        self._cipher = AESGCM(HKDF(hashes.SHA256(), 32, salt=None, info=LABEL).derive(secret))

    def seal(self, name: str, text: str) -> dict[str, str]:
        """What may be stored of a secret: {nonce, ciphertext}."""
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, text.encode(), name.encode())
        return {"nonce": base64.b64encode(nonce).decode(), "ciphertext": base64.b64encode(sealed).decode()}

    def open(self, name: str, sealed: Mapping[str, str]) -> str:
        """The text again.

        Raises:
            Unreadable: it was sealed by another key or under another name, or has been changed.
        """
        from cryptography.exceptions import InvalidTag

        try:
            nonce, ciphertext = (base64.b64decode(sealed[key], validate=True) for key in ("nonce", "ciphertext"))
            return self._cipher.decrypt(nonce, ciphertext, name.encode()).decode()
        except (InvalidTag, KeyError, TypeError, ValueError) as error:
            raise Unreadable(name) from error
