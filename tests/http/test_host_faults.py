"""Faults of an engine on two hosts: which process, which signal, in the middle of what.

After each, every client has its complete answer, the text of an undisturbed run, or a clear error where nobody is left
to give it; every process serves or is gone within BOUND_SECONDS of the fault's detection; a log names the culprit.
"""

import os
import re
import signal
import threading
import time

import pytest

from cluster import Cluster
from harness import chat_body, note, process_runs, wait_until
from held_exchange import REPORT, TRIES, held_exchange, stop, wait_in_exchange
from test_crash import Stream
from test_parallel import MODEL

LIMIT_SECONDS = 2  # --collective-timeout
BOUND_SECONDS = 10
SHORT_STOP_SECONDS = 0.8
LONG_STOP_SECONDS = 6

# Experts on both hosts, tokens dispatched to them; prompts in many small chunks, so that a prefill lasts.
FLAGS = (
    "--dtype float32 --tp-size 2 --dp-size 2 --enable-dp-attention --moe-a2a-backend a2a --chunked-prefill-size 32 "
    f"--collective-timeout {LIMIT_SECONDS} --rejoin-timeout 5 --max-engine-restarts 100"
).split()

LONG_PROMPT = "What is 12 + 30? " * 120
STREAMS = 4


def short_prompt(i):
    return chat_body(f"What is {i} + 2?", max_tokens=120, ignore_eos=True, stream=True)


WORK = {
    "idle": None,
    "prefill": lambda i: chat_body(f"{i} " + LONG_PROMPT, max_tokens=24, ignore_eos=True, stream=True),
    "decode": short_prompt,
    "all-to-all": short_prompt,
}
FAULTS = {
    "SIGKILL": (signal.SIGKILL, None),
    "SIGSTOP, short": (signal.SIGSTOP, SHORT_STOP_SECONDS),
    "SIGSTOP, long": (signal.SIGSTOP, LONG_STOP_SECONDS),
}
# The host that each lives on.
TARGETS = {"first engine": 0, "other engine": 1, "front end": 0}


