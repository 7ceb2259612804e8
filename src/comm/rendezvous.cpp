#include "comm/rendezvous.h"

#include <algorithm>
#include <map>
#include <sys/random.h>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <unistd.h>

#include "base/log.h"
#include "base/units.h"
#include "base/version.h"
#include "comm/sockets.h"

namespace plait::comm {
namespace {

constexpr auto kIntroductionLimit = std::chrono::seconds(5);  // from connecting to a whole Join
constexpr auto kRetryInterval = std::chrono::milliseconds(200);
constexpr size_t kMaxStrangers = 64;

Nonce make_nonce() {
  Nonce nonce;
  if (getrandom(nonce.data(), nonce.size(), 0) != static_cast<ssize_t>(nonce.size()))
    throw_exception_from_error(internal("the system has no random numbers"), {});
  return nonce;
}

std::string host_name() {
  char name[256] = "";
  gethostname(name, sizeof(name) - 1);
  return name;
}

std::vector<uint8_t> as_bytes(std::string_view text) {
  return {text.begin(), text.end()};
}

Status check_options(const RendezvousOptions& options) {
  if (options.nodes < 1 || options.node < 0 || options.node >= options.nodes)
    return invalid(fmt::format("--node-rank {} does not fit --nnodes {}", options.node, options.nodes));
  if (options.ranks < 1) return invalid("a node needs at least one rank");
  return {};
}

// Every setting that differs, as "--tp-size: node 0 has 4, node 1 has 8"; empty: none.
std::string differences(const RendezvousOptions& mine, const Join& join) {
  std::map<std::string, std::pair<std::string, std::string>> settings;
  for (const auto& [key, value] : mine.configuration) settings[key].first = value;
  for (const auto& [key, value] : join.configuration) settings[key].second = value;
  std::vector<std::string> texts;
  for (const auto& [key, values] : settings) {
    const auto& [here, there] = values;
    if (here != there)
      texts.push_back(fmt::format("{}: node {} has '{}', node {} has '{}'", key, mine.node, here, join.node, there));
  }
  return fmt::format("{}", fmt::join(texts, "; "));
}

// Somebody who connected and has not yet been let in.
struct Stranger {
  Socket socket;
  FrameReader reader;
  Nonce nonce{};
  Clock::time_point since;
};

// Node 0 while it waits for the others.
class Host {
 public:
  Host(const RendezvousOptions& options, Socket listener)
      : options_(options), listener_(std::move(listener)), members_(static_cast<size_t>(options.nodes)) {}

  Result<Meeting> run() {
    const auto deadline = Clock::now() + options_.limit;
    auto progress = Clock::now() + options_.progress_interval;
    while (missing() > 0) {
      if (Clock::now() >= deadline)
        return deadline_exceeded(fmt::format("waited {} at {} for {}{}",
                                             format_seconds(std::chrono::duration<double>(options_.limit).count()),
                                             options_.address, missing_text(), refusals_text()));
      if (Clock::now() >= progress) {
        log::info("rendezvous at {}: waiting for {}{}", options_.address, missing_text(), refusals_text());
        progress = Clock::now() + options_.progress_interval;
      }
      wait_for_events(std::min(deadline, progress));
    }
    return finish(deadline);
  }

 private:
  struct Member {
    Socket socket;
    std::string host;
    int ranks = 0;
  };

  size_t missing() const {
    size_t count = 0;
    for (size_t node = 1; node < members_.size(); ++node) count += members_[node].socket.get() < 0;
    return count;
  }
  std::string missing_text() const {
    std::vector<size_t> nodes;
    for (size_t node = 1; node < members_.size(); ++node)
      if (members_[node].socket.get() < 0) nodes.push_back(node);
    return fmt::format("{} {} of {}", nodes.size() == 1 ? "node" : "nodes", fmt::join(nodes, ", "), options_.nodes);
  }
  std::string refusals_text() const { return last_refusal_.empty() ? "" : " (refused: " + last_refusal_ + ")"; }

