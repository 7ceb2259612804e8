"""Full queues, keys, start and end of the server."""

import concurrent.futures
import json
import os
import shutil
import signal
import socket
import threading
import time

import httpx

from harness import DEMO_MODEL, PATIENCE_SECONDS, chat_body, http_request, note, process_runs, wait_until

LONG = {"text": "one", "sampling_params": {"max_new_tokens": 1000, "ignore_eos": True, "temperature": 0}}


def in_background(function, *arguments):
    result = concurrent.futures.Future()

    def run():
        try:
            result.set_result(function(*arguments))
        except BaseException as problem:  # handed to whoever waits
            result.set_exception(problem)

    threading.Thread(target=run, daemon=True).start()
    return result


def test_full_queue(serve):
    server = serve("--max-running-requests", 2, "--max-queued-requests", 3)
    accepted = [in_background(server.post, "/generate", LONG) for _ in range(5)]
    wait_until(lambda: server.unfinished() == 5, what="five requests under way")
    for path, body in [("/generate", LONG), ("/v1/chat/completions", chat_body("hi")),
                       ("/v1/chat/completions", chat_body("hi", stream=True))]:
        refused = server.post(path, body)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
    assert server.health() == 200, "a busy server is healthy"
    answers = [future.result(PATIENCE_SECONDS).json() for future in accepted]
    assert {answer["meta_info"]["completion_tokens"] for answer in answers} == {1000}
    assert len({answer["text"] for answer in answers}) == 1
    assert server.answers()


def test_batches_are_accepted_whole_or_not_at_all(serve):
    server = serve("--max-running-requests", 2, "--max-queued-requests", 3)
    refused = server.post("/generate", {"text": ["a"] * 6, "sampling_params": {"max_new_tokens": 4}})
    assert refused.status_code == 503
    assert server.unfinished() == 0
    accepted = server.post("/generate", {"text": ["a"] * 5, "sampling_params": {"max_new_tokens": 4}})
    assert len(accepted.json()) == 5


def test_overload_recovers(serve):
    """More than fits, again and again: each request is answered or refused, none is lost."""
    server = serve("--max-running-requests", 4, "--max-queued-requests", 4, "--max-total-tokens", 2048)
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        replies = list(pool.map(lambda i: server.post("/v1/chat/completions", chat_body(f"Say {i}", max_tokens=30, ignore_eos=True)), range(120)))
    statuses = [reply.status_code for reply in replies]
    assert set(statuses) <= {200, 503} and statuses.count(200) >= 8
    wait_until(lambda: server.running() == 0, what="idle")
    assert server.answers()
    note(f"120 requests at a queue of 8: {statuses.count(200)} answered, {statuses.count(503)} refused")


def test_api_key(serve):
    server = serve(api_key="secret-key")
    stranger = httpx.Client(timeout=PATIENCE_SECONDS)
    assert stranger.get(server.url + "/health").status_code == 200
    routes = [("GET", path) for path in ["/metrics", "/get_server_info", "/get_model_info", "/get_load", "/v1/models",
                                         "/health_generate", "/flush_cache", "/nothing", "/v1/models/x", "/ping"]]
    routes += [("POST", path) for path in ["/generate", "/v1/completions", "/v1/chat/completions", "/abort_request"]]
    wrong = [None, "Bearer wrong-key!", "Bearer secret-ke", "Bearer secret-keyy", "Bearer x", "Basic secret-key", "secret-key"]
    for method, path in routes:
        for key in wrong:
            headers = {"Authorization": key} if key else {}
            reply = stranger.request(method, server.url + path, json={} if method == "POST" else None, headers=headers)
            assert reply.status_code == 401, (path, key)
            assert reply.json()["error"]["code"] == "invalid_api_key"
            assert reply.headers["www-authenticate"] == "Bearer"
    note(f"{len(routes) * len(wrong)} requests without the right key")
    assert server.answers()
    # nobody without a key can make the server read a large body
    reply = stranger.post(server.url + "/generate", content=b"a" * (30 << 20), headers={"Content-Type": "application/json"})
    assert reply.status_code == 401


def test_sigterm_drains(serve):
    server = serve()
    engine = server.engine_pid()
    under_way = [in_background(server.post, "/generate", LONG) for _ in range(3)]
    wait_until(lambda: server.running() == 3, what="requests under way")
    server.terminate()
    wait_until(lambda: server.health() == 503, 10, "the server says that it is leaving")
    assert httpx.get(server.url + "/health").json()["status"] == "shutting_down"
    refused = server.post("/v1/chat/completions", chat_body("hi"))
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "not_ready"
    for future in under_way:
        assert future.result(PATIENCE_SECONDS).json()["meta_info"]["completion_tokens"] == 1000
    assert server.process.wait(20) == 0
    assert not process_runs(engine)


def test_drain_waits_for_a_slow_reader(serve):
    server = serve()
    body = {**LONG, "stream": True, "sampling_params": {**LONG["sampling_params"], "max_new_tokens": 300}}
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(http_request("POST", "/generate", json.dumps(body).encode(), {"Connection": "close"}))
        wait_until(lambda: server.running() == 1, what="the stream under way")
        server.terminate()
        data = b""
        while piece := connection.recv(65536):
            data += piece
            time.sleep(0.005)
    assert b"[DONE]" in data and b'"completion_tokens":300' in data
    assert server.process.wait(20) == 0


