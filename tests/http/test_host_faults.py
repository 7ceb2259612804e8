"""Faults of an engine on two hosts: which process, which signal, in the middle of what.

After each, every client has its complete answer, the text of an undisturbed run, or a clear error where nobody is left
to give it; every process serves or is gone within BOUND_SECONDS of the fault's detection; a log names the culprit.
"""

import os
import signal
import threading
import time

import pytest

from cluster import Cluster
from harness import chat_body, note, wait_until
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

WORK = {
    "idle": None,
    "prefill": lambda i: chat_body(f"{i} " + LONG_PROMPT, max_tokens=24, ignore_eos=True, stream=True),
    "decode": lambda i: chat_body(f"What is {i} + 2?", max_tokens=120, ignore_eos=True, stream=True),
}
FAULTS = {
    "SIGKILL": (signal.SIGKILL, None),
    "SIGSTOP, short": (signal.SIGSTOP, SHORT_STOP_SECONDS),
    "SIGSTOP, long": (signal.SIGSTOP, LONG_STOP_SECONDS),
}
TARGETS = ("first engine", "other engine", "front end")


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
        if self.work == "decode":
            wait_until(lambda: all(stream.text for stream in streams), 10, "every stream has begun")
            assert not all(stream.done for stream in streams)

    def pid_of(self, target):
        if target == "front end":
            return self.cluster.first.process.pid
        return self.cluster.engine(0 if target == "first engine" else 1)

    def serves(self):
        return self.cluster.first.health() == 200 and self.cluster.first.info()["status"] == "ready"

    def disturb(self, target, number, stop_seconds):
        """Seconds from the fault's detection until the cluster served again, or was gone."""
        cluster = self.cluster
        cluster.first.post("/flush_cache", {})
        restarts = cluster.first.info()["engine_restarts"]
        streams = self.start()
        self.wait_for_the_middle(streams)
        pid = self.pid_of(target)
        begin = time.monotonic()
        os.kill(pid, number)
        if stop_seconds:
            threading.Timer(stop_seconds, cluster.send, (signal.SIGCONT, pid)).start()
        if target == "front end":
            if number == signal.SIGKILL:
                wait_until(cluster.gone, 30, "every process has ended\n" + cluster.logs())
                for stream in streams:
                    stream.join(10)
                    assert not stream.is_alive(), "a client waits for a front end that is gone"
                return time.monotonic() - begin
            time.sleep(stop_seconds)
        fatal = target != "front end" and (number == signal.SIGKILL or stop_seconds > LIMIT_SECONDS)
        if fatal:
            wait_until(lambda: cluster.first.info()["engine_restarts"] > restarts, 20, "the engine is started again")
            wait_until(self.serves, 30, "the cluster serves\n" + cluster.logs())
        seconds = time.monotonic() - begin
        assert self.texts(streams) == (self.expected or []), cluster.logs()
        assert cluster.first.answers()
        if fatal:
            self.check_culprit(target)
        else:
            assert cluster.first.info()["engine_restarts"] == restarts, cluster.logs()
        return seconds - (LIMIT_SECONDS if fatal and stop_seconds else 0) if fatal else 0

    def check_culprit(self, target):
        if target == "first engine":
            assert "node 0" in self.cluster.others[0].log(), self.cluster.logs()
        else:
            assert "node 1" in self.cluster.first.log(), self.cluster.logs()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("work", WORK)
def test_faults(plait, work, fault):
    number, stop_seconds = FAULTS[fault]
    with Cluster(plait, 2, *FLAGS, model=MODEL) as cluster:
        disturbed = Disturbed(cluster, work)
        seconds = {target: disturbed.disturb(target, number, stop_seconds) for target in TARGETS}
        took = ", ".join(f"{target} {value:.1f} s" for target, value in seconds.items() if value)
        note(f"{work}, {fault}: all answers exact" + (f"; after detection serving or gone: {took}" if took else ""))
        assert max(seconds.values()) <= BOUND_SECONDS, cluster.logs()


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
            log = cluster.first.log() if target == "other engine" else cluster.others[0].log()
            assert ("node 1" if target == "other engine" else "node 0") in log, cluster.logs()
    note(f"weight load, {fault}: " + (f"all gone after {', '.join(took)}" if took else "started, late"))


def test_a_rank_that_stops_in_all_to_all_is_named_with_the_operation(plait):
    """Stops are repeated until one falls into the exchange of tokens between experts."""
    named = 0
    rounds = 0
    with Cluster(plait, 2, *FLAGS, model=MODEL) as cluster:
        disturbed = Disturbed(cluster, "decode")
        while named == 0 and rounds < 8:
            rounds += 1
            disturbed.disturb("other engine", signal.SIGSTOP, LONG_STOP_SECONDS)
            named = cluster.first.log().count("in all_to_all 'experts'")
        assert named > 0, cluster.logs()
        line = next(line for line in cluster.first.log().splitlines() if "in all_to_all 'experts'" in line)
    note(f"stopped in all-to-all, after {rounds} tries: all answers exact; {line.split('] ', 1)[1]}")
