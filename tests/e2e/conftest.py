"""Fixtures: one `millrace dev` for most tests, two separate tiers for those that kill one."""

import pytest

from processes import Dev, Tiers


@pytest.fixture(scope="session")
def dev(tmp_path_factory):
    """One `millrace dev` for all tests that do not restart it."""
    folder = tmp_path_factory.mktemp("dev")
    process = Dev(folder / "data", folder / "log")
    yield process
    status = process.terminate()
    assert status == 0, f"millrace dev ended with {status}:\n{process.tail()}"


@pytest.fixture
def two_users(dev):
    """Two fresh user ids."""
    return dev.user(), dev.user()


@pytest.fixture
def tiers(tmp_path):
    """Gateway and logic as processes of their own."""
    tiers = Tiers(tmp_path)
    tiers.start_logic()
    tiers.start_gateway()
    yield tiers
    tiers.stop()
