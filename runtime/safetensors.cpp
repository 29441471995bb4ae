// Reads safetensors headers with distrust and writes them with care.
#include "runtime/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <set>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "runtime/strict_json.h"

namespace dm {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

using nlohmann::json;

constexpr std::int64_t kLengthBytes = 8;
constexpr std::int64_t kMaxHeaderBytes = 100'000'000;  // the limit of the reference implementation
constexpr std::string_view kMetadata = "__metadata__";

constexpr std::array<std::pair<DType, std::string_view>, 5> kDTypes{{
    {DType::f32, "F32"},
    {DType::bf16, "BF16"},
    {DType::i32, "I32"},
    {DType::i64, "I64"},
    {DType::u8, "U8"},
}};

std::string_view safetensors_name(DType dtype) {
  return std::find_if(kDTypes.begin(), kDTypes.end(), [&](const auto& pair) { return pair.first == dtype; })->second;
}

// `tensor` names file and tensor at the start of each message.
DType parse_dtype(const json& value, const std::string& tensor) {
  if (!value.is_string()) fail(tensor + ": dtype is not a string");
  const auto& name = value.get_ref<const std::string&>();
  const auto* found = std::find_if(kDTypes.begin(), kDTypes.end(), [&](const auto& pair) { return pair.second == name; });
  if (found == kDTypes.end()) fail(fmt::format("{}: dtype {} is none of F32, BF16, I32, I64, U8", tensor, name));
  return found->first;
}

Shape parse_shape(const json& value, const std::string& tensor) {
  if (!value.is_array()) fail(tensor + ": shape is not an array");
  if (value.size() > Shape::kMaxRank) fail(tensor + ": shape has more than four axes");
  Shape shape;
  std::int64_t product = 1;
  for (const json& extent : value) {
    if (!extent.is_number_unsigned() || extent.get<std::uint64_t>() > INT64_MAX ||
        __builtin_mul_overflow(product, extent.get<std::int64_t>(), &product)) {
      fail(fmt::format("{}: shape {} has an extent that is no size", tensor, value.dump()));
    }
    shape.push_back(extent.get<std::int64_t>());
  }
  if (shape.rank() == 0) shape.push_back(1);
  return shape;
}

SafetensorsEntry parse_entry(const std::string& name, const json& value, std::int64_t data_begin, std::int64_t data_bytes,
                             const std::string& file) {
  const std::string tensor = fmt::format("{}: tensor {}", file, name);
  if (!value.is_object() || value.size() != 3 || !value.contains("dtype") || !value.contains("shape") ||
      !value.contains("data_offsets")) {
    fail(tensor + ": expected an object of dtype, shape and data_offsets");
  }
  SafetensorsEntry entry;
  entry.name = name;
  entry.dtype = parse_dtype(value["dtype"], tensor);
  entry.shape = parse_shape(value["shape"], tensor);

  const json& offsets = value["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() || !offsets[1].is_number_unsigned()) {
    fail(tensor + ": data_offsets is not [begin, end]");
  }
  const auto begin = offsets[0].get<std::uint64_t>();
  const auto end = offsets[1].get<std::uint64_t>();
  if (begin > end || end > static_cast<std::uint64_t>(data_bytes)) {
    fail(
        fmt::format("{}: data_offsets [{}, {}] lie outside the {} bytes of data from byte {}; the file is truncated or its "
                    "header damaged",
                    tensor, begin, end, data_bytes, data_begin));
  }
  entry.offset = data_begin + static_cast<std::int64_t>(begin);
  entry.bytes = static_cast<std::int64_t>(end - begin);
  std::int64_t expected = 0;
  if (__builtin_mul_overflow(entry.shape.numel(), size_of(entry.dtype), &expected) || expected != entry.bytes) {
    fail(fmt::format("{}: {} bytes at byte {} do not hold {} of shape {}", tensor, entry.bytes, entry.offset,
                     name_of(entry.dtype), to_string(entry.shape)));
  }
  return entry;
}

std::map<std::string, std::string> parse_metadata(const json& value, const std::string& file) {
  if (!value.is_object()) fail(file + ": __metadata__ is not an object");
  std::map<std::string, std::string> metadata;
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string()) fail(fmt::format("{}: __metadata__ {} is not a string", file, key));
    metadata.emplace(key, text.get<std::string>());
  }
  return metadata;
}

