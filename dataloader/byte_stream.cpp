// Reads plain and zstd files through one fixed-size input buffer.
#include "dataloader/byte_stream.h"

#include <algorithm>

#include <fmt/format.h>
#include <zstd.h>

#include "runtime/error.h"

namespace dm {
namespace {

constexpr std::string_view kFrameMagic = "\x28\xB5\x2F\xFD";
constexpr int kWindowLogMax = 31;
constexpr std::size_t kInputBytes = 128 << 10;
constexpr std::size_t kOutputBytes = 128 << 10;

}  // namespace

struct ByteStream::Decoder {
  struct Free {
    void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
  };
  std::unique_ptr<ZSTD_DCtx, Free> context{ZSTD_createDCtx()};
  std::vector<char> output = std::vector<char>(kOutputBytes);
  bool output_full = false;  // zstd may hold more output than it could give

  Decoder() {
    require(context != nullptr, "no memory for a zstd decoder");
    ZSTD_DCtx_setParameter(context.get(), ZSTD_d_windowLogMax, kWindowLogMax);
  }
};

ByteStream::ByteStream(const std::filesystem::path& file)
    : file_(File::open(file)), file_size_(file_.size()), buffer_(kInputBytes) {
  if (file.extension() == ".zst") {
    decoder_ = std::make_unique<Decoder>();
    frame_ = 1;
  }
}

ByteStream::~ByteStream() = default;

bool ByteStream::fill() {
  const std::int64_t count = std::min(file_size_ - file_at_, static_cast<std::int64_t>(buffer_.size()));
  if (count > 0) file_.read_at(file_at_, buffer_.data(), count);
  file_at_ += count;
  input_ = {buffer_.data(), static_cast<std::size_t>(count)};
  return count > 0;
}

ByteStream::Status ByteStream::read(std::string_view& bytes) {
  if (!decoder_) {
    if (!fill()) return Status::end;
    bytes = input_;
    return Status::bytes;
  }
  while (true) {
    if (input_.empty() && !decoder_->output_full && !fill()) {
      if (!in_frame_) return Status::end;
      damage_ = "the file ends inside the frame";
      return Status::damaged;
    }
    if (!in_frame_) frame_begin_ = file_at_ - static_cast<std::int64_t>(input_.size());
    ZSTD_inBuffer in{input_.data(), input_.size(), 0};
    ZSTD_outBuffer out{decoder_->output.data(), decoder_->output.size(), 0};
    const std::size_t result = ZSTD_decompressStream(decoder_->context.get(), &out, &in);
    if (ZSTD_isError(result)) {
      damage_ = fmt::format("the frame is damaged near byte {} of the file: {}",
                            file_at_ - static_cast<std::int64_t>(input_.size()), ZSTD_getErrorName(result));
      return Status::damaged;
    }
    input_.remove_prefix(in.pos);
    in_frame_ = result != 0;
    frame_ += result == 0;
    decoder_->output_full = in_frame_ && out.pos == out.size;
    if (out.pos > 0) {
      bytes = {decoder_->output.data(), out.pos};
      return Status::bytes;
    }
  }
}

void ByteStream::resynchronise() {
  ZSTD_DCtx_reset(decoder_->context.get(), ZSTD_reset_session_only);
  decoder_->output_full = false;
  in_frame_ = false;
  ++frame_;
  file_at_ = frame_begin_ + 1;
  std::string window;  // the last bytes of the buffer before and the buffer, so that a magic number across the cut is seen
  while (fill()) {
    window.append(input_);
    const std::size_t found = window.find(kFrameMagic);
    if (found != std::string::npos) {
      file_at_ -= static_cast<std::int64_t>(window.size() - found);
      break;
    }
    window.erase(0, window.size() - std::min(window.size(), kFrameMagic.size() - 1));
  }
  input_ = {};
}

}  // namespace dm
