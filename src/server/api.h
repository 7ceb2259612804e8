// The routes of the server: which path takes which methods, who may call it, and what answers. Loop thread only.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include <boost/json/object.hpp>

#include "server/front_end.h"
#include "server/generation_request.h"
#include "server/http.h"

namespace plait {

class Api {
 public:
  explicit Api(FrontEnd& front_end) : front_end_(front_end) {}

  // Refuses what is wrong before a body is read: unknown routes, wrong methods, missing keys, wrong content types.
  std::optional<HttpResponse> check_head(const HttpRequest& head) const;
  void handle(std::shared_ptr<Exchange> exchange);

 private:
  using ExchangePointer = std::shared_ptr<Exchange>;
  using Parser = ApiResult<GenerationRequest> (*)(const ApiContext&, const boost::json::object&);
  struct Route;
  static const Route kRoutes[];
  static const Route* find_route(std::string_view path);

  void generate_with(Parser parser, const ExchangePointer& exchange);
  void generate(const ExchangePointer& exchange);
  void completions(const ExchangePointer& exchange);
  void chat_completions(const ExchangePointer& exchange);

  void health(const ExchangePointer& exchange);
  void health_generate(const ExchangePointer& exchange);
  void model_info(const ExchangePointer& exchange);
  void server_info(const ExchangePointer& exchange);
  void get_load(const ExchangePointer& exchange);
  void metrics(const ExchangePointer& exchange);
  void flush_cache(const ExchangePointer& exchange);
  void abort_request(const ExchangePointer& exchange);
  void list_models(const ExchangePointer& exchange);
  void one_model(const ExchangePointer& exchange);
  void version(const ExchangePointer& exchange);
  void ping(const ExchangePointer& exchange);

  boost::json::object model_card() const;
  std::string_view status_word() const;
  boost::json::object status() const;

  FrontEnd& front_end_;
};

}  // namespace plait
