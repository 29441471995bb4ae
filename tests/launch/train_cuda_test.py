#!/usr/bin/env python3
"""Training on one GPU: the curve of the CPU, the same bits every run and after a resume, checkpoints that go to and fro."""

import os
from unittest import mock

from gpu_runs import BF16_CURVE, F32_CURVE, GpuTest
from harness import FAILURE, OK, PROGRAM, STEPS, main_on_gpus, run


class Curve(GpuTest):
    """Ten steps of the same model on CPU and GPU."""

    def check(self, depth):
        options = {"model__dense_depth": depth, "train__steps": 10}
        self.train(f"cpu {depth}", run__device="cpu", **options)
        self.train(f"float32 {depth}", train__dtype="float32", **options)
        self.train(f"bfloat16 {depth}", train__dtype="bfloat16", **options)
        self.assert_same_curve(f"float32 {depth}", f"cpu {depth}", F32_CURVE)
        self.assert_same_curve(f"bfloat16 {depth}", f"cpu {depth}", BF16_CURVE)
        losses = [loss for loss, _, _ in self.trace(f"cpu {depth}").values()]
        self.assertLess(losses[-1], losses[0] - 0.3, "ten steps that learn nothing compare nothing")

    def test_mamba(self):
        self.check(depth=0)

    def test_densemamba(self):
        self.check(depth=2)


class Repeatable(GpuTest):
    def test_two_runs_are_the_same_to_the_last_bit(self):
        for dtype in ("bfloat16", "float32"):
            for name in ("one", "other"):
                self.train(f"{name} {dtype}", train__dtype=dtype)
            self.assert_same_run(f"one {dtype}", f"other {dtype}")

    def test_stopped_and_resumed_is_the_same_to_the_last_bit(self):
        for dtype in ("bfloat16", "float32"):
            self.train(f"straight {dtype}", train__dtype=dtype)
            self.train(f"parts {dtype}", train__dtype=dtype, train__stop_at=3)
            self.assertIn("at step 3", self.train(f"parts {dtype}", train__dtype=dtype, resume="must").out)
            self.assert_same_run(f"straight {dtype}", f"parts {dtype}")

    def test_recompute_is_the_same_to_the_last_bit(self):
        self.train("none", train__recompute="none")
        for recompute in ("selective", "block"):
            self.train(recompute, train__recompute=recompute)
            self.assertEqual(self.trace(recompute), self.trace("none"))
            self.assertEqual(self.shards(recompute, STEPS), self.shards("none", STEPS))


class OtherDevice(GpuTest):
    def test_checkpoints_go_to_and_fro(self):
        self.train("straight", run__device="cpu", train__dtype="float32")
        for device, last in (("cpu", 3), ("cuda", 6), ("cpu", STEPS)):
            self.train("hops", run__device=device, train__dtype="float32", train__stop_at=last)
        self.assert_same_curve("hops", "straight", F32_CURVE)
        self.assertEqual(self.record("hops", STEPS)["data_state"], self.record("straight", STEPS)["data_state"])

    def test_auto_takes_the_gpu_and_bfloat16(self):
        self.assertRegex(self.train("auto", run__device="auto", train__dtype="auto").out, r"device NVIDIA ")
        self.train("explicit", run__device="cuda", train__dtype="bfloat16")
        self.assert_same_run("auto", "explicit")

    def test_samples_of_a_checkpoint(self):
        self.train("sampled", train__steps=2)
        done = run(PROGRAM, "generate", self.folder / "sampled", "--prompt", "mamba", "--tokens", 8, "--temperature", 0)
        self.assertEqual((done.code, done.ours), (OK, []), done)
        self.assertTrue(done.out.startswith("mamba"), done)


class Refusals(GpuTest):
    def test_several_ranks_on_one_gpu(self):
        first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        with mock.patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": first}):
            for device in ("cuda", "auto"):
                self.refuse("shared", r"device: rank 1 on .* has no GPU of its own: lower ranks have taken all 1 that it sees; "
                            "start at most one rank a GPU", ranks=2, run__device=device)
        self.assertFalse((self.folder / "shared").exists())

    def test_a_model_that_does_not_fit(self):
        self.refuse("huge", r"out of memory on cuda:0: cannot take \d+ MiB for .*; `densemamba plan`", FAILURE,
                    model__d_model=16384, model__layers=256)


if __name__ == "__main__":
    main_on_gpus(1)