class Disturbed:
    """Streams on a cluster, and what became of it."""

    def __init__(self, cluster, work):
        self.cluster, self.work = cluster, work
        self.expected = self.texts(self.start()) if WORK[work] else None

    def start(self):
        if not WORK[self.work]:
            return []
        streams = [Stream(self.cluster.first, WORK[self.work](i)) for i in range(STREAMS)]
        for stream in streams:
            stream.start()
        return streams

    def texts(self, streams):
        for stream in streams:
            stream.join(120)
            assert not stream.is_alive(), "a client never got the end of its answer\n" + self.cluster.logs()
            assert stream.done and stream.error is None, f"{stream.error}\n{self.cluster.logs()}"
        return [stream.text for stream in streams]

    def wait_for_the_middle(self, streams):
        """Prompts are being read, not all are answered; or answers are being written."""
        if self.work == "prefill":
            wait_until(lambda: self.cluster.first.running() > 0, 10, "the prompts are in the engine")
            assert not all(stream.text for stream in streams)
        if self.work in ("decode", "all-to-all"):
            wait_until(lambda: all(stream.text for stream in streams), 10, "every stream has begun")
            assert not all(stream.done for stream in streams)

    def pid_of(self, target):
        if target == "front end":
            return self.cluster.first.process.pid
        return self.cluster.engine(0 if target == "first engine" else 1)

    def serves(self):
        return self.cluster.first.health() == 200 and self.cluster.first.info()["status"] == "ready"

    def strike(self, target, number, stop_seconds):
        """Where it hit, if that was aimed at."""
        pid = self.pid_of(target)
        if self.work != "all-to-all":
            os.kill(pid, number)
            return None
        host = TARGETS[target]
        for _ in range(TRIES):
            with held_exchange(self.cluster, host) as (place, tries):
                if number == signal.SIGSTOP:
                    stop(pid)
                else:
                    os.kill(pid, number)
            # A message of an engine that is stopped in the exchange may be enough for the other one to leave it. Where
            # that one is to say what it waited for, it has to get into the next exchange.
            if target == "front end" or stop_seconds != LONG_STOP_SECONDS or wait_in_exchange(self.cluster, 1 - host):
                return f"{place}, at try {tries}"
            os.kill(pid, signal.SIGCONT)
        raise AssertionError(f"the other engine never waited in the exchange\n{self.cluster.logs()}")

    def disturb(self, target, number, stop_seconds):
        """What became of it: seconds from the fault's detection until the cluster served again, or was gone; and where
        it hit."""
        cluster = self.cluster
        cluster.first.post("/flush_cache", {})
        restarts = cluster.first.info()["engine_restarts"]
        engines = [cluster.engine(0), cluster.engine(1)]
        survivor = 1 - TARGETS[target]
        said_before = len(cluster.log(survivor))
        streams = self.start()
        self.wait_for_the_middle(streams)
        pid = self.pid_of(target)
        place = self.strike(target, number, stop_seconds)
        begin = time.monotonic()
        if stop_seconds:
            threading.Timer(stop_seconds, cluster.send, (signal.SIGCONT, pid)).start()
        detected_after = LIMIT_SECONDS if stop_seconds else 0
        if target == "front end":
            if number == signal.SIGKILL:
                wait_until(cluster.gone, 30, "every process has ended\n" + cluster.logs())
                seconds = time.monotonic() - begin
                for stream in streams:
                    stream.join(10)
                    assert not stream.is_alive(), "a client waits for a front end that is gone"
                self.check_end(engines, survivor, said_before, place, stop_seconds)
                return seconds, place
            time.sleep(stop_seconds)
        fatal = target != "front end" and (number == signal.SIGKILL or stop_seconds > LIMIT_SECONDS)
        if fatal:
            wait_until(lambda: cluster.first.info()["engine_restarts"] > restarts, 20, "the engine is started again")
            wait_until(self.serves, 30, "the cluster serves\n" + cluster.logs())
        seconds = time.monotonic() - begin - detected_after if fatal else 0
        assert self.texts(streams) == (self.expected or []), cluster.logs()
        assert cluster.first.answers()
        if fatal:
            self.check_end(engines, survivor, said_before, place, stop_seconds)
        else:
            assert cluster.first.info()["engine_restarts"] == restarts, cluster.logs()
            assert [cluster.engine(0), cluster.engine(1)] == engines, cluster.logs()
        return seconds, place

    def check_end(self, engines, survivor, said_before, place, stop_seconds):
        """No engine of before the fault is left, and the host that was not hit has said whose fault it was."""
        wait_until(lambda: not any(process_runs(pid) for pid in engines), BOUND_SECONDS, f"{engines} are gone")
        said = self.cluster.log(survivor)[said_before:]
        culprits = errors_that_name(1 - survivor, said)
        assert culprits, self.cluster.logs()
        if place and stop_seconds:
            assert any("in all_to_all 'experts'" in line for line in culprits), self.cluster.logs()


def errors_that_name(host, log):
    return [line for line in log.splitlines() if "error: " in line and f"node {host}" in line]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("work", WORK)
def test_faults(plait, work, fault):
    number, stop_seconds = FAULTS[fault]
    with Cluster(plait, 2, *FLAGS, model=MODEL) as cluster:
        disturbed = Disturbed(cluster, work)
        for target in TARGETS:
            seconds, place = disturbed.disturb(target, number, stop_seconds)
            assert seconds <= BOUND_SECONDS, cluster.logs()
            what = f"{work}, {fault}, {target}" + (f" ({place})" if place else "")
            note(f"{what}: {outcome(work, target, number, seconds)}")


def outcome(work, target, number, seconds):
    if target == "front end" and number == signal.SIGKILL:
        return f"all gone after {seconds:.1f} s"
    answers = "all answers exact" if WORK[work] else "serves on"
    return answers + (f", served again {seconds:.1f} s after detection" if seconds else "")


