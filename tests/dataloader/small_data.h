// Small data for the tests: random documents, JSON lines, zstd files of many shapes; and the errors made of them.
#pragma once

#include <zstd.h>

#include <filesystem>
#include <functional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "runtime/error.h"
#include "tests/testing/temporary_directory.h"

namespace dm {

/// Text of random words, newlines and runs of spaces, some of it not ASCII.
inline std::string random_text(std::mt19937& random, std::size_t words) {
  static const std::vector<std::string> kWords = {
      "the", "state", "of",     "a",    "space", "model,", "λ",   "größe",  "12", "1999",  "x = y", "\n", "\n\n", "  ",
      "\t",  "<s>",   "日本語", "🙂", "end.",  "(see",   "it)", "\"so\"", "\\", "<unk>", "</s>",  "▁",  "é"};
  std::string text;
  for (std::size_t i = 0; i < words; ++i) {
    if (random() % 8 != 0 && !text.empty()) text += ' ';
    text += kWords[random() % kWords.size()];
    if (random() % 4 == 0) text += static_cast<char>('a' + random() % 26);
  }
  return text;
}

inline std::vector<std::string> random_documents(unsigned seed, std::size_t count, std::size_t most_words = 60) {
  std::mt19937 random(seed);
  std::vector<std::string> documents;
  for (std::size_t i = 0; i < count; ++i) documents.push_back(random_text(random, random() % (most_words + 1)));
  return documents;
}

inline std::string json_line(const std::string& text) {
  return nlohmann::json{{"text", text}, {"meta", {{"pile_set_name", "Test"}}}}.dump() + "\n";
}

inline std::string json_lines(const std::vector<std::string>& documents) {
  std::string lines;
  for (const std::string& document : documents) lines += json_line(document);
  return lines;
}

/// One zstd frame. Without the content size it is what streaming writers make.
inline std::string zstd_frame(std::string_view bytes, bool content_size = true, bool checksum = false) {
  ZSTD_CCtx* const context = ZSTD_createCCtx();
  ZSTD_CCtx_setParameter(context, ZSTD_c_contentSizeFlag, content_size);
  ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, checksum);
  std::string frame(ZSTD_compressBound(bytes.size()), '\0');
  frame.resize(ZSTD_compress2(context, frame.data(), frame.size(), bytes.data(), bytes.size()));
  ZSTD_freeCCtx(context);
  return frame;
}

inline std::string skippable_frame(std::string_view content) {
  std::string frame("\x5E\x2A\x4D\x18", 4);
  for (int shift = 0; shift < 32; shift += 8) frame += static_cast<char>(content.size() >> shift & 0xff);
  return frame.append(content);
}

/// The bytes cut into frames of `frame_bytes`, in the middle of lines, with a skippable frame between any two.
inline std::string zstd_frames(std::string_view bytes, std::size_t frame_bytes) {
  std::string file;
  for (std::size_t at = 0; at < bytes.size(); at += frame_bytes) {
    file += zstd_frame(bytes.substr(at, frame_bytes), at % 2 == 0, at % 3 == 0) + skippable_frame("index");
  }
  return file;
}

/// Writes the file and returns its path.
inline std::filesystem::path put_file(const std::filesystem::path& directory, const std::string& name,
                                      std::string_view bytes) {
  const std::filesystem::path path = directory / name;
  write_bytes(path, std::string(bytes));
  return path;
}

/// The message of the Error that `work` throws; it must throw one.
inline std::string error_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  ADD_FAILURE() << "no Error was thrown";
  return {};
}

}  // namespace dm