// Sorted by offset, the entries must cover [begin, end) exactly.
void check_coverage(const std::vector<SafetensorsEntry>& entries, std::int64_t begin, std::int64_t end,
                    const std::string& file) {
  std::int64_t at = begin;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.offset != at) {
      fail(fmt::format("{}: tensor {} begins at byte {}, {} byte {} where the data before it ends", file, entry.name,
                       entry.offset, entry.offset < at ? "before" : "after", at));
    }
    at += entry.bytes;
  }
  if (at != end) fail(fmt::format("{}: bytes {} to {} belong to no tensor", file, at, end));
}

}  // namespace

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) {
  SafetensorsFile result(File::open(path));
  const std::string file = path.string();
  const std::int64_t size = result.file_.size();
  if (size < kLengthBytes) fail(fmt::format("{}: {} bytes are too few for a safetensors file", file, size));
  std::uint64_t length = 0;
  result.file_.read_at(0, &length, kLengthBytes);
  if (length > static_cast<std::uint64_t>(std::min(size - kLengthBytes, kMaxHeaderBytes))) {
    fail(fmt::format("{}: byte 0 says that the header has {} bytes, but the file has {}", file, length, size));
  }
  std::string text(length, '\0');
  result.file_.read_at(kLengthBytes, text.data(), static_cast<std::int64_t>(length));

  const json header = parse_strict_json(text, fmt::format("{}: header at byte {}", file, kLengthBytes));
  if (!header.is_object()) fail(file + ": the header is not a JSON object");
  const std::int64_t data_begin = kLengthBytes + static_cast<std::int64_t>(length);
  for (const auto& [name, value] : header.items()) {
    if (name == kMetadata) {
      result.metadata_ = parse_metadata(value, file);
    } else {
      result.entries_.push_back(parse_entry(name, value, data_begin, size - data_begin, file));
    }
  }
  // Tensors without elements share their offset with the next; the name makes the order one.
  std::sort(result.entries_.begin(), result.entries_.end(), [](const auto& a, const auto& b) {
    return std::tie(a.offset, a.bytes, a.name) < std::tie(b.offset, b.bytes, b.name);
  });
  check_coverage(result.entries_, data_begin, size, file);
  return result;
}

bool SafetensorsFile::contains(std::string_view name) const {
  return std::any_of(entries_.begin(), entries_.end(), [&](const auto& entry) { return entry.name == name; });
}

const SafetensorsEntry& SafetensorsFile::find(std::string_view name) const {
  const auto found = std::find_if(entries_.begin(), entries_.end(), [&](const auto& entry) { return entry.name == name; });
  if (found == entries_.end()) fail(fmt::format("{}: there is no tensor {}", file_.path().string(), name));
  return *found;
}

void SafetensorsFile::read_into(const SafetensorsEntry& entry, DType dtype, void* data) const {
  if (entry.dtype != dtype) {
    fail(fmt::format("{}: tensor {} holds {}, not {}", file_.path().string(), entry.name, name_of(entry.dtype),
                     name_of(dtype)));
  }
  file_.read_at(entry.offset, data, entry.bytes);
}

std::string safetensors_header(std::span<const SafetensorsTensor> tensors,
                               const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[std::string(kMetadata)] = metadata;
  std::set<std::string_view> names{kMetadata};
  std::int64_t at = 0;
  for (const SafetensorsTensor& tensor : tensors) {
    if (!names.insert(tensor.name).second) fail(fmt::format("two tensors of one file are named {}", tensor.name));
    auto shape = nlohmann::ordered_json::array();
    for (int axis = 0; axis < tensor.shape.rank(); ++axis) shape.push_back(tensor.shape[axis]);
    const std::int64_t end = at + tensor.shape.numel() * size_of(tensor.dtype);
    // ordered_json looks a new key up among all before it; the set above already knows that it is new.
    header.get_ref<nlohmann::ordered_json::object_t&>().emplace_back(
        tensor.name,
        nlohmann::ordered_json{{"dtype", safetensors_name(tensor.dtype)}, {"shape", shape}, {"data_offsets", {at, end}}});
    at = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const std::uint64_t length = text.size();
  std::string prefix(kLengthBytes, '\0');
  std::memcpy(prefix.data(), &length, kLengthBytes);
  return prefix + text;
}

void write_safetensors(const std::filesystem::path& path, std::span<const SafetensorsTensor> tensors,
                       const std::map<std::string, std::string>& metadata) {
  File file = File::create(path);
  file.write(safetensors_header(tensors, metadata));
  for (const SafetensorsTensor& tensor : tensors) {
    file.write(tensor.data, tensor.shape.numel() * size_of(tensor.dtype));
  }
  file.sync();
  file.close();
}

}  // namespace dm