# Loads for a second or two. A host that is stopped for three times the limit of a wait is late, and nothing else: no
# wait has a limit before every rank is ready.
LONG_LOAD = ("--load-format", "dummy", "--json-model-override-args", '{"num_hidden_layers": 200}')
LOAD_STOP_SECONDS = {"SIGKILL": None, "SIGSTOP, short": SHORT_STOP_SECONDS, "SIGSTOP, long": 3 * LIMIT_SECONDS}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_while_loading(plait, fault):
    number, stop_seconds = FAULTS[fault][0], LOAD_STOP_SECONDS[fault]
    took = []
    for target in TARGETS:
        with Cluster(plait, 2, *FLAGS, *LONG_LOAD, model=MODEL, ready=False) as cluster:
            host = cluster.others[0] if target == "other engine" else cluster.first
            wait_until(lambda: "Load weight begin" in host.log(), 30, "the host loads")  # noqa: B023
            time.sleep(0.2)
            assert "Load weight end" not in host.log(), "the model is too small for this test"
            pid = cluster.first.process.pid
            if target != "front end":
                pid = cluster.engine(1 if target == "other engine" else 0)
            begin = time.monotonic()
            os.kill(pid, number)
            if stop_seconds:
                time.sleep(stop_seconds)
                os.kill(pid, signal.SIGCONT)
                cluster.first.wait_ready()
                assert cluster.first.info()["engine_restarts"] == 0, cluster.logs()
                continue
            wait_until(cluster.gone, BOUND_SECONDS, "every process has ended\n" + cluster.logs())
            took.append(f"{target} {time.monotonic() - begin:.1f} s")
            assert 0 not in cluster.statuses()
            host = TARGETS[target]
            assert errors_that_name(host, cluster.log(1 - host)), cluster.logs()
    note(f"weight load, {fault}: " + (f"all gone after {', '.join(took)}" if took else "started, late"))


def test_a_deployment_that_waits_says_for_what(plait):
    """SIGUSR1 to `plait serve`, at any time."""
    with Cluster(plait, 2, *FLAGS, model=MODEL, ready=False) as cluster:
        wait_until(lambda: all(" engine] " in cluster.log(host) for host in range(2)), 30, "both hosts start")
        while cluster.first.wait_listening().health() != 200:
            for pid in cluster.servers():
                os.kill(pid, signal.SIGUSR1)
            time.sleep(0.005)
        disturbed = Disturbed(cluster, "decode")
        streams = disturbed.start()
        disturbed.wait_for_the_middle(streams)
        stopped = cluster.engine(1)
        stop(stopped)
        time.sleep(0.2)
        before = [len(cluster.log(host)) for host in range(2)]
        for pid in cluster.servers():
            os.kill(pid, signal.SIGUSR1)
        waits = re.compile(r"rank 0 \(node 0, \S+\) has waited \S+ m?s for rank 1 \(node 1, \S+\) in .*, step \d+\)")
        found = wait_until(lambda: waits.search(cluster.log(0)[before[0] :]), 1, "the first host says what it waits for")
        assert f"{STREAMS} requests are not answered yet" in cluster.log(0)[before[0] :]
        assert f"engine process ({cluster.engine(0)}): {STREAMS} requests running, 0 queued" in cluster.log(0)[before[0] :]
        of_other = re.compile(rf"engine process \({stopped}\): \d+ steps done; last progress ")
        assert wait_until(lambda: of_other.search(cluster.log(1)[before[1] :]), 1, "the other host's front end answers")
        assert REPORT not in cluster.log(1)[before[1] :], "a process that is stopped cannot say anything"
        cluster.wake(stopped)
        wait_until(lambda: REPORT in cluster.log(1)[before[1] :], 1, "it answers when it goes on")
        assert disturbed.texts(streams) == disturbed.expected
        assert cluster.first.info()["engine_restarts"] == 0
        note(f"SIGUSR1, other engine stopped: {found.group()}")
