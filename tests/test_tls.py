"""Certificates: what is wrong is a sentence at the start, not a failed handshake later."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import time
from pathlib import Path

import pytest

from bridge.errors import ConfigError
from bridge.tls import Certificate
from tests.certificates import DAY, write, write_good
from tests.knocks import CANARY, ec_key, rsa_key


def problem(cert: str, key: str) -> str:
    with pytest.raises(ConfigError) as e:
        Certificate(cert, key, time.time())
    [text] = e.value.problems
    return text


async def shake_hands(context: ssl.SSLContext, client: ssl.SSLContext) -> tuple[str, bytes]:
    """Version, and the certificate that the client saw."""
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
        tls = writer.get_extra_info("ssl_object")
        seen = tls.version(), tls.getpeercert(binary_form=True)
        await reader.read()
        writer.close()
        await writer.wait_closed()
        return seen


def trusting(cert: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=cert)


async def test_a_good_certificate_serves(tmp_path: Path) -> None:
    cert, key = write_good(tmp_path)
    certificate = Certificate(cert, key, time.time())
    assert certificate.expires == pytest.approx(time.time() + 365 * 86400, abs=60)
    version, _ = await shake_hands(certificate.context, trusting(cert))
    assert version == "TLSv1.3"
    client = trusting(cert)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert (await shake_hands(certificate.context, client))[0] == "TLSv1.2"


def test_old_tls_is_not_spoken(tmp_path: Path) -> None:
    context = Certificate(*write_good(tmp_path), time.time()).context
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


async def test_renewed_files_are_used_from_the_next_connection_on(tmp_path: Path) -> None:
    cert, key = write_good(tmp_path)
    certificate = Certificate(cert, key, time.time())
    _, before = await shake_hands(certificate.context, trusting(cert))
    write_good(tmp_path)
    assert certificate.reload(time.time())
    _, after = await shake_hands(certificate.context, trusting(cert))
    assert before != after


def half_write(path: str) -> None:
    Path(path).write_text("half written")


async def test_files_that_cannot_be_used_change_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = write_good(tmp_path)
    trusted = trusting(cert)
    certificate = Certificate(cert, key, time.time())
    expires = certificate.expires
    write_good(tmp_path, key=rsa_key())
    half_write(key)
    assert not certificate.reload(time.time())
    assert caplog.messages == [
        f"the certificate stays as it was: websocket.tls_key: {key}: expected a private key "
        "in PEM, of a kind that TLS takes"
    ]
    assert certificate.expires == expires
    await shake_hands(certificate.context, trusted)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    cert, key = write_good(tmp_path)
    assert problem(f"{cert}x", key) == (
        f"websocket.tls_cert: {cert}x: cannot be read: No such file or directory"
    )
    assert problem(cert, str(tmp_path)) == (
        f"websocket.tls_key: {tmp_path}: cannot be read: Is a directory"
    )


def test_what_is_no_certificate(tmp_path: Path) -> None:
    cert, key = write_good(tmp_path)
    assert problem(key, key) == f"websocket.tls_cert: {key}: has no certificate in PEM"
    broken = tmp_path / "broken.pem"
    broken.write_text(Path(cert).read_text()[:200])
    assert problem(str(broken), key).endswith(": has no certificate in PEM")


def test_what_is_no_key(tmp_path: Path) -> None:
    cert, _ = write_good(tmp_path)
    assert problem(cert, cert) == (
        f"websocket.tls_key: {cert}: expected a private key in PEM, of a kind that TLS takes"
    )


@pytest.mark.parametrize("number", [1, 2])
def test_a_key_that_does_not_match(number: int, tmp_path: Path) -> None:
    cert, _ = write_good(tmp_path, "one", [rsa_key(1), ec_key()][number - 1])
    _, key = write_good(tmp_path, "two", rsa_key(2))
    assert problem(cert, key) == f"websocket.tls_key: {key}: is not the key of {cert}"


def test_a_key_with_a_password_asks_nobody(tmp_path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    cert, key = write(
        tmp_path, "locked", begins=now - DAY, ends=now + DAY, password=CANARY.encode()
    )
    assert problem(cert, key) == (
        f"websocket.tls_key: {key}: has a password; give a key without one"
    )


@pytest.mark.parametrize(
    ("begins", "ends", "sentence"),
    [(-10, -1, "has expired on 2026-11-29; renew it"), (2, 9, "is not good before 2026-12-02")],
)
def test_a_certificate_out_of_its_time(
    begins: int, ends: int, sentence: str, tmp_path: Path
) -> None:
    today = datetime.datetime(2026, 11, 30, tzinfo=datetime.UTC)
    cert, key = write(tmp_path, "old", begins=today + begins * DAY, ends=today + ends * DAY)
    with pytest.raises(ConfigError) as e:
        Certificate(cert, key, today.timestamp())
    assert e.value.problems == [f"websocket.tls_cert: {cert}: {sentence}"]


def test_a_certificate_that_ends_soon(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    today = datetime.datetime(2026, 11, 30, tzinfo=datetime.UTC)
    cert, key = write(tmp_path, "old", begins=today - DAY, ends=today + 3 * DAY)
    Certificate(cert, key, today.timestamp())
    assert caplog.messages == [f"{cert} expires on 2026-12-03"]