  void wait_for_events(Clock::time_point until) {
    std::vector<pollfd> entries{{listener_.get(), POLLIN, 0}};
    for (const Stranger& stranger : strangers_) entries.push_back({stranger.socket.get(), POLLIN, 0});
    // A member that leaves before all are there may come again.
    for (size_t node = 1; node < members_.size(); ++node) entries.push_back({members_[node].socket.get(), POLLIN, 0});
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
    poll(entries.data(), entries.size(), static_cast<int>(std::clamp<int64_t>(left, 1, 200)));

    for (size_t node = 1; node < members_.size(); ++node) {
      if (entries[strangers_.size() + node].revents == 0) continue;
      log::warning("rendezvous: node {} ({}) left again", node, members_[node].host);
      members_[node] = {};
    }
    const auto now = Clock::now();
    for (size_t i = strangers_.size(); i-- > 0;) {
      const bool readable = entries[i + 1].revents != 0;
      if ((readable && !hear(strangers_[i])) || now - strangers_[i].since > kIntroductionLimit)
        strangers_.erase(strangers_.begin() + static_cast<ptrdiff_t>(i));
    }
    while (auto socket = accept_one(listener_.get())) greet(std::move(*socket));
  }

  void greet(Socket socket) {
    if (strangers_.size() >= kMaxStrangers) strangers_.erase(strangers_.begin());
    Stranger stranger{std::move(socket), {}, make_nonce(), Clock::now()};
    const Hello hello{kControlVersion, std::string(version()), stranger.nonce};
    // It fits any socket's buffer
    if (send_all(stranger.socket.get(), make_frame(FrameType::kHello, encode(hello)), Clock::now()).has_error()) return;
    strangers_.push_back(std::move(stranger));
  }

  // False: done with it.
  bool hear(Stranger& stranger) {
    if (stranger.reader.fill(stranger.socket.get()).has_error()) return false;
    auto message = stranger.reader.next();
    if (message.has_error()) {
      log::debug("rendezvous: dropped a stranger, {}: {}", peer_address(stranger.socket.get()),
                 message.error().message);
      return false;
    }
    if (!message.value()) return true;
    if (message.value()->type != FrameType::kJoin) return false;
    auto join = decode_join(message.value()->payload);
    if (join.has_error()) return false;
    judge(stranger, join.value());
    return false;
  }

  void judge(Stranger& stranger, const Join& join) {
    const std::string address = peer_address(stranger.socket.get());
    const std::string reason = objection(stranger, join);
    if (!reason.empty()) {
      last_refusal_ = fmt::format("{}: {}", address, reason);
      log::warning("rendezvous: refused {}", last_refusal_);
      (void)send_all(stranger.socket.get(), make_frame(FrameType::kRefuse, as_bytes(reason)), Clock::now());
      return;
    }
    const Digest proof = welcome_proof(options_.secret, stranger.nonce, join.nonce);
    if (send_all(stranger.socket.get(), make_frame(FrameType::kWelcome, proof), Clock::now()).has_error()) return;
    own_address_ = local_address(stranger.socket.get());
    Member& member = members_[join.node];
    member.host = address.substr(0, address.rfind(':'));
    member.ranks = static_cast<int>(join.ranks);
    member.socket = std::move(stranger.socket);
    log::info("rendezvous: node {} is here ({}, {})", join.node, join.host_name, member.host);
  }

  // Why it may not join; empty: it may.
  std::string objection(const Stranger& stranger, const Join& join) const {
    if (join.version != kControlVersion)
      return fmt::format(
          "protocol {} (plait {}) cannot join protocol {} (plait {}); install the same version on all nodes",
          join.version, join.plait_version, kControlVersion, version());
    // Before anything else is said to it
    if (!equal_in_constant_time(join.proof, join_proof(options_.secret, stranger.nonce, join)))
      return "the shared secret is not the one of node 0";
    if (join.plait_version != version())
      return fmt::format("node {} runs plait {}, node 0 runs plait {}", join.node, join.plait_version, version());
    if (join.nodes != static_cast<uint32_t>(options_.nodes))
      return fmt::format("node {} has --nnodes {}, node 0 has --nnodes {}", join.node, join.nodes, options_.nodes);
    if (join.node == 0 || join.node >= join.nodes)
      return fmt::format("--node-rank {} is not one of 1 to {}", join.node, options_.nodes - 1);
    if (join.ranks < 1 || join.ranks > 4096) return fmt::format("node {} brings {} ranks", join.node, join.ranks);
    if (members_[join.node].socket.get() >= 0)
      return fmt::format("node {} is here already, from {}; give every node its own --node-rank", join.node,
                         members_[join.node].host);
    return differences(options_, join);
  }

