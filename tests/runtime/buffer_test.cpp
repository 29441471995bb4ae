// Owned memory and the report that counts it.
#include "runtime/buffer.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include <gtest/gtest.h>

namespace dm {
namespace {

using Entries = std::vector<std::pair<std::string, std::int64_t>>;

TEST(MemoryReport, SumsByNameInTheOrderOfFirstUse) {
  MemoryReport report;
  report.add("values", 100);
  report.add("arena", 7);
  report.add("values", 20);
  EXPECT_EQ(report.entries(), (Entries{{"values", 120}, {"arena", 7}}));
  EXPECT_EQ(report.total(), 127);
  report.remove("values", 100);
  EXPECT_EQ(report.entries(), (Entries{{"values", 20}, {"arena", 7}}));
  report.remove("values", 20);
  EXPECT_EQ(report.entries(), (Entries{{"arena", 7}}));
  EXPECT_EQ(report.total(), 7);
}

TEST(Buffer, IsZeroedAlignedAndCountedWhileItLives) {
  MemoryReport report;
  {
    const Buffer buffer("values", 1000, Device::cpu(), report);
    EXPECT_EQ(report.entries(), (Entries{{"values", 1000}}));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % 256, 0u);
    const auto* bytes = static_cast<const unsigned char*>(buffer.data());
    EXPECT_TRUE(std::all_of(bytes, bytes + 1000, [](unsigned char byte) { return byte == 0; }));
    EXPECT_EQ(buffer.name(), "values");
    EXPECT_EQ(buffer.bytes(), 1000);
  }
  EXPECT_TRUE(report.entries().empty());
}

TEST(Buffer, MovesItsMemoryAndItsEntry) {
  MemoryReport report;
  Buffer first("values", 64, Device::cpu(), report);
  void* const memory = first.data();
  Buffer second(std::move(first));
  EXPECT_EQ(second.data(), memory);
  EXPECT_EQ(report.total(), 64);

  second = Buffer("gradients", 128, Device::cpu(), report);  // the old memory goes, with its entry
  EXPECT_EQ(report.entries(), (Entries{{"gradients", 128}}));

  Buffer& same = second;
  second = std::move(same);
  EXPECT_EQ(second.bytes(), 128);
  EXPECT_EQ(report.total(), 128);
}

TEST(Buffer, OnThePlanDeviceCountsAndHoldsNothing) {
  MemoryReport report;
  const std::int64_t petabyte = std::int64_t{1} << 50;
  const Buffer buffer("arena", petabyte, Device::plan(), report);
  EXPECT_EQ(buffer.data(), nullptr);
  EXPECT_EQ(report.total(), petabyte);
  EXPECT_EQ(buffer.tensor({4, 4}, DType::f32).device(), Device::plan());
}

TEST(Buffer, GivesTensorsUpToItsSize) {
  MemoryReport report;
  const Buffer buffer("values", 64, Device::cpu(), report);
  const Tensor tensor = buffer.tensor({4, 4}, DType::f32);
  EXPECT_EQ(tensor.data(), buffer.data());
  EXPECT_EQ(tensor.shape(), (Shape{4, 4}));
  EXPECT_THROW((void)buffer.tensor({17}, DType::f32), Error);
  EXPECT_NO_THROW((void)buffer.tensor({32}, DType::bf16));
}

TEST(Buffer, AnEmptyOneIsFine) {
  MemoryReport report;
  const Buffer buffer("none", 0, Device::cpu(), report);
  EXPECT_EQ(buffer.bytes(), 0);
  EXPECT_EQ(report.total(), 0);
  EXPECT_EQ(Buffer().bytes(), 0);
}

TEST(Buffer, RefusesWhatCannotBe) {
  MemoryReport report;
  EXPECT_THROW(Buffer("negative", -1, Device::cpu(), report), Error);
  EXPECT_TRUE(report.entries().empty());
#if !defined(__SANITIZE_ADDRESS__)  // the sanitizer ends the process instead of saying that memory is short
  try {
    Buffer("values", std::int64_t{1} << 60, Device::cpu(), report);
    ADD_FAILURE() << "an exbibyte was given";
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()).find("out of memory on cpu: cannot take 1099511627776 MiB for values;"), 0u)
        << error.what();
  }
#endif
  EXPECT_TRUE(report.entries().empty());
}

}  // namespace
}  // namespace dm
