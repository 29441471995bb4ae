// Line splitting over byte chunks and JSON parsing with simdjson's on-demand parser.
#include "dataloader/line_reader.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

namespace dm {
namespace {

/// The on-demand parser looks only at what is asked for: visits a whole value so that nothing invalid passes.
simdjson::error_code visit(simdjson::ondemand::value value) {
  simdjson::ondemand::json_type type;
  if (const auto error = value.type().get(type)) return error;
  switch (type) {
    case simdjson::ondemand::json_type::object: {
      simdjson::ondemand::object object;
      if (const auto error = value.get_object().get(object)) return error;
      for (auto field : object) {
        std::string_view key;
        if (const auto error = field.unescaped_key().get(key)) return error;
        simdjson::ondemand::value inner;
        if (const auto error = field.value().get(inner)) return error;
        if (const auto error = visit(inner)) return error;
      }
      return simdjson::SUCCESS;
    }
    case simdjson::ondemand::json_type::array: {
      simdjson::ondemand::array array;
      if (const auto error = value.get_array().get(array)) return error;
      for (auto element : array) {
        simdjson::ondemand::value inner;
        if (const auto error = element.get(inner)) return error;
        if (const auto error = visit(inner)) return error;
      }
      return simdjson::SUCCESS;
    }
    case simdjson::ondemand::json_type::number:
      return value.get_number().error();
    case simdjson::ondemand::json_type::string:
      return value.get_string().error();
    case simdjson::ondemand::json_type::boolean:
      return value.get_bool().error();
    case simdjson::ondemand::json_type::null: {
      bool is_null = false;
      if (const auto error = value.is_null().get(is_null)) return error;
      return is_null ? simdjson::SUCCESS : simdjson::N_ATOM_ERROR;
    }
  }
  return simdjson::UNEXPECTED_ERROR;
}

std::string not_json(simdjson::error_code error) {
  if (error == simdjson::UTF8_ERROR) return "invalid UTF-8";
  return fmt::format("no valid JSON object ({})", simdjson::error_message(error));
}

}  // namespace

LineReader::Status LineReader::next(std::string& line) {
  line.clear();
  const std::int64_t begin = offset_;
  bool too_long = false;
  if (std::exchange(damaged_, false)) stream_.resynchronise();
  while (true) {
    if (chunk_.empty()) {
      const ByteStream::Status status = stream_.read(chunk_);
      if (status == ByteStream::Status::end && begin == offset_) return Status::end;
      if (status != ByteStream::Status::bytes) ++line_;
      if (status == ByteStream::Status::damaged) {
        damaged_ = true;
        return Status::damaged;
      }
      if (status == ByteStream::Status::end) return too_long ? Status::too_long : Status::line;
    }
    const std::size_t newline = chunk_.find('\n');
    const std::size_t count = std::min(newline, chunk_.size());
    too_long = too_long || offset_ - begin + static_cast<std::int64_t>(count) > max_line_bytes_;
    if (!too_long) line.append(chunk_.substr(0, count));
    const std::size_t passed = newline == std::string_view::npos ? count : count + 1;
    chunk_.remove_prefix(passed);
    offset_ += static_cast<std::int64_t>(passed);
    if (newline != std::string_view::npos) {
      ++line_;
      return too_long ? Status::too_long : Status::line;
    }
  }
}

std::string LineParser::parse(std::string& line, std::string& text) {
  line.reserve(line.size() + simdjson::SIMDJSON_PADDING);
  simdjson::ondemand::document document;
  if (const auto error = parser_.iterate(line.data(), line.size(), line.capacity()).get(document)) return not_json(error);
  simdjson::ondemand::object object;
  if (const auto error = document.get_object().get(object)) return not_json(error);
  bool found = false;
  for (auto field : object) {
    std::string_view key;
    if (const auto error = field.unescaped_key().get(key)) return not_json(error);
    const bool is_text = key == "text";
    simdjson::ondemand::value value;
    if (const auto error = field.value().get(value)) return not_json(error);
    if (!is_text) {
      if (const auto error = visit(value)) return not_json(error);
      continue;
    }
    if (found) return "two keys \"text\"";
    found = true;
    std::string_view view;
    const auto error = value.get_string().get(view);
    if (error == simdjson::INCORRECT_TYPE) return "\"text\" is not a string";
    if (error) return not_json(error);
    text.assign(view);
  }
  if (document.current_location().error() != simdjson::OUT_OF_BOUNDS) return not_json(simdjson::TRAILING_CONTENT);
  if (!found) return "no key \"text\"";
  return {};
}

}  // namespace dm
