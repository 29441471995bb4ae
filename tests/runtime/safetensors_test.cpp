// safetensors: round trips, each defect of a header by name, and thousands of damaged files that must fail cleanly.
#include "runtime/safetensors.h"

#include <cstring>
#include <map>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "runtime/error.h"
#include "tests/testing/mutate.h"
#include "tests/testing/temporary_directory.h"

namespace dm {
namespace {

class Safetensors : public ::testing::Test {
 protected:
  /// A file with this header text and `data_bytes` zero bytes of data.
  void write_raw(const std::string& header, std::size_t data_bytes) {
    const std::uint64_t length = header.size();
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &length, 8);
    write_bytes(path_, bytes + header + std::string(data_bytes, '\0'));
  }
  std::string open_error() {
    try {
      SafetensorsFile::open(path_);
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()).find(path_.string()), 0u) << error.what();
      return error.what();
    }
    return "";
  }
  std::string error_of(const std::string& header, std::size_t data_bytes) {
    write_raw(header, data_bytes);
    return open_error();
  }

  TemporaryDirectory directory_;
  std::filesystem::path path_ = directory_.path() / "x.safetensors";
};

TEST_F(Safetensors, RoundTrip) {
  const std::vector<float> a{1, 2, 3, 4, 5, -0.0f};
  const std::vector<std::int32_t> b{7, -8};
  const std::vector<std::int64_t> c{std::int64_t{1} << 40};
  const std::vector<std::uint8_t> d{1, 2, 3};
  const std::vector<SafetensorsTensor> tensors{{"z/a", DType::f32, {2, 3}, a.data()},
                                               {"b", DType::i32, {2}, b.data()},
                                               {"c \"quoted\" \u00e9", DType::i64, {1, 1, 1, 1}, c.data()},
                                               {"empty", DType::f32, {0, 4}, nullptr},
                                               {"d", DType::u8, {3}, d.data()}};
  const std::map<std::string, std::string> metadata{{"format", "x"}, {"other", ""}};
  write_safetensors(path_, tensors, metadata);

  const SafetensorsFile file = SafetensorsFile::open(path_);
  ASSERT_EQ(file.entries().size(), 5u);
  EXPECT_EQ(file.entries()[0].name, "z/a");
  EXPECT_EQ(file.entries()[0].offset % 8, 0);
  EXPECT_EQ(file.entries()[4].name, "d");
  EXPECT_EQ(file.metadata(), metadata);
  EXPECT_EQ(file.find("z/a").shape, (Shape{2, 3}));
  EXPECT_EQ(std::memcmp(file.read("z/a").data(), a.data(), 24), 0);
  EXPECT_EQ(file.read<std::int32_t>("b"), b);
  EXPECT_EQ(file.read<std::int64_t>("c \"quoted\" \u00e9"), c);
  EXPECT_EQ(file.read<std::uint8_t>("d"), d);
  EXPECT_TRUE(file.read("empty").empty());
  EXPECT_TRUE(file.contains("d"));
  EXPECT_FALSE(file.contains("e"));
  EXPECT_THROW(file.find("e"), Error);
  EXPECT_THROW(file.read("b"), Error);  // int32 is not float
}

TEST_F(Safetensors, TheHeaderSaysWhereTheDataLies) {
  const std::vector<SafetensorsTensor> tensors{{"a", DType::f32, {2}, nullptr}, {"b", DType::bf16, {3}, nullptr}};
  const std::string header = safetensors_header(tensors);
  EXPECT_EQ(header.size() % 8, 0u);
  EXPECT_NE(header.find(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[3],)"
                        R"("data_offsets":[8,14]}})"),
            std::string::npos)
      << header;
  const std::vector<SafetensorsTensor> twice{{"a", DType::f32, {2}, nullptr}, {"a", DType::f32, {2}, nullptr}};
  EXPECT_THROW(safetensors_header(twice), Error);
}

TEST_F(Safetensors, ScalarsAndForeignLayoutsAreRead) {
  EXPECT_EQ(error_of(R"( {"b":{"data_offsets":[4,12],"shape":[1,2],"dtype":"I32"},"s":{"dtype":"F32","shape":[],)"
                     R"("data_offsets":[0,4]}}   )",
                     12),
            "");
  const SafetensorsFile file = SafetensorsFile::open(path_);
  EXPECT_EQ(file.entries()[0].name, "s");
  EXPECT_EQ(file.find("s").shape, Shape{1});
  EXPECT_EQ(error_of("{}", 0), "");
}

