"""Whole replicas (--dp-size without --enable-dp-attention): several engines that share nothing behind one front end."""

import contextlib
import os
import re
import signal
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from harness import EVAL_TASKS, PATIENCE_SECONDS, Server, chat_body, eval_answers, note, process_runs, wait_until
from test_crash import Stream, join

REPLICAS = 2


def states(server):
    return server.info()["internal_states"]


def pids(server):
    return [state["engine_pid"] for state in states(server)]


def generated(server):
    """Tokens that each engine has made, once all are idle: what an engine said last is up to half a second old."""

    def idle():
        own = states(server)
        return own if all(state["num_running_reqs"] == 0 for state in own) and server.unfinished() == 0 else None

    return [state["generated_tokens"] for state in wait_until(idle, what="idle engines")]


def made_since(server, before, expected):
    """What each engine made since, once it is `expected` together."""

    def made():
        tokens = [now - then for now, then in zip(generated(server), before)]
        return tokens if sum(tokens) == expected else None

    return wait_until(made, what=f"{expected} tokens")


def start_streams(server, tokens, of_each=4):
    """Streams for each replica, and what they are to receive: the other replicas' are told apart by their prompts."""
    lists = []
    for replica in range(REPLICAS):
        prompts = [EVAL_TASKS[replica * of_each + index]["prompt"] for index in range(of_each)]
        fields = {"max_tokens": tokens, "ignore_eos": True, "stream": True, "routed_dp_rank": replica}
        lists.append([Stream(server, chat_body(prompt, **fields)) for prompt in prompts])
    for stream in sum(lists, []):
        stream.start()
    wait_until(lambda: all(stream.text or stream.error for stream in sum(lists, [])), what="streams under way")
    return lists


def texts(streams):
    join(streams)
    assert [stream.error for stream in streams] == [None] * len(streams)
    assert all(stream.done for stream in streams)
    return [stream.text for stream in streams]


@contextlib.contextmanager
def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def replicas(plait):
    """A server that the tests of what does no harm share."""
    with Server(plait, "--dp-size", REPLICAS) as server:
        yield server
        assert server.info()["engine_restarts"] == 0, server.log()


def test_each_replica_has_an_engine_and_its_part_of_the_memory(replicas):
    info = replicas.info()
    assert info["status"] == "ready" and info["dp_size"] == REPLICAS
    own = info["internal_states"]
    assert [state["dp_rank"] for state in own] == list(range(REPLICAS))
    assert all(state["status"] == "ready" for state in own)
    assert len(set(pids(replicas))) == REPLICAS and all(process_runs(pid) for pid in pids(replicas))
    assert [load["dp_rank"] for load in replicas.get("/get_load").json()] == list(range(REPLICAS))
    planned = [float(size) for size in re.findall(r"available +([\d.]+) GiB", replicas.log())]
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    assert len(planned) == REPLICAS and sum(planned) <= whole


def test_texts_are_those_of_one_engine(plait, replicas):
    with Server(plait) as alone:
        expected = eval_answers(alone)
    before = generated(replicas)
    assert eval_answers(replicas) == expected
    tokens = [now - then for now, then in zip(generated(replicas), before)]
    assert all(count > sum(tokens) / (4 * REPLICAS) for count in tokens), tokens
    note(f"{len(EVAL_TASKS)} texts of {REPLICAS} replicas equal to one engine's; tokens of each: {tokens}")


ROUTED = [
    ("/generate", {"text": "one two", "sampling_params": {"max_new_tokens": 7, "ignore_eos": True}}),
    ("/v1/completions", {"prompt": "one two", "max_tokens": 7, "ignore_eos": True}),
    ("/v1/chat/completions", chat_body("one two", max_tokens=7, ignore_eos=True)),
]


@pytest.mark.parametrize("path,body", ROUTED, ids=[path for path, _ in ROUTED])
def test_a_request_may_name_its_replica(replicas, path, body):
    for field in ("routed_dp_rank", "data_parallel_rank"):
        before = generated(replicas)
        assert replicas.post(path, body | {field: 1}).status_code == 200
        assert made_since(replicas, before, 7) == [0, 7]
        refused = replicas.post(path, body | {field: REPLICAS})
        assert refused.status_code == 400 and field in refused.text


def test_one_after_the_other(serve):
    server = serve("--dp-size", REPLICAS, "--load-balance-method", "round_robin")
    before = generated(server)
    for _ in range(3 * REPLICAS):
        assert server.post("/v1/completions", {"prompt": "one", "max_tokens": 5, "ignore_eos": True}).status_code == 200
    assert made_since(server, before, 15 * REPLICAS) == [15] * REPLICAS


def test_flush_reaches_every_cache(replicas):
    def cached(replica):
        body = {"text": "word " * 60, "sampling_params": {"max_new_tokens": 1}, "routed_dp_rank": replica}
        return replicas.post("/generate", body).json()["meta_info"]["cached_tokens"]

    for replica in range(REPLICAS):
        cached(replica)
        assert cached(replica) > 0
    assert replicas.post("/flush_cache", {}).status_code == 200
    assert [cached(replica) for replica in range(REPLICAS)] == [0] * REPLICAS
    stream = Stream(replicas, chat_body("Tell.", max_tokens=1500, ignore_eos=True, stream=True, routed_dp_rank=1))
    stream.start()
    wait_until(lambda: stream.text, what="the stream under way")
    assert replicas.post("/flush_cache", {}).status_code == 400
    replicas.post("/abort_request", {"abort_all": True})
    join([stream])


