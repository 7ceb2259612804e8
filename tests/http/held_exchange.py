"""A moment in which an engine is in the exchange of tokens between experts, by its own word.

SIGUSR1 makes an engine say what its ranks do. The engine of one host is stopped, and the other one is asked: if it waits
in that exchange for the stopped one, it cannot leave it until that one goes on. If it waits in something else, the
stopped one goes on for a moment, and all is tried again.
"""

import contextlib
import os
import pathlib
import re
import signal
import time

from harness import wait_until

TRIES = 40
# Together far less than --collective-timeout, so that nobody is blamed for being held here.
ANSWER_SECONDS = 0.3
SETTLE_SECONDS = 0.03

REPORT = "SIGUSR1: what the ranks here are doing\n"
WAIT_IN_EXCHANGE = re.compile(
    r"has waited \S+ \S+ for rank \d+ \(node (?P<node>\d+), \S+\) in all_to_all 'experts' of \w+ "
    r"\((?P<place>call \d+ of group '[^']*', step \d+)\)"
)


def stop(pid):
    """Returns when every thread of it has stopped."""
    os.kill(pid, signal.SIGSTOP)

    def stopped():
        threads = pathlib.Path(f"/proc/{pid}/task").glob("*/stat")
        return all(thread.read_text().rsplit(")", 1)[1].split()[0] == "T" for thread in threads)

    wait_until(stopped, 1, f"process {pid} has stopped")


def activity(cluster, host):
    """What an engine says that its ranks do; empty if it does not say it in time."""
    before = len(cluster.log(host))
    os.kill(cluster.engine(host), signal.SIGUSR1)
    deadline = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < deadline:
        said = cluster.log(host)[before:].rpartition(REPORT)[2]
        if REPORT in cluster.log(host)[before:] and said.endswith("\n"):
            return said
        time.sleep(0.002)
    return ""


def wait_in_exchange(cluster, host):
    """The exchange in which the engine of `host` waits for the other one's, which is stopped, or None: twice the same,
    since what the other one sent before may still have been on its way."""

    def ask():
        found = WAIT_IN_EXCHANGE.search(activity(cluster, host))
        return found["place"] if found and int(found["node"]) == 1 - host else None

    place = ask()
    if place:
        time.sleep(SETTLE_SECONDS)
    return place if place and ask() == place else None


@contextlib.contextmanager
def held_exchange(cluster, host):
    """Yields where the engine of `host` waits, and how many tries that took. The other engine goes on at the end."""
    other = cluster.engine(1 - host)
    for tries in range(1, TRIES + 1):
        stop(other)
        try:
            place = wait_in_exchange(cluster, host)
            if place:
                yield place, tries
                return
        finally:
            cluster.wake(other)
        time.sleep(0.011)
    raise AssertionError(f"not in the exchange in {TRIES} tries\n{cluster.logs()}")
