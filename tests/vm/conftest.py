# SPDX-License-Identifier: Apache-2.0
"""Booted VMs for the tests.

One pair of VMs serves all tests that leave it as they found it.  Tests of how VMs
start, and those that reboot one, boot their own.
"""

import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.vm import bare_slave, debug_kernel, pair
from tests.vm.daemon import Daemon
from tests.vm.image import CHECKOUT
from tests.vm.pair import Pair


@pytest.fixture(scope="session")
def logs(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The directory of the VMs' logs; it is kept only if a test failed."""
    directory = CHECKOUT / "logs" / f"test-{os.getpid()}"
    yield directory
    if request.session.testsfailed:
        print(f"\nlogs of the VMs: {directory}")
    else:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def here(logs: Path, request: pytest.FixtureRequest) -> Path:
    """The directory for the logs of one test's VMs."""
    return Path(logs / request.node.name)


@pytest.fixture(scope="session")
def booted(logs: Path) -> Iterator[Pair]:
    """Both VMs, up for the whole run, without an agent; each binding is possible."""
    with pair.booted(logs / "shared", module=True) as link:
        yield link


@pytest.fixture(
    scope="module",
    params=debug_kernel.under_test(),
    ids=lambda kernel: kernel.name,
)
def module_booted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[bare_slave.Slave]:
    """A slave VM with our kernel module and two root ports, for each kernel."""
    logs = tmp_path_factory.mktemp("module")
    with bare_slave.module_loaded(logs, request.param, ports=2) as slave:
        yield slave


@pytest.fixture
def daemon(logs: Path, request: pytest.FixtureRequest) -> Iterator[Daemon]:
    """A daemon that no VM is connected to."""
    with Daemon("card", memory="512M", logs=logs / request.node.name) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def served(booted: Pair, request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Both VMs with an agent in the slave.

    The parameter says how the agent binds its device.
    """
    with booted.slave.agent(request.param):
        yield booted


@pytest.fixture
def link(served: Pair) -> Pair:
    """Both VMs with packets crossing."""
    served.master.configure()
    served.wait_link()
    return served


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Print the directory of the VMs' logs below a failure."""
    report = yield
    if report.failed:
        where = CHECKOUT / "logs" / f"test-{os.getpid()}"
        report.sections.append(("logs of the VMs", str(where)))
    return report