TEST_F(Safetensors, EveryDefectIsNamed) {
  const auto tensor = [](const std::string& dtype, const std::string& shape, const std::string& offsets) {
    return R"({"w":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
  };
  ASSERT_EQ(error_of(tensor("F32", "[2]", "[0,8]"), 8), "");
  const std::vector<std::pair<std::string, std::string>> cases{
      {tensor("F8", "[2]", "[0,8]"), "dtype F8"},
      {tensor("F32", "[3]", "[0,8]"), "do not hold float32 of shape [3]"},
      {tensor("I64", "[2]", "[0,8]"), "do not hold int64"},
      {tensor("F32", "[2]", "[0,16]"), "outside the 8 bytes"},
      {tensor("F32", "[2]", "[8,0]"), "outside the 8 bytes"},
      {tensor("F32", "[2]", "[-1,7]"), "data_offsets is not"},
      {tensor("F32", "[2]", "[0,8.0]"), "data_offsets is not"},
      {tensor("F32", "[2]", "[0]"), "data_offsets is not"},
      {tensor("F32", "[1]", "[4,8]"), "after byte"},
      {tensor("F32", "[1]", "[0,4]"), "belong to no tensor"},
      {tensor("F32", "[-2]", "[0,8]"), "no size"},
      {tensor("F32", "[4611686018427387904,4]", "[0,8]"), "no size"},
      {tensor("F32", "[4611686018427387904]", "[0,8]"), "do not hold"},
      {tensor("F32", "[0,18446744073709551615]", "[0,8]"), "no size"},
      {tensor("F32", "[1,1,1,1,2]", "[0,8]"), "more than four axes"},
      {tensor("F32", "\"2\"", "[0,8]"), "shape is not an array"},
      {R"({"w":{"dtype":1,"shape":[2],"data_offsets":[0,8]}})", "dtype is not a string"},
      {R"({"w":{"dtype":"F32","shape":[2]}})", "expected an object of"},
      {R"({"w":3})", "expected an object of"},
      {R"([])", "not a JSON object"},
      {R"({"w":)", "header at byte 8"},
      {R"({"__metadata__":3})", "__metadata__ is not an object"},
      {R"({"__metadata__":{"a":1}})", "__metadata__ a is not a string"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
       "key a occurs twice"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
       "tensor b begins at byte"},
      {"{\"\xff\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", "UTF-8"},
  };
  for (const auto& [header, expected] : cases) {
    const std::string message = error_of(header, 8);
    EXPECT_NE(message.find(expected), std::string::npos) << header << " gave: " << message;
  }
}

TEST_F(Safetensors, LengthsThatLieAreFound) {
  write_bytes(path_, "1234567");
  EXPECT_NE(open_error().find("too few"), std::string::npos);
  write_bytes(path_, std::string(8, '\xff'));
  EXPECT_NE(open_error().find("byte 0 says"), std::string::npos);
  const float values[4] = {1, 2, 3, 4};
  const std::vector<SafetensorsTensor> tensors{{"w", DType::f32, {4}, values}};
  write_safetensors(path_, tensors);
  const std::string good = bytes_of_file(path_);
  for (std::size_t size = 0; size < good.size(); ++size) {
    write_bytes(path_, good.substr(0, size));
    EXPECT_NE(open_error(), "") << size;
  }
}

TEST_F(Safetensors, MutatedFilesParseOrFailCleanly) {
  const float values[6] = {1, 2, 3, 4, 5, 6};
  const std::vector<SafetensorsTensor> tensors{{"first", DType::f32, {2, 2}, values}, {"second", DType::f32, {2}, values}};
  write_safetensors(path_, tensors, {{"key", "text"}});
  const std::string good = bytes_of_file(path_);
  std::mt19937 random(1);
  int parsed = 0;
  for (int i = 0; i < 6000; ++i) {
    write_bytes(path_, mutate(good, random));
    try {
      const SafetensorsFile file = SafetensorsFile::open(path_);
      ++parsed;
      for (const SafetensorsEntry& entry : file.entries()) {
        if (entry.dtype == DType::f32) file.read(entry.name);
      }
    } catch (const Error&) {
    }
  }
  EXPECT_GT(parsed, 0);
}

}  // namespace
}  // namespace dm
