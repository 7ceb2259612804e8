"""A crash of the engine loses nothing: clients see a pause, and the text they would have received."""

import concurrent.futures
import json
import os
import signal
import threading
import time

import httpx

from harness import EVAL_TASKS, PATIENCE_SECONDS, chat_body, events_of, note, process_runs, wait_until

STREAMS = 50
TOKENS = 80


class Stream(threading.Thread):
    """One streaming client that keeps everything it received."""

    def __init__(self, server, body, path="/v1/chat/completions"):
        super().__init__(daemon=True)
        self.server, self.body, self.path = server, body, path
        self.text, self.error, self.reason, self.done = "", None, None, False
        self.usage = None

    def run(self):
        try:
            with self.server.client.stream("POST", self.server.url + self.path, json=self.body) as reply:
                if reply.status_code != 200:
                    self.error = reply.read().decode()
                    return
                for line in reply.iter_lines():
                    self.take(line)
        except httpx.HTTPError as error:
            self.error = repr(error)

    def take(self, line):
        if not line.startswith("data: "):
            return
        if line == "data: [DONE]":
            self.done = True
            return
        event = json.loads(line[len("data: ") :])
        if "error" in event:
            self.error = event["error"]
            return
        self.usage = event.get("usage") or self.usage
        for choice in event["choices"]:
            self.text += choice["delta"].get("content") or ""
            self.reason = choice["finish_reason"] or self.reason


def streaming_body(index):
    prompt = EVAL_TASKS[index % len(EVAL_TASKS)]["prompt"]
    return chat_body(
        prompt, max_tokens=TOKENS, ignore_eos=True, stream=True, stream_options={"include_usage": True}
    )


def start_streams(server):
    streams = [Stream(server, streaming_body(index)) for index in range(STREAMS)]
    for stream in streams:
        stream.start()
    return streams


def join(streams):
    for stream in streams:
        stream.join(PATIENCE_SECONDS)
        assert not stream.is_alive(), "a client never got the end of its answer"


def has_new_engine(server, old):
    info = server.info()
    return info["status"] == "ready" and info["engine_pid"] not in (old, -1)


def test_killed_engine_loses_nothing(serve, request):
    rounds = request.config.getoption("--crash-rounds")
    server = serve("--max-engine-restarts", rounds + 1)
    undisturbed = start_streams(server)
    join(undisturbed)
    assert all(stream.done and not stream.error for stream in undisturbed)

    caught_in_the_middle = 0
    pauses = []
    for round_number in range(rounds):
        engine = server.engine_pid()
        streams = start_streams(server)
        # somewhere in the middle, at a different place each time
        target = 5 + (round_number * 37) % (TOKENS * 2)
        wait_until(lambda: sum(len(stream.text) for stream in streams) > STREAMS * target, what="streams under way")
        begun = sum(1 for stream in streams if stream.text and not stream.done)
        os.kill(engine, signal.SIGKILL)
        killed_at = time.monotonic()
        wait_until(lambda: has_new_engine(server, engine), what="a new engine")
        pauses.append(time.monotonic() - killed_at)
        join(streams)
        caught_in_the_middle += begun
        for stream, expected in zip(streams, undisturbed):
            assert stream.error is None, stream.error
            assert stream.done
            assert stream.text == expected.text
            assert stream.reason == expected.reason
            assert stream.usage["completion_tokens"] == expected.usage["completion_tokens"]
    assert caught_in_the_middle >= rounds * STREAMS // 2
    assert server.info()["engine_restarts"] == rounds
    assert server.answers()
    note(
        f"{rounds} kills of the engine with {STREAMS} streams each, {caught_in_the_middle} streams caught in the "
        f"middle, all texts exact; new engine after {min(pauses):.2f} to {max(pauses):.2f} s"
    )


