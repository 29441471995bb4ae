// The safetensors file format: named tensors behind a JSON header, read by position and written in one pass.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/dtype.h"
#include "runtime/file.h"
#include "runtime/tensor.h"

namespace dm {

/// The layout (huggingface/safetensors, "Format"): 8 bytes little-endian header length N, N bytes of JSON
/// {"name": {"dtype", "shape", "data_offsets": [begin, end]}, ..., "__metadata__": {string: string}}, then the data without
/// gaps, row-major and little-endian; offsets count from the end of the header.
///
/// Element types: F32, BF16, I32, I64, U8. A scalar (shape []) is given the shape [1]; more than four axes are refused.

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  std::int64_t offset = 0;  ///< From the start of the file, in bytes.
  std::int64_t bytes = 0;
};

/// An open file whose header has been checked: lengths against the file, JSON, duplicate names, dtype × shape = size, and
/// data that covers the rest of the file without gap or overlap. Every defect is an Error with file and offset or tensor.
class SafetensorsFile {
 public:
  static SafetensorsFile open(const std::filesystem::path& path);

  /// In the order of their data.
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  bool contains(std::string_view name) const;
  /// Throws Error naming the file when there is no such tensor.
  const SafetensorsEntry& find(std::string_view name) const;

  /// The tensor's elements: T is float for F32, std::int32_t for I32, and so on; another type is an Error.
  template <class T = float>
  std::vector<T> read(std::string_view name) const {
    const SafetensorsEntry& entry = find(name);
    std::vector<T> values(static_cast<std::size_t>(entry.shape.numel()));
    read_into(entry, DTypeOf<T>::value, values.data());
    return values;
  }

 private:
  explicit SafetensorsFile(File file) : file_(std::move(file)) {}
  void read_into(const SafetensorsEntry& entry, DType dtype, void* data) const;

  File file_;
  std::vector<SafetensorsEntry> entries_;
  std::map<std::string, std::string> metadata_;
};

/// A tensor in host memory to be written; `data` may be null while only the header is wanted.
struct SafetensorsTensor {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  const void* data = nullptr;
};

/// Everything before the data, length included, for tensors that follow in the given order without gaps. Padded with spaces
/// so that the data begins at a multiple of 8 bytes. Names must be unique.
std::string safetensors_header(std::span<const SafetensorsTensor> tensors,
                               const std::map<std::string, std::string>& metadata = {});

/// Writes and fsyncs a whole file.
void write_safetensors(const std::filesystem::path& path, std::span<const SafetensorsTensor> tensors,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace dm
