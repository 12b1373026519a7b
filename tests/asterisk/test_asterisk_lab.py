"""The laboratory itself: what it leaves behind, above all when something goes wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lab import ROOT, Lab, LabError, free_range, sweep


def test_a_failed_start_leaves_nothing_behind(lab: Lab) -> None:
    broken = Lab()
    (broken.outside / "modules.conf").write_text("[modules]\nrequire = not_there.so\n")
    with pytest.raises(LabError, match="Asterisk did not start"):
        broken.start()
    assert not broken.running
    broken.stop()
    assert not broken.outside.exists()
    assert lab.outside.exists() and lab.running


def test_what_killed_runs_left_is_removed(lab: Lab) -> None:
    left = ROOT / "tmp/callscribe-lab-999999999-left"
    left.mkdir(exist_ok=True)
    sweep()
    assert not left.exists()
    assert lab.outside.exists()


def test_every_listener_is_on_loopback(lab: Lab) -> None:
    assert lab.process is not None
    proc = Path("/proc", str(lab.process.pid))
    inodes = {os.readlink(fd) for fd in (proc / "fd").iterdir()}
    addresses = {}
    # Of UDP the SIP port only: PJSIP's resolver has sockets for DNS answers on any address.
    for name in ("tcp", "tcp6", "udp"):
        for row in (proc / "net" / name).read_text().splitlines()[1:]:
            fields = row.split()
            address, port = fields[1].split(":")
            ours = f"socket:[{fields[9]}]" in inodes
            if ours and (name != "udp" or int(port, 16) == lab.sip):
                addresses[int(port, 16)] = address
    assert {lab.ami, lab.sip} <= set(addresses)
    assert set(addresses.values()) == {"0100007F"}  # 127.0.0.1


def test_ports_in_a_row_are_free() -> None:
    first = free_range(20)
    assert 1024 < first < first + 20 < 32_768