  Result<Meeting> finish(Clock::time_point deadline) {
    std::vector<TableEntry> table;
    table.push_back({own_address_, static_cast<uint32_t>(options_.ranks)});
    for (size_t node = 1; node < members_.size(); ++node)
      table.push_back({members_[node].host, static_cast<uint32_t>(members_[node].ranks)});
    Meeting meeting;
    meeting.node = 0;
    int first_rank = 0;
    for (const TableEntry& entry : table) {
      meeting.nodes.push_back({entry.host, first_rank, static_cast<int>(entry.ranks)});
      first_rank += static_cast<int>(entry.ranks);
    }
    meeting.sockets.push_back(-1);
    for (size_t node = 1; node < members_.size(); ++node) {
      auto sent = send_all(members_[node].socket.get(), make_frame(FrameType::kTable, encode(table)), deadline);
      if (sent.has_error())
        return std::move(sent).error().within(fmt::format("node {} ({})", node, members_[node].host));
      meeting.sockets.push_back(members_[node].socket.release());
    }
    meeting.listener = listener_.release();
    return meeting;
  }

  const RendezvousOptions& options_;
  Socket listener_;
  std::vector<Member> members_;
  std::vector<Stranger> strangers_;
  std::string own_address_;
  std::string last_refusal_;
};

// One try of another node. Empty: node 0 was not there or went away, try again.
Result<std::optional<Meeting>> try_to_join(const RendezvousOptions& options, const HostPort& address,
                                           Clock::time_point deadline, std::string& trouble) {
  const auto again = [&trouble](Error error) {
    trouble = std::move(error.message);
    return std::optional<Meeting>();
  };
  auto connected = connect_to(address, std::min(deadline, Clock::now() + kIntroductionLimit));
  if (connected.has_error()) return again(std::move(connected).error());
  Socket socket = std::move(connected).value();
  const auto introduction = std::min(deadline, Clock::now() + kIntroductionLimit);
  auto greeting = read_frame(socket.get(), introduction);
  if (greeting.has_error()) return again(std::move(greeting).error());
  const auto refused = [&](const FrameReader::Message& message) {
    return invalid(fmt::format("node {} was refused by node 0 at {}: {}", options.node, options.address,
                               std::string(message.payload.begin(), message.payload.end())));
  };
  if (greeting.value().type == FrameType::kRefuse) return refused(greeting.value());
  if (greeting.value().type != FrameType::kHello) return again(corrupt("node 0 did not greet"));
  PLAIT_ASSIGN_OR_RETURN(const Hello hello, decode_hello(greeting.value().payload));

  Join join{kControlVersion,
            std::string(version()),
            make_nonce(),
            static_cast<uint32_t>(options.nodes),
            static_cast<uint32_t>(options.node),
            static_cast<uint32_t>(options.ranks),
            host_name(),
            options.configuration,
            {}};
  join.proof = join_proof(options.secret, hello.nonce, join);
  auto sent = send_all(socket.get(), make_frame(FrameType::kJoin, encode(join)), introduction);
  if (sent.has_error()) return again(std::move(sent).error());
  auto answer = read_frame(socket.get(), introduction);
  if (answer.has_error()) return again(std::move(answer).error());
  if (answer.value().type == FrameType::kRefuse) return refused(answer.value());
  Digest proof{};
  if (answer.value().type == FrameType::kWelcome && answer.value().payload.size() == proof.size())
    std::copy(answer.value().payload.begin(), answer.value().payload.end(), proof.begin());
  if (!equal_in_constant_time(proof, welcome_proof(options.secret, hello.nonce, join.nonce)))
    return invalid(
        fmt::format("who answers at {} does not know the shared secret: this is not our node 0", options.address));

  log::info("rendezvous: joined node 0 at {} as node {}, waiting for the others", options.address, options.node);
  auto last = read_frame(socket.get(), deadline);
  if (last.has_error()) {
    if (last.error().kind != ErrorKind::kDeadline) return again(std::move(last).error());
    return deadline_exceeded(
        fmt::format("joined node 0 at {}, but not all {} nodes came in time", options.address, options.nodes));
  }
  PLAIT_ASSIGN_OR_RETURN(const auto table, decode_table(last.value().payload));
  if (table.size() != static_cast<size_t>(options.nodes)) return corrupt("node 0 sent a table of another size");
  Meeting meeting;
  meeting.node = options.node;
  int first_rank = 0;
  for (const TableEntry& entry : table) {
    meeting.nodes.push_back({entry.host, first_rank, static_cast<int>(entry.ranks)});
    first_rank += static_cast<int>(entry.ranks);
  }
  meeting.sockets.push_back(socket.release());
  return std::optional<Meeting>(std::move(meeting));
}

Result<Meeting> join(const RendezvousOptions& options, const HostPort& address) {
  const auto begin = Clock::now();
  const auto deadline = begin + options.limit;
  auto progress = begin + options.progress_interval;
  std::string trouble;
  for (;;) {
    PLAIT_ASSIGN_OR_RETURN(auto meeting, try_to_join(options, address, deadline, trouble));
    if (meeting) return std::move(*meeting);
    if (Clock::now() + kRetryInterval >= deadline)
      return deadline_exceeded(
          fmt::format("node {} did not reach node 0 at {} within {}: {}", options.node, options.address,
                      format_seconds(std::chrono::duration<double>(options.limit).count()), trouble));
    if (Clock::now() >= progress) {
      log::info("rendezvous: node {} waits for node 0 at {}: {}", options.node, options.address, trouble);
      progress = Clock::now() + options.progress_interval;
    }
    std::this_thread::sleep_for(kRetryInterval);
  }
}

}  // namespace

Meeting::Meeting(Meeting&& other) noexcept
    : nodes(std::move(other.nodes)),
      node(other.node),
      sockets(std::exchange(other.sockets, {})),
      listener(std::exchange(other.listener, -1)) {}

Meeting& Meeting::operator=(Meeting&& other) noexcept {
  std::swap(nodes, other.nodes);
  std::swap(node, other.node);
  std::swap(sockets, other.sockets);
  std::swap(listener, other.listener);
  return *this;
}

Meeting::~Meeting() {
  for (const int socket : sockets)
    if (socket >= 0) close(socket);
  if (listener >= 0) close(listener);
}

Result<std::vector<std::vector<uint8_t>>> Meeting::exchange(const std::vector<uint8_t>& blob,
                                                            std::chrono::milliseconds limit) {
  const auto deadline = Clock::now() + limit;
  if (node != 0) {
    const auto with_node_0 = [](Error error) { return std::move(error).within("exchange with node 0"); };
    auto sent = send_all(sockets[0], make_frame(FrameType::kBlob, blob), deadline);
    if (sent.has_error()) return with_node_0(std::move(sent).error());
    auto answer = read_frame(sockets[0], deadline);
    if (answer.has_error()) return with_node_0(std::move(answer).error());
    if (answer.value().type != FrameType::kBlobs) return corrupt("node 0 sent something else than the exchanged blobs");
    return decode_blobs(answer.value().payload);
  }
  std::vector<std::vector<uint8_t>> blobs{blob};
  for (size_t peer = 1; peer < nodes.size(); ++peer) {
    const auto with_peer = [&](Error error) {
      return std::move(error).within(fmt::format("exchange with node {} ({})", peer, nodes[peer].host));
    };
    auto part = read_frame(sockets[peer], deadline);
    if (part.has_error()) return with_peer(std::move(part).error());
    if (part.value().type != FrameType::kBlob) return with_peer(corrupt("it sent something else than its blob"));
    blobs.push_back(std::move(part.value().payload));
  }
  const auto all = make_frame(FrameType::kBlobs, encode(blobs));
  for (size_t peer = 1; peer < nodes.size(); ++peer) {
    auto sent = send_all(sockets[peer], all, deadline);
    if (sent.has_error())
      return std::move(sent).error().within(fmt::format("exchange with node {} ({})", peer, nodes[peer].host));
  }
  return blobs;
}

Result<Meeting> meet(const RendezvousOptions& options) {
  PLAIT_RETURN_IF_ERROR(check_options(options));
  PLAIT_ASSIGN_OR_RETURN(const HostPort address, parse_host_port(options.address));
  if (options.node != 0) return join(options, address);
  PLAIT_ASSIGN_OR_RETURN(Socket listener, listen_at(address));
  return Host(options, std::move(listener)).run();
}

}  // namespace plait::comm
