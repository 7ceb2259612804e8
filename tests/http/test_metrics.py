"""/metrics, read by the parser of prometheus_client."""

from prometheus_client.parser import text_string_to_metric_families

from harness import chat_body, wait_until

COUNTERS = ["prompt_tokens", "generation_tokens", "num_requests", "cached_tokens", "num_aborted_requests"]
GAUGES = ["num_running_reqs", "num_queue_reqs", "num_used_tokens", "token_usage", "gen_throughput", "cache_hit_rate",
          "max_total_num_tokens", "num_retracted_reqs"]
HISTOGRAMS = ["time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"]


def families(server):
    reply = server.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    return {family.name: family for family in text_string_to_metric_families(reply.text)}


def value(server, name, sample=None):
    wanted = f"sglang:{sample or name}"
    for one in families(server)[f"sglang:{name}"].samples:
        if one.name == wanted:
            return one.value
    raise AssertionError(f"no sample {wanted}")


def test_names_types_and_labels(demo):
    demo.answers()
    found = families(demo)
    for name in COUNTERS:
        assert found[f"sglang:{name}"].type == "counter", name
    for name in GAUGES:
        assert found[f"sglang:{name}"].type == "gauge", name
    for name in HISTOGRAMS:
        assert found[f"sglang:{name}"].type == "histogram", name
    compiles = found["plait:compiles_after_ready"]
    assert compiles.type == "counter" and [sample.value for sample in compiles.samples] == [0]
    model = demo.info()["served_model_name"]
    for family in found.values():
        assert family.documentation
        assert all(sample.labels["model_name"] == model for sample in family.samples)


def test_counters_count(demo):
    before = {name: value(demo, name, name + "_total") for name in COUNTERS[:3]}
    usage = demo.post("/v1/chat/completions", chat_body("Hello", max_tokens=10, ignore_eos=True)).json()["usage"]
    assert value(demo, "generation_tokens", "generation_tokens_total") == before["generation_tokens"] + 10
    assert value(demo, "prompt_tokens", "prompt_tokens_total") == before["prompt_tokens"] + usage["prompt_tokens"]
    assert value(demo, "num_requests", "num_requests_total") == before["num_requests"] + 1


def test_histograms_count_tokens_and_requests(demo):
    name = "inter_token_latency_seconds"
    before = value(demo, name, name + "_count")
    first = value(demo, "time_to_first_token_seconds", "time_to_first_token_seconds_count")
    demo.post("/v1/chat/completions", chat_body("Hello", max_tokens=10, ignore_eos=True))
    assert value(demo, name, name + "_count") == before + 9
    assert value(demo, "time_to_first_token_seconds", "time_to_first_token_seconds_count") == first + 1


def test_an_idle_server_shows_zeros(demo):
    wait_until(lambda: value(demo, "num_running_reqs") == 0 and value(demo, "gen_throughput") == 0, what="idle gauges")
    assert value(demo, "num_queue_reqs") == 0
    assert value(demo, "num_used_tokens") == 0


def test_metrics_can_be_switched_off(serve):
    assert serve("--disable-metrics").get("/metrics").status_code == 404
