"""TLS of our own listeners: what is wrong with a certificate is said at the start, in a sentence.

The only file that reads certificates. Files are read again by `reload`; a fresh worker (SIGHUP)
reads them anyway.
"""

from __future__ import annotations

import datetime
import logging
import ssl
from pathlib import Path

from cryptography import x509

from bridge.errors import ConfigError

log = logging.getLogger(__name__)

LONGEST = 1024 * 1024  # bytes of a file
DAY = 86400.0  # s
SOON = 14 * DAY  # a certificate that ends within it is warned of


class Certificate:
    """A certificate with its chain, and its key. `where`: the section, for sentences.

    Raises `ConfigError` if it cannot be used. `now`: Unix time. `context` is to be asked for by
    every connection: `reload` puts another one there, whole or not at all.
    """

    def __init__(self, cert: str, key: str, now: float, *, where: str = "websocket") -> None:
        self._cert, self._key, self._where = cert, key, where
        self.context, self.expires = self._loaded(now)  # Unix time

    def reload(self, now: float) -> bool:
        """Use what is in the files now, from the next connection on; False: it is not usable, the
        reason is in the log, and nothing changes."""
        try:
            self.context, self.expires = self._loaded(now)
        except ConfigError as e:
            log.error("the certificate stays as it was: %s", e)
            return False
        return True

    def _loaded(self, now: float) -> tuple[ssl.SSLContext, float]:
        """And until when it is good."""
        leaf = self._leaf()
        self._read(self._key, "tls_key")
        begins, ends = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
        if now >= ends:
            raise self._wrong("tls_cert", f"{self._cert}: has expired on {day(ends)}; renew it")
        if now < begins:
            raise self._wrong("tls_cert", f"{self._cert}: is not good before {day(begins)}")
        context = _context()
        try:
            context.load_cert_chain(self._cert, self._key, password=_no_password)
        except _Encrypted:
            raise self._wrong(
                "tls_key", f"{self._key}: has a password; give a key without one"
            ) from None
        except ssl.SSLError as e:
            if e.reason in ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
                text = f"{self._key}: is not the key of {self._cert}"
            else:
                text = f"{self._key}: expected a private key in PEM, of a kind that TLS takes"
            raise self._wrong("tls_key", text) from None
        if ends - now < SOON:
            log.warning("%s expires on %s", self._cert, day(ends))
        return context, ends

    def _leaf(self) -> x509.Certificate:
        """The first certificate of the file, which is ours; those after it are its chain."""
        try:
            return x509.load_pem_x509_certificates(self._read(self._cert, "tls_cert"))[0]
        except ValueError:
            raise self._wrong("tls_cert", f"{self._cert}: has no certificate in PEM") from None

    def _read(self, path: str, setting: str) -> bytes:
        try:
            with Path(path).open("rb") as file:
                return file.read(LONGEST)
        except OSError as e:
            raise self._wrong(setting, f"{path}: cannot be read: {e.strerror}") from None

    def _wrong(self, setting: str, sentence: str) -> ConfigError:
        return ConfigError([f"{self._where}.{setting}: {sentence}"])


class _Encrypted(Exception):
    """Otherwise OpenSSL would ask the terminal."""


def _no_password() -> str:
    raise _Encrypted


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])  # WebSockets over HTTP/2 are another protocol
    return context


def day(at: float) -> str:
    """Of Unix time, in UTC."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%d")
