// The routes that tell about the server and steer it: health, information, metrics, cache, abort, models.
#include "base/version.h"
#include "server/api.h"
#include "server/json_text.h"
#include "server/request_fields.h"

namespace plait {
namespace {

namespace json = boost::json;

constexpr std::chrono::milliseconds kHealthTimeout{20'000};

HttpResponse json_response(const json::value& value, int status = 200) {
  HttpResponse response{.status = status};
  append_value(response.body, value);
  return response;
}

std::optional<char> hex_pair(std::string_view digits) {
  const auto value = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  };
  if (digits.size() < 2 || value(digits[0]) < 0 || value(digits[1]) < 0) return std::nullopt;
  return static_cast<char>(value(digits[0]) * 16 + value(digits[1]));
}

std::string percent_decoded(std::string_view text) {
  std::string decoded;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = text[i] == '%' ? hex_pair(text.substr(i + 1)) : std::nullopt;
    decoded += byte.value_or(text[i]);
    if (byte) i += 2;
  }
  return decoded;
}

json::array start_up_of(const EngineSupervisor& supervisor, bool with_ended) {
  json::array phases;
  for (const StartRecord& record : supervisor.start_records()) {
    if (record.phase == StartPhase::kServing || (record.ended && !with_ended)) continue;
    json::object phase{{"host", record.host},
                       {"ranks", json::array{record.first_rank, record.first_rank + record.ranks - 1}},
                       {"phase", name_of(record.phase)},
                       {"item", record.item},
                       {"seconds", std::round(record.seconds * 1000) / 1000},
                       {"ended", record.ended}};
    if (record.total > 0) {
      phase["done"] = record.done;
      phase["total"] = record.total;
    }
    phases.push_back(std::move(phase));
  }
  return phases;
}

std::string_view word_of(EnginePhase phase) {
  switch (phase) {
    case EnginePhase::kStarting:
      return "starting";
    case EnginePhase::kReady:
      return "ready";
    case EnginePhase::kRestarting:
      return "restarting_engine";
    case EnginePhase::kStopped:
      break;
  }
  return "stopped";
}

// A replica and its engine, as SGLang lists its data-parallel ranks.
json::object state_of(const Replica& replica, size_t number) {
  const EngineSupervisor& supervisor = replica.supervisor();
  const SchedulerLoad& load = supervisor.load();
  return {{"dp_rank", number},
          {"status", word_of(supervisor.phase())},
          {"engine_pid", supervisor.pid()},
          {"engine_restarts", supervisor.restarts()},
          {"unfinished_requests", replica.unfinished()},
          {"num_running_reqs", load.running},
          {"num_queue_reqs", load.queued},
          {"num_used_tokens", load.kv_used_tokens},
          {"kv_evictable_tokens", load.kv_evictable_tokens},
          {"max_total_num_tokens", load.kv_tokens},
          {"generated_tokens", load.generated_tokens},
          {"steps", load.steps},
          {"last_gen_throughput", load.generation_rate}};
}

}  // namespace

std::string_view Api::status_word() const {
  if (front_end_.draining()) return "shutting_down";
  if (front_end_.serving() && front_end_.ready_replicas() == front_end_.replicas().size()) return "ready";
  if (front_end_.healthy()) return "degraded";
  const EnginePhase phase = front_end_.supervisor().phase();
  if (front_end_.serving() || phase != EnginePhase::kReady) return word_of(phase);
  return "warming_up";
}

json::object Api::status() const {
  const EngineSupervisor& supervisor = front_end_.supervisor();
  uint64_t restarts = 0;
  for (const auto& replica : front_end_.replicas()) restarts += replica->supervisor().restarts();
  return {{"status", status_word()},
          {"phase", supervisor.activity()},
          {"seconds_in_phase", std::round(supervisor.seconds_in_activity() * 1000) / 1000},
          {"engine_restarts", restarts},
          {"unfinished_requests", front_end_.unfinished()}};
}

void Api::health(const ExchangePointer& exchange) {
  json::object body = status();
  if (!front_end_.healthy()) body["start_up"] = start_up_of(front_end_.supervisor(), /*with_ended=*/false);
  HttpResponse response = json_response(body, front_end_.healthy() ? 200 : 503);
  if (response.status != 200) response.headers.emplace_back("Retry-After", "1");
  exchange->respond(std::move(response));
}

void Api::health_generate(const ExchangePointer& exchange) {
  if (const std::optional<ApiError> refusal = front_end_.refusal()) {
    exchange->respond(to_response(*refusal));
    return;
  }
  front_end_.probe(1, 1, kHealthTimeout, [exchange](bool answered) {
    exchange->respond(answered ? json_response({{"status", "ready"}})
                               : to_response(not_ready("The engine did not answer a one-token request in time.")));
  });
}

void Api::ping(const ExchangePointer& exchange) {
  health(exchange);
}

void Api::version(const ExchangePointer& exchange) {
  exchange->respond(json_response({{"version", std::string(plait::version())}}));
}

void Api::model_info(const ExchangePointer& exchange) {
  const ApiContext& context = front_end_.context();
  exchange->respond(json_response(
      {{"model_path", context.model_path},
       {"tokenizer_path", context.tokenizer == nullptr ? json::value(nullptr) : json::value(context.model_path)},
       {"is_generation", true},
       {"weight_version", "default"},
       {"model_type", context.config.model_type},
       {"vocab_size", context.config.vocab_size},
       {"max_model_len", context.context_tokens}}));
}

