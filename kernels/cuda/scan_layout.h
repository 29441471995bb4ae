// How the CUDA selective scan cuts its work, and the sizes that follow: what host, kernels and memory plan share.
#pragma once

#include <algorithm>
#include <cstdint>

namespace dm::cuda::scan {

inline constexpr int kSavedTokens = 8;  ///< Tokens between two saved states.
inline constexpr int kChannels = 64;    ///< Channels of a block.
inline constexpr int kStates =
    16;  ///< States that a block advances; more than 16 are cut into slices of 16, fewer are padded.

/// Pairs of tokens of B̄'s and C̄'s columns of a tile.
inline constexpr int kColumnPairs = kSavedTokens / 2 * 2 * kStates;

constexpr std::int64_t pieces(std::int64_t count, std::int64_t size) {
  return (count + size - 1) / size;
}
constexpr std::int64_t slices_of(std::int64_t states) {
  return pieces(states, kStates);
}
constexpr std::int64_t blocks_of(std::int64_t channels) {
  return pieces(channels, kChannels);
}
constexpr std::int64_t saved_of(std::int64_t tokens) {
  return pieces(tokens, kSavedTokens);
}

/// Multiprocessors of the GPU that work is cut for, an H100 or H200. How it is cut is a function of the extents and of this
/// alone, so that results do not depend on the device.
inline constexpr std::int64_t kMultiprocessors = 132;

/// So many blocks of whole sequences need no segments.
inline constexpr std::int64_t kEnoughBlocks = 88;

/// Segments of time that blocks of their own walk, when whole sequences are too few to fill a GPU with two blocks a
/// multiprocessor, and no more of them than that: those over would run alone.
constexpr std::int64_t segments_of(std::int64_t batch, std::int64_t tokens, std::int64_t channels) {
  constexpr std::int64_t kFull = 2 * kMultiprocessors, kShortest = 256;
  const std::int64_t blocks = std::max<std::int64_t>(batch * blocks_of(channels), 1);
  if (blocks > kEnoughBlocks) return 1;
  return std::max<std::int64_t>(1, std::min(kFull / blocks, tokens / kShortest));
}

/// Pieces into which the adjoint's first pass cuts each segment but one: small blocks of its own, as many as a GPU holds in
/// two rounds of six a multiprocessor, so that none of them works alone at the end; short segments are cut into a few all
/// the same.
constexpr std::int64_t pieces_of(std::int64_t batch, std::int64_t tokens, std::int64_t channels) {
  constexpr std::int64_t kRounds = 2 * 6 * kMultiprocessors, kShortest = 96, kFewest = 5;
  const std::int64_t segments = segments_of(batch, tokens, channels);
  if (segments == 1) return 1;
  const std::int64_t blocks = batch * blocks_of(channels) * (segments - 1);
  return std::max(kFewest, std::min(kRounds / blocks, tokens / segments / kShortest));
}

/// Where the parts of the backward's scratch begin, in floats.
struct BackwardScratch {
  std::int64_t columns;         ///< [blocks, B, tiles, slices, 4, 32, 2]: B̄ and C̄ summed over a block's channels
  std::int64_t source_columns;  ///< [blocks, B·T, slices, 16]: the sources' part of C̄
  std::int64_t rates;           ///< [B, segments, slices, D, 16]: Σ_t of Δ λ exp(ΔA) h
  std::int64_t carries;         ///< [B, segments, slices, D, 16]: the adjoint that enters a segment from behind
  std::int64_t ends;            ///< [B, pieces, slices, D, 16]: the adjoint from zero at a piece's end to its begin
  std::int64_t vectors;         ///< [B, segments, 2, D]: dskip, ddt_bias
  std::int64_t sums;            ///< [B, pieces, D]: ΣΔ
  std::int64_t planes;          ///< [3, B, T, D]: sums over the slices so far, when there are several
  std::int64_t total;

  BackwardScratch(std::int64_t batch, std::int64_t tokens, std::int64_t channels, std::int64_t states, bool dense) {
    const std::int64_t slices = slices_of(states), segments = segments_of(batch, tokens, channels);
    const std::int64_t blocks = blocks_of(channels) * batch * slices;
    columns = 0;
    source_columns = columns + blocks * saved_of(tokens) * 2 * kColumnPairs;
    rates = source_columns + (dense ? blocks * tokens * kStates : 0);
    const std::int64_t walks = batch * segments;
    const std::int64_t pieces = segments > 1 ? walks * pieces_of(batch, tokens, channels) : 0;
    carries = rates + walks * slices * channels * kStates;
    ends = carries + (segments > 1 ? walks * slices * channels * kStates : 0);
    vectors = ends + pieces * slices * channels * kStates;
    sums = vectors + walks * 2 * channels;
    planes = sums + pieces * channels;
    total = planes + (slices > 1 ? 3 * batch * tokens * channels : 0);
  }
};

}  // namespace dm::cuda::scan
