"""The laboratory, once per test run, and what a test of it needs each time."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import lab as laboratory
import lab_ami
import lab_sink
import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this directory needs the laboratory."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.asterisk)
            item.add_marker(pytest.mark.xdist_group("asterisk"))  # one Asterisk for all


@pytest.fixture(scope="session")
def _asterisk() -> Iterator[laboratory.Lab]:
    """Without a laboratory: skip, or fail where CALLSCRIBE_REQUIRE_LAB=1 says there must be one."""
    if why := laboratory.missing():
        if os.environ.get("CALLSCRIBE_REQUIRE_LAB") == "1":
            pytest.fail(why)
        pytest.skip(why)
    lab = laboratory.Lab()
    try:
        lab.start()
        yield lab
    finally:
        lab.stop()


@pytest.fixture
def lab(_asterisk: laboratory.Lab) -> Iterator[laboratory.Lab]:
    """An Asterisk that runs and has no calls."""
    if not _asterisk.running:
        _asterisk.start()
    yield _asterisk
    if _asterisk.running:
        _asterisk.cli("channel request hangup all", check=False)


@pytest.fixture
async def ami(lab: laboratory.Lab) -> AsyncIterator[lab_ami.Ami]:
    """A session that sees everything and may do everything."""
    async with lab_ami.connect(lab.ami, "lab", lab.secret) as session:
        yield session


@pytest.fixture
async def sink(lab: laboratory.Lab) -> AsyncIterator[lab_sink.Sink]:
    """An AudioSocket server where the samples call the bridge."""
    async with lab_sink.listen() as server:
        lab.call_bridge_at(server.port)
        yield server
        lab.cli("channel request hangup all", check=False)