void Api::server_info(const ExchangePointer& exchange) {
  const ServeOptions& options = front_end_.options();
  const ParallelConfig& parallel = options.engine.parallel;
  const EngineSupervisor& supervisor = front_end_.replicas().front()->supervisor();
  const EngineInfo engine = supervisor.info().value_or(EngineInfo());
  json::object info = status();
  const json::object settings{
      {"version", std::string(plait::version())},
      {"model_path", options.engine.model_path},
      {"served_model_name", front_end_.context().served_model_name},
      {"dtype", options.engine.dtype},
      {"host", options.host},
      {"port", options.port},
      {"tp_size", parallel.tp_size},
      {"dp_size", parallel.dp_size},
      {"enable_dp_attention", parallel.enable_dp_attention},
      {"pp_size", parallel.pp_size},
      {"ep_size", parallel.ep_size},
      {"page_size", engine.page_tokens},
      {"context_length", front_end_.context().context_tokens},
      {"max_total_num_tokens", engine.kv_tokens},
      {"kv_cache_bytes", engine.kv_bytes},
      {"weight_bytes", engine.weight_bytes},
      {"max_running_requests", options.scheduler.max_running_requests},
      {"max_queued_requests", options.scheduler.max_queued_requests},
      {"chunked_prefill_size", options.scheduler.chunked_prefill_tokens},
      {"disable_radix_cache", !options.scheduler.radix_cache},
      {"schedule_policy", options.scheduler.policy == SchedulePolicy::kPriority ? "priority" : "fcfs"},
      {"stream_output", options.stream_output},
      {"skip_tokenizer_init", options.skip_tokenizer_init},
      {"watchdog_timeout", options.watchdog_timeout.count()},
      {"engine_pid", supervisor.pid()},
      {"engine_start_seconds", engine.start_seconds},
  };
  for (const auto& [name, value] : settings) info[name] = value;
  json::array states;
  for (const auto& replica : front_end_.replicas()) states.push_back(state_of(*replica, states.size()));
  info["internal_states"] = std::move(states);
  info["start_up"] = start_up_of(front_end_.supervisor(), /*with_ended=*/true);
  exchange->respond(json_response(info));
}

void Api::get_load(const ExchangePointer& exchange) {
  json::array loads;
  for (const auto& replica : front_end_.replicas()) {
    const SchedulerLoad& load = replica->supervisor().load();
    loads.push_back(json::object{{"dp_rank", loads.size()},
                                 {"num_reqs", replica->unfinished()},
                                 {"num_waiting_reqs", load.queued},
                                 {"num_tokens", load.kv_used_tokens}});
  }
  exchange->respond(json_response(loads));
}

void Api::metrics(const ExchangePointer& exchange) {
  if (!front_end_.options().enable_metrics) {
    ApiError error = bad_request("Metrics are switched off.", {}, "metrics_disabled");
    error.status = 404;
    exchange->respond(to_response(error));
    return;
  }
  exchange->respond({.body = front_end_.expose_metrics(), .content_type = "text/plain; version=0.0.4; charset=utf-8"});
}

void Api::flush_cache(const ExchangePointer& exchange) {
  front_end_.flush_cache([exchange](std::optional<bool> flushed) {
    if (!flushed) {
      exchange->respond(to_response(not_ready("An engine is not there to flush its cache.")));
    } else if (*flushed) {
      exchange->respond(json_response({{"success", true}, {"message", "Cache flushed."}}));
    } else {
      exchange->respond(to_response(
          bad_request("The cache was not flushed: requests are running or waiting.", {}, "requests_under_way")));
    }
  });
}

void Api::abort_request(const ExchangePointer& exchange) {
  const auto body = parse_json_body(exchange->request().body);
  if (body.has_error()) {
    exchange->respond(to_response(body.error()));
    return;
  }
  RequestFields fields(*body);
  const std::string rid = fields.text("rid", front_end_.context().limits.rid_bytes).value_or("");
  const bool all = fields.boolean("abort_all").value_or(false);
  if (!all && rid.empty()) fields.fail("rid", "must name a request, or abort_all must be true");
  if (fields.error()) {
    exchange->respond(to_response(*fields.error()));
    return;
  }
  if (all) {
    front_end_.abort_all();
  } else {
    front_end_.abort(rid);
  }
  exchange->respond(json_response({{"success", true}}));
}

json::object Api::model_card() const {
  const ApiContext& context = front_end_.context();
  return {{"id", context.served_model_name},        {"object", "model"},
          {"created", context.started_at},          {"owned_by", "plait"},
          {"root", context.served_model_name},      {"parent", nullptr},
          {"max_model_len", context.context_tokens}};
}

void Api::list_models(const ExchangePointer& exchange) {
  exchange->respond(json_response({{"object", "list"}, {"data", json::array{model_card()}}}));
}

void Api::one_model(const ExchangePointer& exchange) {
  constexpr std::string_view kPrefix = "/v1/models/";
  const std::string name = percent_decoded(exchange->request().path.substr(kPrefix.size()));
  if (name == front_end_.context().served_model_name) {
    exchange->respond(json_response(model_card()));
    return;
  }
  ApiError error =
      bad_request("There is no such model here; GET /v1/models lists what there is.", "model", "model_not_found");
  error.status = 404;
  exchange->respond(to_response(error));
}

}  // namespace plait
