// Files: complete writes, positional reads, and failures that name the file.
#include "runtime/file.h"

#include <string>

#include <gtest/gtest.h>

#include "runtime/error.h"
#include "runtime/fault.h"
#include "tests/testing/temporary_directory.h"

namespace dm {
namespace {

class Files : public ::testing::Test {
 protected:
  template <class Work>
  static std::string message_of(const Work& work, ExitCode code) {
    try {
      work();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code) << error.what();
      return error.what();
    }
    return "";
  }
  TemporaryDirectory directory_;
  std::filesystem::path path_ = directory_.path() / "file";
};

TEST_F(Files, WhatIsWrittenIsRead) {
  std::string text(3 << 20, '\0');
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * 7 + i / 1000);
  File file = File::create(path_);
  file.write(text.data(), 1000);
  file.write(std::string_view(text).substr(1000));
  file.sync();
  file.close();
  EXPECT_EQ(bytes_of_file(path_), text);
  EXPECT_EQ(read_file(path_), text);

  const File reader = File::open(path_);
  EXPECT_EQ(reader.size(), static_cast<std::int64_t>(text.size()));
  std::string part(10, '\0');
  reader.read_at(2 << 20, part.data(), 10);
  EXPECT_EQ(part, text.substr(2 << 20, 10));

  write_file(path_, "short");  // empties what was there
  EXPECT_EQ(read_file(path_), "short");
}

TEST_F(Files, MovedFilesCloseOnce) {
  File a = File::create(path_);
  File b = std::move(a);
  b.write("x");
  a = std::move(b);
  a.write("y");
  a.close();
  EXPECT_EQ(read_file(path_), "xy");
}

TEST_F(Files, FailuresNameOperationAndFile) {
  const auto missing = directory_.path() / "none" / "file";
  EXPECT_EQ(message_of([&] { File::open(missing); }, ExitCode::failure),
            "cannot open " + missing.string() + ": No such file or directory");
  EXPECT_EQ(message_of([&] { File::create(missing); }, ExitCode::retryable),
            "cannot create " + missing.string() + ": No such file or directory");
  EXPECT_NE(message_of([&] { File::open(directory_.path()); }, ExitCode::failure).find("is not a file"), std::string::npos);
  EXPECT_NE(message_of([&] { sync_directory(missing); }, ExitCode::retryable), "");
  EXPECT_NE(message_of([&] { rename_path(missing, path_); }, ExitCode::retryable), "");
  write_file(path_, "12345");
  char buffer[8];
  EXPECT_EQ(message_of([&] { File::open(path_).read_at(3, buffer, 4); }, ExitCode::failure),
            path_.string() + " ends at byte 5, 2 bytes too early");
}

TEST_F(Files, InjectedFaultsFailAsTheSystemWould) {
  const auto write_with = [&](const std::string& fault) {
    FaultInjector faults("rank=0,step=0," + fault, 0);
    return message_of([&] { write_file(path_, "0123456789", &faults); }, ExitCode::retryable);
  };
  EXPECT_EQ(write_with("point=save:write,fault=disk_full"), "cannot write " + path_.string() + ": No space left on device");
  EXPECT_EQ(read_file(path_), "");
  EXPECT_EQ(write_with("point=save:write,fault=short_write"),
            "cannot write all of " + path_.string() + ": No space left on device");
  EXPECT_EQ(read_file(path_), "01234");
  EXPECT_EQ(write_with("point=save:fsync,fault=fsync"), "cannot fsync " + path_.string() + ": Input/output error");
  EXPECT_EQ(write_with("point=save:close,fault=close"), "cannot close " + path_.string() + ": Input/output error");
  EXPECT_EQ(write_with("point=save:before_files,fault=error"), "");
  FaultInjector faults("rank=0,step=0,point=save:fsync,fault=fsync", 0);
  EXPECT_NE(message_of([&] { sync_directory(directory_.path(), &faults); }, ExitCode::retryable), "");
}

TEST_F(Files, ARealFullDiskIsAnError) {
  if (!std::filesystem::exists("/dev/full")) GTEST_SKIP() << "no /dev/full";
  EXPECT_EQ(message_of([] { File::create("/dev/full").write("x"); }, ExitCode::retryable),
            "cannot write /dev/full: No space left on device");
}

}  // namespace
}  // namespace dm
