// Agreement by one small reduction; the text travels only when something went wrong.
#include "parallel/agreement.h"

#include <algorithm>
#include <cstdint>
#include <exception>

#include <fmt/format.h>

#include "runtime/error.h"
#include "runtime/host.h"

namespace dm {
namespace {

Tensor bytes_of(std::string& text) {
  return Tensor::of(reinterpret_cast<std::uint8_t*>(text.data()), {static_cast<std::int64_t>(text.size())});
}

}  // namespace

void run_on_all(Communicator& world, std::string_view what, const std::function<void()>& work,
                const std::function<void()>& undo) {
  constexpr std::int64_t kNobody = 0;
  std::int64_t code = 0;
  std::string message;
  bool failed = true;
  try {
    work();
    failed = false;
  } catch (const Error& error) {
    message = error.what();
    code = static_cast<std::int64_t>(error.code());
  } catch (const std::exception& error) {
    message = error.what();
    code = static_cast<std::int64_t>(ExitCode::failure);
  }

  Stream stream(Device::cpu());
  std::int64_t loudest = failed ? world.size() - world.rank() : kNobody;  // the lowest rank has the largest number
  world.all_reduce(stream, Tensor::of(&loudest, {1}), ReduceOp::max);
  if (loudest == kNobody) return;

  undo();
  world.barrier(stream);
  const int culprit = world.size() - static_cast<int>(loudest);
  world.broadcast(stream, Tensor::of(&code, {1}), culprit);
  message = broadcast_text(world, fmt::format("{}: rank {} on {}: {}", what, world.rank(), host_name(), message), culprit);
  throw AgreedError(message, static_cast<ExitCode>(code));
}

std::vector<std::string> gather_texts(Communicator& world, std::string_view text) {
  Stream stream(Device::cpu());
  auto length = static_cast<std::int64_t>(text.size());
  std::vector<std::int64_t> lengths(static_cast<std::size_t>(world.size()));
  world.all_gather(stream, Tensor::of(&length, {1}), Tensor::of(lengths.data(), {world.size()}));

  const auto widest = static_cast<std::size_t>(*std::max_element(lengths.begin(), lengths.end()));
  if (widest == 0) return std::vector<std::string>(lengths.size());
  std::string padded(text);
  padded.resize(widest);
  std::string all(widest * lengths.size(), '\0');
  world.all_gather(stream, bytes_of(padded), bytes_of(all));

  std::vector<std::string> texts;
  for (std::size_t r = 0; r < lengths.size(); ++r) {
    texts.push_back(all.substr(r * widest, static_cast<std::size_t>(lengths[r])));
  }
  return texts;
}

std::string broadcast_text(Communicator& world, std::string text, int root) {
  Stream stream(Device::cpu());
  auto length = static_cast<std::int64_t>(text.size());
  world.broadcast(stream, Tensor::of(&length, {1}), root);
  text.resize(static_cast<std::size_t>(length));
  if (length > 0) world.broadcast(stream, bytes_of(text), root);
  return text;
}

}  // namespace dm