SAMPLED = {"temperature": 0.9, "top_p": 0.95, "frequency_penalty": 0.3, "max_new_tokens": 120, "ignore_eos": True, "sampling_seed": 11}
GREEDY = {"temperature": 0, "max_new_tokens": 120, "ignore_eos": True}
LOGPROBS = {"return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 3}
CHAT = {"messages": [{"role": "user", "content": "Tell."}], "temperature": 1, "seed": 3, "max_tokens": 100, "ignore_eos": True}
LONG_PROMPT = " ".join(task["prompt"] for task in EVAL_TASKS)[:3500]
ANSWERS = {
    "sampled, three samples, all logprobs": ("/generate", {"text": "one two", "sampling_params": {**SAMPLED, "n": 3}, **LOGPROBS}),
    "greedy stream with logprobs": ("/generate", {"text": "one two", "sampling_params": GREEDY, "stream": True, **LOGPROBS}),
    "a batch as one stream": ("/generate", {"text": ["a", "b", "c"], "sampling_params": SAMPLED, "stream": True}),
    "a long prompt": ("/generate", {"text": LONG_PROMPT, "sampling_params": {**GREEDY, "max_new_tokens": 30}, **LOGPROBS}),
    "parts of characters": ("/generate", {"text": "one", "stream": True, "sampling_params": {
        **SAMPLED, "logit_bias": {str(token): 4 for token in range(100, 260)}}}),
    "a stop string": ("/generate", {"text": "one two", "sampling_params": {**SAMPLED, "stop": ["er", "the"], "min_new_tokens": 60}}),
    "a chat, two samples, logprobs": ("/v1/chat/completions", {**CHAT, "n": 2, "logprobs": True, "top_logprobs": 4}),
    "a chat as a stream": ("/v1/chat/completions", {
        **CHAT, "n": 2, "logprobs": True, "top_logprobs": 4, "stream": True, "stream_options": {"include_usage": True}}),
    "a completion with echo": ("/v1/completions", {"prompt": ["hello", "there"], "max_tokens": 100, "echo": True, "logprobs": 2,
                                                    "seed": 5, "ignore_eos": True, "stream": True}),
}
# When the engine is killed, as shares of the time that the answer takes undisturbed.
KILLS = [(0,), (0.05,), (0.4,), (0.9,), (0.3, 0.3), (0.5, 0, 0)]


def without_what_differs(value):
    """An answer without ids, times, and what was found in the cache."""
    if isinstance(value, list):
        return [without_what_differs(element) for element in value]
    if isinstance(value, dict):
        varying = ("id", "created", "e2e_latency", "cached_tokens")
        return {key: without_what_differs(element) for key, element in value.items() if key not in varying}
    return value


def whole_answer(path, text):
    """What a client makes of an answer; a crash may cut a stream into other events, but not change their sum."""
    if not text.startswith("data: "):
        return without_what_differs(json.loads(text))
    choices, usage = {}, None
    for event in events_of(text):
        if path == "/generate":
            choices[event.get("index", 0)] = without_what_differs(event)
            continue
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            sum_of = choices.setdefault(choice["index"], {"text": "", "logprobs": [], "reason": None})
            sum_of["text"] += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
            lists = choice["logprobs"] or {}
            sum_of["logprobs"] += lists.get("content") or list(zip(*(lists[name] for name in sorted(lists))))
            sum_of["reason"] = choice["finish_reason"] or sum_of["reason"]
    return choices, without_what_differs(usage)


def kill_engine(server):
    """False: there was none at this moment."""
    engine = server.engine_pid()
    try:
        if engine != -1:
            os.kill(engine, signal.SIGKILL)
        return engine != -1
    except ProcessLookupError:
        return False


def test_every_kind_of_answer_survives_kills_at_any_time(serve):
    server = serve("--max-engine-restarts", 1000)
    kills = 0

    def ask(path, body):
        started = time.monotonic()
        reply = server.post(path, body)
        assert reply.status_code == 200, reply.text
        return whole_answer(path, reply.text), time.monotonic() - started

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for what, (path, body) in ANSWERS.items():
            expected, seconds = ask(path, body)
            for shares in KILLS:
                future = pool.submit(ask, path, body)
                for share in shares:
                    time.sleep(share * seconds)
                    kills += kill_engine(server)
                answer, _ = future.result(PATIENCE_SECONDS)
                assert answer == expected, f"{what}, killed at {shares}"
    assert server.answers()
    note(f"{kills} kills in {len(ANSWERS) * len(KILLS)} answers of {len(ANSWERS)} kinds: texts, ids and logprobs exact")


def test_repeated_crashes_end_in_a_clear_exit(serve):
    server = serve("--max-engine-restarts", 2)
    stream = Stream(server, streaming_body(0) | {"max_tokens": 1900})
    stream.start()
    wait_until(lambda: stream.text, what="the stream under way")
    deaths = 0
    last = None
    while server.process.poll() is None and deaths < 10:
        try:
            engine = server.engine_pid()
        except httpx.HTTPError:
            break
        if engine in (-1, last):
            time.sleep(0.01)
            continue
        os.kill(engine, signal.SIGKILL)
        deaths += 1
        last = engine
    assert server.process.wait(PATIENCE_SECONDS) not in (0, None)
    assert deaths == 3
    log = server.log()
    assert "the server ends" in log and "died 3 times" in log and "max_engine_restarts 2" in log
    stream.join(PATIENCE_SECONDS)
    assert stream.error is not None, "the client is told"
    assert not process_runs(last)
    note(f"{deaths} kills in a row: exit status {server.process.returncode} with a reason")


def test_stuck_engine_is_replaced(serve):
    """A stopped process makes no step: the watchdog kills it, and the request goes on."""
    server = serve("--watchdog-timeout", 2)
    expected = Stream(server, streaming_body(1))
    expected.start()
    join([expected])
    stream = Stream(server, streaming_body(1))
    stream.start()
    wait_until(lambda: stream.text, what="the stream under way")
    engine = server.engine_pid()
    os.kill(engine, signal.SIGSTOP)
    join([stream])
    assert stream.error is None and stream.text == expected.text
    assert not process_runs(engine)
    assert "made no step" in server.log()


def test_idle_engine_is_not_called_stuck(serve):
    server = serve("--watchdog-timeout", 1)
    engine = server.engine_pid()
    time.sleep(3)
    assert server.engine_pid() == engine and server.info()["engine_restarts"] == 0


def test_requests_wait_for_a_restarting_engine(serve):
    server = serve()
    os.kill(server.engine_pid(), signal.SIGKILL)
    assert server.answers()
    assert server.info()["engine_restarts"] == 1


def test_parents_death_ends_the_engine(serve):
    server = serve()
    engine = server.engine_pid()
    assert process_runs(engine)
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not process_runs(engine), 10, "the engine is gone")


def test_parents_death_while_loading_ends_the_engine(serve):
    server = serve(ready=False).wait_listening()
    children = children_of(server.process.pid)
    server.process.kill()
    server.process.wait()
    for child in children:
        wait_until(lambda: not process_runs(child), 10, "the engine is gone")


def children_of(pid):
    def children():
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]

    return wait_until(children, what="an engine process")
