"""Key pairs that live as long as a lease."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class KeyPair:
    """An SSH key pair.

    Attributes:
        private_key_pem: OpenSSH PEM, unencrypted: kept in memory or in a 0600 file.
        public_key_line: ``ssh-ed25519 AAAA...``, without a comment.
    """

    private_key_pem: str = field(repr=False)
    public_key_line: str


def generate_keypair() -> KeyPair:
    """Make a new ed25519 key pair."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = Ed25519PrivateKey.generate()
    return KeyPair(
        private_key_pem=key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode("ascii"),
        public_key_line=key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii"),
    )
