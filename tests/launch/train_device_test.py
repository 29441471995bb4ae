#!/usr/bin/env python3
"""A GPU asked for where none is seen is refused in one line; `auto` computes on the CPU there."""

import os
from unittest import mock

from harness import PROGRAM, STEPS, TrainTest, main, run


@mock.patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": ""})
class NoGpu(TrainTest):
    def reason(self):
        built = "no CUDA" not in run(PROGRAM, "--version").out
        return "no usable GPU: .*; use --run.device cpu, or run where" if built else "has no CUDA backend; use --run.device cpu"

    def test_refused(self):
        for ranks in (0, 1, 2):
            self.refuse("refused", self.reason(), ranks=ranks, run__device="cuda")
        self.assertFalse((self.folder / "refused").exists())

    def test_dtype_of_gpus(self):
        self.refuse("bf16", "--train.dtype bfloat16 needs a GPU; on the CPU use float32 or auto", train__dtype="bfloat16")

    def test_auto(self):
        self.assertIn("device cpu\n", self.train("auto", run__device="auto").out)
        self.train("cpu")
        self.assert_same_run("auto", "cpu", STEPS)


if __name__ == "__main__":
    main()
