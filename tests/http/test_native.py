"""SGLang's native routes: /generate with its fields, information, cache, abort."""

import threading

import httpx
import pytest

from harness import PATIENCE_SECONDS, events_of, wait_until

GREEDY = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}


def generate(server, **fields):
    reply = server.post("/generate", fields)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_single_and_batch_agree(demo):
    texts = ["one", "two and three", "four"]
    singles = [generate(demo, text=text, sampling_params=GREEDY) for text in texts]
    batch = generate(demo, text=texts, sampling_params=GREEDY)
    assert [one["output_ids"] for one in batch] == [one["output_ids"] for one in singles]
    assert all(len(one["output_ids"]) == 12 for one in singles)
    meta = singles[0]["meta_info"]
    assert meta["finish_reason"] == {"type": "length", "length": 12}
    assert meta["completion_tokens"] == 12 and meta["prompt_tokens"] > 0 and meta["e2e_latency"] > 0
    assert meta["weight_version"] == "default" and meta["id"]


def test_put_and_ids(demo):
    by_put = httpx.put(demo.url + "/generate", json={"input_ids": [5, 6, 7], "sampling_params": GREEDY}, timeout=60)
    assert by_put.json()["output_ids"] == generate(demo, input_ids=[5, 6, 7], sampling_params=GREEDY)["output_ids"]
    batch = generate(demo, input_ids=[[5, 6, 7], [8]], sampling_params=[GREEDY, {**GREEDY, "max_new_tokens": 3}])
    assert [len(one["output_ids"]) for one in batch] == [12, 3]


