import os
import pathlib

import pytest

from harness import REPOSITORY, Server


def pytest_addoption(parser):
    default = os.environ.get("PLAIT", str(REPOSITORY / "build" / "release" / "apps" / "plait" / "plait"))
    parser.addoption("--plait", default=default, help="the program under test")
    parser.addoption("--crash-rounds", type=int, default=20, help="how often the crash test kills the engine")


@pytest.fixture(scope="session")
def plait(request):
    path = pathlib.Path(request.config.getoption("--plait")).resolve()
    assert path.exists(), f"{path} does not exist: build it, or name it with --plait"
    return path


@pytest.fixture(scope="session")
def demo(plait):
    """A server that the tests share: they must leave it as they found it."""
    with Server(plait) as server:
        yield server
        assert server.answers()
        assert server.info()["engine_restarts"] == 0, "a test of misuse brought the engine down:\n" + server.log()


@pytest.fixture
def serve(plait):
    """Starts servers with flags of their own; all are stopped at the end of the test."""
    servers = []

    def start(*flags, ready=True, **arguments):
        server = Server(plait, *flags, **arguments)
        servers.append(server)
        return server.wait_ready() if ready else server

    yield start
    for server in servers:
        server.stop()