def test_drain_is_bounded(serve):
    server = serve("--drain-timeout", 1)
    under_way = in_background(server.post, "/generate", {**LONG, "sampling_params": {"max_new_tokens": 2000, "ignore_eos": True, "n": 16}})
    wait_until(lambda: server.running() == 16, what="requests under way")
    started = time.monotonic()
    server.terminate()
    assert server.process.wait(20) == 0
    assert time.monotonic() - started < 15
    reply = under_way.result(10)
    assert reply.status_code == 503 and "shutting down" in reply.json()["error"]["message"]


def test_second_signal_ends_at_once(serve):
    server = serve()
    engine = server.engine_pid()
    future = in_background(server.post, "/generate", LONG)
    wait_until(lambda: server.running() == 1, what="a request under way")
    server.process.send_signal(signal.SIGINT)
    wait_until(lambda: server.health() == 503, 10, "the drain began")
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(5) != 0
    wait_until(lambda: not process_runs(engine), 5, "the engine is gone")
    assert future.exception(10) is not None


def test_hang_up_leaves_nothing_behind(serve):
    server = serve(program_prefix=("env", "--default-signal=HUP"))  # the tests may run under nohup
    engine = server.engine_pid()
    server.process.send_signal(signal.SIGHUP)
    server.process.wait(10)
    wait_until(lambda: not process_runs(engine), 5, "the engine is gone")


def test_stopped_processes_go_on(serve):
    """SIGSTOP and SIGCONT, as a debugger or a laptop's lid does it: a pause, and nothing else."""
    server = serve()
    expected = server.post("/generate", LONG).json()["output_ids"]
    for pid in [server.process.pid, server.engine_pid()]:
        under_way = in_background(server.post, "/generate", LONG)
        wait_until(lambda: server.running() == 1, what="a request under way")
        os.kill(pid, signal.SIGSTOP)
        time.sleep(1)
        if pid != server.process.pid:
            assert server.health() == 200, "not yet called stuck"
        os.kill(pid, signal.SIGCONT)
        assert under_way.result(PATIENCE_SECONDS).json()["output_ids"] == expected
    assert server.info()["engine_restarts"] == 0


def test_a_log_that_cannot_be_written_harms_nobody(serve):
    """A full disk, and a reader of the log that went away: requests and restarts go on."""
    port = free_port()
    reading_end, writing_end = os.pipe()
    os.close(reading_end)
    for log in [open("/dev/full", "wb"), writing_end]:
        server = serve("--port", port, "--log-requests", log=log)
        assert server.answers()
        os.kill(server.engine_pid(), signal.SIGKILL)
        assert server.answers()
        server.terminate()
        assert server.process.wait(20) == 0
    os.close(writing_end)


def test_more_connections_than_descriptors(serve):
    server = serve(program_prefix=["prlimit", "--nofile=100:100"])
    connections = [server.connect() for _ in range(120)]
    assert server.process.poll() is None
    for connection in connections:
        connection.close()
    assert server.answers()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_idle_server_stops_at_once(serve):
    server = serve()
    started = time.monotonic()
    server.terminate()
    assert server.process.wait(10) == 0
    assert time.monotonic() - started < 5


def test_starting_server_says_so(serve):
    """Before it is ready: /health tells what is being done, and requests are refused with 503."""
    server = serve(ready=False).wait_listening()
    engine = child_of(server.process.pid)
    os.kill(engine, signal.SIGSTOP)  # it would be ready too soon to look
    health = server.get("/health")
    assert health.status_code == 503 and int(health.headers["retry-after"]) >= 1
    body = health.json()
    assert body["status"] in ("starting", "warming_up") and body["phase"] and body["seconds_in_phase"] >= 0
    for path, request in [("/v1/chat/completions", chat_body("hi")), ("/generate", LONG)]:
        refused = server.post(path, request)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "not_ready"
    assert server.get("/health_generate").status_code == 503
    assert server.metric("sglang:num_running_reqs") is None, "absent rather than falsely zero"
    os.kill(engine, signal.SIGCONT)
    server.wait_ready()
    assert "The server is fired up and ready to roll!" in server.log()
    assert server.answers()


def child_of(pid):
    def children():
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return file.read().split()

    return int(wait_until(children, what="an engine process")[0])


def test_engine_that_dies_while_loading_ends_the_server(serve):
    server = serve(ready=False).wait_listening()
    engine = child_of(server.process.pid)
    os.kill(engine, signal.SIGSTOP)
    os.kill(engine, signal.SIGKILL)
    assert server.process.wait(20) == 1
    assert "was killed by signal 9" in server.log() and "while it started" in server.log()


def test_engine_that_hangs_while_loading_ends_the_server(serve):
    """Loading may take long, but a process that does nothing at all is stuck: no 503 for ever."""
    server = serve("--watchdog-timeout", 1, ready=False).wait_listening()
    os.kill(child_of(server.process.pid), signal.SIGSTOP)
    assert server.process.wait(20) == 1
    assert "made no progress while it starts" in server.log()


def test_start_fails_with_a_reason(serve, tmp_path):
    missing = serve(ready=False, model="models/does-not-exist")
    assert missing.process.wait(30) == 1 and "does-not-exist" in missing.log()
    broken = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, broken)
    with open(broken / "model.safetensors", "r+b") as weights:
        weights.truncate(1 << 20)
    truncated = serve(ready=False, model=broken)
    assert truncated.process.wait(60) == 1 and "model.safetensors" in truncated.log()
    first = serve()
    second = serve("--port", first.port, ready=False)
    assert second.process.wait(30) == 1 and "--port" in second.log()
    assert first.answers()