def test_stream_repeats_the_text_so_far(demo):
    whole = generate(demo, text="one two", sampling_params=GREEDY)
    reply = demo.post("/generate", {"text": "one two", "sampling_params": GREEDY, "stream": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = events_of(reply.text)
    assert events[-1]["text"] == whole["text"] and events[-1]["output_ids"] == whole["output_ids"]
    for before, after in zip(events, events[1:]):
        assert after["text"].startswith(before["text"])
        assert before["meta_info"]["finish_reason"] is None


def test_stream_output_sends_what_is_new(serve):
    server = serve("--stream-output")
    whole = generate(server, text="one two", sampling_params=GREEDY)
    reply = server.post("/generate", {"text": "one two", "sampling_params": GREEDY, "stream": True})
    events = events_of(reply.text)
    assert "".join(event["text"] for event in events) == whole["text"]
    assert [id for event in events for id in event["output_ids"]] == whole["output_ids"]


def test_batch_stream_has_an_index(demo):
    reply = demo.post("/generate", {"text": ["a", "b"], "sampling_params": GREEDY, "stream": True})
    assert {event["index"] for event in events_of(reply.text)} == {0, 1}


def test_logprobs(demo):
    answer = generate(
        demo, text="one two", sampling_params=GREEDY, return_logprob=True, logprob_start_len=0, top_logprobs_num=3,
        token_ids_logprob=[10, 11], return_text_in_logprobs=True,
    )
    meta = answer["meta_info"]
    assert len(meta["input_token_logprobs"]) == meta["prompt_tokens"] == len(meta["input_top_logprobs"])
    assert meta["input_token_logprobs"][0][0] is None
    assert [token[1] for token in meta["output_token_logprobs"]] == answer["output_ids"]
    assert "".join(token[2] for token in meta["output_token_logprobs"]) == answer["text"]
    for token, top in zip(meta["output_token_logprobs"], meta["output_top_logprobs"]):
        assert len(top) == 3 and top[0][0] == token[0] and top[0][1] == token[1]
    assert [[alternative[1] for alternative in position] for position in meta["output_token_ids_logprobs"]] == [[10, 11]] * 12
    plain = generate(demo, text="one two", sampling_params=GREEDY, return_logprob=True)["meta_info"]
    assert plain["input_token_logprobs"] == [] and "output_top_logprobs" not in plain


def test_prompt_is_scored_the_same_as_output(demo):
    """The logprobs of generated tokens, asked for again as a prompt."""
    first = generate(demo, text="one two", sampling_params=GREEDY, return_logprob=True)
    prompt = generate(demo, text="one two", sampling_params={"max_new_tokens": 0}, return_logprob=True, logprob_start_len=0)
    ids = [token[1] for token in prompt["meta_info"]["input_token_logprobs"]]
    again = generate(
        demo, input_ids=ids + first["output_ids"], sampling_params={"max_new_tokens": 0}, return_logprob=True,
        logprob_start_len=len(ids),
    )
    scored = [token[0] for token in again["meta_info"]["input_token_logprobs"]]
    assert again["output_ids"] == []
    assert scored == pytest.approx([token[0] for token in first["meta_info"]["output_token_logprobs"]], abs=0.15)


def test_stop_token_ids_and_trim(demo):
    whole = generate(demo, text="one two", sampling_params=GREEDY)
    stop = whole["output_ids"][5]
    first = whole["output_ids"].index(stop)
    cut = generate(demo, text="one two", sampling_params={**GREEDY, "stop_token_ids": [stop]})
    assert cut["output_ids"] == whole["output_ids"][: first + 1]
    assert cut["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}
    kept = generate(demo, text="one two", sampling_params={**GREEDY, "stop_token_ids": [stop], "no_stop_trim": True})
    assert kept["text"].startswith(cut["text"]) and len(kept["text"]) > len(cut["text"])


def test_n_and_rids(demo):
    answers = generate(demo, text="one", rid="several", sampling_params={"n": 3, "max_new_tokens": 4})
    assert [answer["meta_info"]["id"] for answer in answers] == ["several_0", "several_1", "several_2"]
    assert generate(demo, text="one", rid="mine", sampling_params=GREEDY)["meta_info"]["id"] == "mine"


def test_one_rid_for_a_batch(demo):
    answers = generate(demo, text=["one", "two"], rid="batch", sampling_params={**GREEDY, "n": 2})
    ids = [answer["meta_info"]["id"] for answer in answers]
    assert ids == ["batch_0_0", "batch_0_1", "batch_1_0", "batch_1_1"]


def test_seed_does_not_depend_on_company(demo):
    params = {"temperature": 1, "max_new_tokens": 24, "ignore_eos": True, "sampling_seed": 5}
    alone = generate(demo, text="one two", sampling_params=params)["output_ids"]
    company = generate(
        demo, text=["one two"] + ["other %d" % i for i in range(6)],
        sampling_params=[params] + [{**params, "sampling_seed": i} for i in range(6)],
    )
    assert company[0]["output_ids"] == alone


def test_prefix_cache_is_reported_and_flushed(demo):
    assert wait_until(lambda: demo.post("/flush_cache", {}).status_code == 200, what="an idle server")
    ids = list(range(10, 74))
    first = generate(demo, input_ids=ids, sampling_params=GREEDY)
    second = generate(demo, input_ids=ids, sampling_params=GREEDY)
    assert first["meta_info"]["cached_tokens"] == 0 and second["meta_info"]["cached_tokens"] >= 48
    assert second["output_ids"] == first["output_ids"]
    assert demo.get("/flush_cache").status_code == 200
    assert generate(demo, input_ids=ids, sampling_params=GREEDY)["meta_info"]["cached_tokens"] == 0


def long_running(server, rid, count=1):
    def ask():
        results.append(
            server.post("/generate", {"text": "one", "rid": rid, "sampling_params": {"max_new_tokens": 1900, "ignore_eos": True, "n": count}})
        )

    results = []
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    wait_until(lambda: server.unfinished() > 0, what="the request under way")
    wait_until(lambda: server.running() > 0, what="the engine at work")
    return thread, results


def test_abort_request(demo):
    wait_until(lambda: demo.running() == 0, what="an idle server")
    thread, results = long_running(demo, "to-abort")
    assert demo.post("/flush_cache", {}).status_code == 400, "requests are running"
    duplicate = demo.post("/generate", {"text": "x", "rid": "to-abort"})
    assert duplicate.status_code == 400 and duplicate.json()["error"]["code"] == "duplicate_rid"
    for _ in range(2):
        assert demo.post("/abort_request", {"rid": "to-abort"}).status_code == 200, "idempotent"
    thread.join(PATIENCE_SECONDS)
    answer = results[0].json()
    assert answer["meta_info"]["finish_reason"]["type"] == "abort"
    assert 0 < answer["meta_info"]["completion_tokens"] < 1900
    wait_until(lambda: demo.running() == 0, what="the engine knows")
    assert demo.post("/abort_request", {"rid": "never existed"}).status_code == 200
    assert generate(demo, text="one", rid="to-abort", sampling_params=GREEDY), "the rid is free again"


def test_abort_by_the_rid_that_the_client_gave(demo):
    """Of all samples, of all prompts of a batch, or of one of them."""
    params = {"max_new_tokens": 1900, "ignore_eos": True}
    for body, rid, ended in [
        ({"text": "one", "sampling_params": {**params, "n": 3}}, "group", 3),
        ({"text": ["one", "two", "three"], "sampling_params": params}, "group", 3),
        ({"text": ["one", "two", "three"], "sampling_params": params}, "group_1", 1),
    ]:
        results = []
        thread = threading.Thread(target=lambda: results.append(demo.post("/generate", {**body, "rid": "group"})), daemon=True)
        thread.start()
        wait_until(lambda: demo.unfinished() == 3, what="the requests under way")
        assert demo.post("/abort_request", {"rid": rid}).status_code == 200
        if ended == 1:
            wait_until(lambda: demo.unfinished() == 2, what="one has ended")
            demo.post("/abort_request", {"rid": "group"})
        thread.join(PATIENCE_SECONDS)
        answers = [answer["meta_info"] for answer in results[0].json()]
        assert [answer["finish_reason"]["type"] for answer in answers] == ["abort"] * 3
    assert generate(demo, text="one", rid="group", sampling_params=GREEDY), "the rid is free again"


def test_routes_without_a_body_take_any(demo):
    wait_until(lambda: demo.running() == 0, what="an idle server")
    for arguments in [{}, {"data": {"a": "b"}}, {"json": {}}]:
        assert demo.client.post(demo.url + "/flush_cache", **arguments).status_code == 200


def test_abort_all(demo):
    wait_until(lambda: demo.running() == 0, what="an idle server")
    thread, results = long_running(demo, "all", 4)
    assert demo.post("/abort_request", {"abort_all": True}).status_code == 200
    thread.join(PATIENCE_SECONDS)
    assert {answer["meta_info"]["finish_reason"]["type"] for answer in results[0].json()} == {"abort"}


def test_information(demo):
    model = demo.get("/get_model_info").json()
    assert model == demo.get("/model_info").json() and model["is_generation"] is True
    wait_until(lambda: demo.running() == 0, what="an idle server")
    info = demo.get("/get_server_info").json()
    assert info["status"] == "ready" and info["internal_states"][0]["num_running_reqs"] == 0
    assert demo.get("/get_load").json()[0]["num_waiting_reqs"] == 0
    assert demo.get("/health").json()["status"] == "ready"
    assert demo.get("/health_generate").status_code == 200
    assert demo.get("/ping").status_code == 200 and demo.get("/version").json()["version"]


def test_ids_in_ids_out_without_a_tokenizer(serve):
    server = serve("--skip-tokenizer-init")
    answer = generate(server, input_ids=[5, 6], sampling_params=GREEDY)
    assert "text" not in answer and len(answer["output_ids"]) == 12
    for path, body in [
        ("/generate", {"text": "a"}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ]:
        reply = server.post(path, body)
        assert reply.status_code == 400 and "--skip-tokenizer-init" in reply.json()["error"]["message"]


def test_request_timeout(serve):
    server = serve("--request-timeout", 1)
    late = server.post("/generate", {"text": "one", "sampling_params": {"max_new_tokens": 1900, "ignore_eos": True, "n": 8}})
    assert late.status_code == 504 and late.json()["error"]["type"] == "timeout_error"
    assert server.answers()
