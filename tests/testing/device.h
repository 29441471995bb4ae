// The device that a test computes on: the same test serves CPU and GPU.
#pragma once

#include "runtime/device.h"

namespace dm {

/// The CPU; where DM_TEST_DEVICE=cuda is in the environment the GPU whose ordinal is the rank's (tests run on one node). The
/// program is skipped before its first test where a rank has none (tests/testing/main.cpp).
Device test_device();

}  // namespace dm