def test_gauges_tell_replicas_apart(replicas):
    text = replicas.get("/metrics").text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    ranks = [str(replica) for replica in range(REPLICAS)]
    for name in ("num_running_reqs", "num_queue_reqs", "token_usage", "max_total_num_tokens", "gen_throughput"):
        assert sorted(sample.labels["dp_rank"] for sample in families[f"sglang:{name}"].samples) == ranks
        assert text.count(f"# TYPE sglang:{name} ") == 1
    for name in ("sglang:generation_tokens", "plait:unfinished_requests"):
        assert [sample.labels.get("dp_rank") for sample in families[name].samples] == [None]


def test_idle_replicas_use_no_processor(replicas):
    def ticks():
        total = 0
        for pid in [replicas.process.pid, *pids(replicas)]:
            with open(f"/proc/{pid}/stat") as file:
                total += sum(int(field) for field in file.read().rsplit(")", 1)[1].split()[11:13])
        return total

    def quiet():
        before = ticks()
        time.sleep(2)
        return ticks() - before <= 1

    # loads are reported until the throughput has come down to zero, some seconds after the last request
    wait_until(quiet, 30, "two seconds without work")


def test_a_killed_replica_disturbs_no_other(serve):
    """The new engine is held up while it loads: what the others' clients get meanwhile cannot depend on it."""
    server = serve("--dp-size", REPLICAS, "--max-engine-restarts", 10)
    tokens = 400
    expected = [texts(streams) for streams in start_streams(server, tokens)]
    restarts = [0] * REPLICAS
    for killed in range(REPLICAS):
        others = [replica for replica in range(REPLICAS) if replica != killed]
        engines = pids(server)
        lists = start_streams(server, tokens)
        os.kill(engines[killed], signal.SIGKILL)
        new_engine = wait_until(
            lambda: next((pid for pid in [pids(server)[killed]] if pid not in (-1, engines[killed])), None),
            what="a new engine",
        )
        with stopped(new_engine):
            assert all(not stream.done for stream in lists[killed])
            for other in others:
                assert texts(lists[other]) == expected[other]
            assert all(not stream.done for stream in lists[killed]), "the stopped engine has finished something"
            ready = states(server)[killed]["status"] == "ready"  # it may have been stopped too late
            assert server.health() == 200 and server.info()["status"] == ("ready" if ready else "degraded")
            assert server.answers(), "new requests go where there is an engine"
        assert texts(lists[killed]) == expected[killed]
        restarts[killed] += 1
        assert [state["engine_restarts"] for state in states(server)] == restarts
        assert [pids(server)[other] for other in others] == [engines[other] for other in others]
        assert pids(server)[killed] == new_engine and server.info()["status"] == "ready"
    count = sum(len(streams) for streams in expected)
    note(f"each of {REPLICAS} replicas killed under {count} streams: all texts exact, the other's came meanwhile")


def test_without_any_engine_requests_wait(serve):
    server = serve("--dp-size", REPLICAS)
    expected = server.post("/v1/chat/completions", chat_body("Hello", max_tokens=20)).json()["choices"]
    for pid in pids(server):
        os.kill(pid, signal.SIGKILL)
    assert server.post("/v1/chat/completions", chat_body("Hello", max_tokens=20)).json()["choices"] == expected
    wait_until(lambda: server.info()["status"] == "ready", what="all engines are back")
    assert server.info()["engine_restarts"] == REPLICAS


def test_a_replica_that_keeps_dying_ends_the_server_after_the_others_work(serve):
    server = serve("--dp-size", REPLICAS, "--max-engine-restarts", 0)
    expected = [texts(streams) for streams in start_streams(server, 200)]
    lists = start_streams(server, 200)
    engines = pids(server)
    os.kill(engines[0], signal.SIGKILL)
    join(lists[0])
    assert all("could not be restarted" in str(stream.error) for stream in lists[0])
    assert texts(lists[1]) == expected[1]
    assert server.process.wait(PATIENCE_SECONDS) == 1
    assert "the server ends: the engine process of replica 0" in server.log()
    assert not any(process_runs(pid) for pid in engines)


def test_sigterm_ends_all_when_their_work_is_done(serve):
    server = serve("--dp-size", REPLICAS)
    expected = [texts(streams) for streams in start_streams(server, 150)]
    lists = start_streams(server, 150)
    engines = pids(server)
    server.terminate()
    assert [texts(streams) for streams in lists] == expected
    assert server.process.wait(PATIENCE_SECONDS) == 0
    assert not any(process_runs(pid) for pid in engines)


def test_the_front_ends_death_ends_all_engines(serve):
    server = serve("--dp-size", REPLICAS)
    engines = pids(server)
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not any(process_runs(pid) for pid in engines), 10, "the engines are gone")
