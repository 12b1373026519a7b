"""Certificates for loopback, as an administrator's files."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from tests.knocks import ec_key

DAY = datetime.timedelta(days=1)


def write(
    directory: Path, name: str, *, begins: datetime.datetime, ends: datetime.datetime,
    key: Any = None, password: bytes | None = None,
) -> tuple[str, str]:  # fmt: skip
    """Paths of the certificate (of itself, for 127.0.0.1) and of its key."""
    key = key or ec_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encryption = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    cert_file, key_file = directory / f"{name}.pem", directory / f"{name}.key"
    cert_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    )
    return str(cert_file), str(key_file)


def write_good(directory: Path, name: str = "good", key: Any = None) -> tuple[str, str]:
    """Good from yesterday for a year, by the real clock: a handshake looks at that."""
    now = datetime.datetime.now(datetime.UTC)
    return write(directory, name, begins=now - DAY, ends=now + 365 * DAY, key=key)
