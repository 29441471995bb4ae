#!/usr/bin/env python3
"""Training on two GPUs over NCCL: the curve of one GPU, the same bits every run, checkpoints over every grid, and failures."""

import os
from unittest import mock

from gpu_runs import BF16_CURVE, F32_CURVE, GpuTest
from harness import RETRYABLE, STEPS, fault, main_on_gpus, mpirun, run

DATA, TENSOR = {"ranks": 2}, {"ranks": 2, "tensor": 2}
# Tensors of more than 1 MiB, which a group on one host moves over shared memory instead of NCCL.
LARGE = {"model__d_model": 512, "train__batch": 4, "train__sequence": 2048, "data__synthetic": "true", "data__train": None}
# The same of so many sequences that halves of them take turns (LanguageModel::kFillsGpu).
HALVES = {**LARGE, "train__batch": 32, "train__micro_batch": 32, "train__sequence": 256}
KILLED = 128 + 9  # mpirun gives the exit code of the process that died first


class TwoGpus(GpuTest):
    def one_gpu(self, dtype):
        """The name of a finished run on one GPU."""
        if not (self.folder / f"one {dtype}").exists():
            self.train(f"one {dtype}", train__dtype=dtype)
        return f"one {dtype}"

    def test_the_curve_of_one_gpu(self):
        for dtype, bound in (("float32", F32_CURVE), ("bfloat16", BF16_CURVE)):
            for name, grid in (("data", DATA), ("tensor", TENSOR)):
                self.train(f"{name} {dtype}", **grid, train__dtype=dtype)
                self.assert_same_curve(f"{name} {dtype}", self.one_gpu(dtype), bound)

    def test_same_bits_every_run_and_after_a_resume(self):
        for name, grid in (("data", DATA), ("tensor", TENSOR)):
            self.train(f"straight {name}", **grid)
            self.train(f"parts {name}", **grid, train__stop_at=3)
            self.train(f"parts {name}", **grid, resume="must")
            self.assert_same_run(f"straight {name}", f"parts {name}")

    def test_tensors_on_shared_memory(self):
        for dtype, bound in (("float32", F32_CURVE), ("bfloat16", BF16_CURVE)):
            for kind, sizes in (("whole", LARGE), ("halves", HALVES)):
                one, two, again = (f"{kind} {name} {dtype}" for name in ("one", "two", "again"))
                self.train(one, train__dtype=dtype, **sizes)
                for name in (two, again):
                    self.train(name, **TENSOR, train__dtype=dtype, **sizes)
                self.assert_same_run(two, again)
                self.assert_same_curve(two, one, bound)

    def test_the_way_of_gradients_and_values_changes_no_bit(self):
        """Blocks are large enough for copy engines. The sum of two ranks has no order."""
        for overlap in ("false", "auto", "true"):
            self.train(f"overlap {overlap}", **DATA, model__d_model=512, parallel__overlap=overlap, checkpoint__every=0)
        self.assert_same_run("overlap false", "overlap auto")
        self.assert_same_run("overlap false", "overlap true")

    def test_checkpoints_go_over_every_grid(self):
        for grid, last in (({}, 2), (DATA, 4), (TENSOR, 6), ({"run__device": "cpu"}, 7), (DATA, STEPS)):
            self.train("hops", **grid, train__dtype="float32", train__stop_at=last)
        self.assert_same_curve("hops", self.one_gpu("float32"), F32_CURVE)
        self.assertEqual(self.record("hops", STEPS)["data_state"], self.record("one float32", STEPS)["data_state"])

    def test_ranks_that_see_one_gpu_each(self):
        """As under Slurm's --gpus-per-task."""
        command = [str(word) for word in self.command("own", ranks=2)]
        launcher = mpirun(2)
        own = ["bash", "-c", 'CUDA_VISIBLE_DEVICES=$OMPI_COMM_WORLD_LOCAL_RANK exec "$@"', "bash"]
        done = run(*launcher, *own, *command[len(launcher):])
        self.assertEqual(done.code, 0, done)
        self.train("all", ranks=2)
        self.assert_same_run("own", "all")


class Failures(GpuTest):
    def test_several_ranks_on_one_gpu(self):
        self.refuse("crowded", r"device: rank \d on .* has no GPU of its own: lower ranks have taken all \d that it sees; "
                    "start at most one rank a GPU", ranks=9, train__batch=9, train__micro_batch=1)
        with mock.patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": "0"}):
            self.refuse("same", r"rank 1 on .* lower ranks have taken all 1 that it sees", ranks=2)

    def test_killed_in_a_step(self):
        result = self.train("killed", ranks=2, inject=[fault(1, 5, "backward", "kill")], code=KILLED)
        self.assertRegex(result.err, r"culprit: rank 1 .* died .* step 5, phase backward")
        self.assertEqual(self.checkpoints("killed"), ["latest", "step_00000002", "step_00000004"])
        self.train("killed", ranks=2)
        self.train("undisturbed", ranks=2)
        self.assert_same_run("killed", "undisturbed")

    def test_hangs(self):
        """Others wait on their GPUs, for NCCL's kernels or for a place in shared memory; the watchdog ends them."""
        for name, options in (("data", DATA), ("beside", {**DATA, **LARGE, "parallel__overlap": "true"}),
                              ("tensor", {**TENSOR, **LARGE})):
            result = self.train(f"hanging {name}", **options, parallel__watchdog_seconds=3, code=RETRYABLE,
                                inject=[fault(1, 3, "forward", "hang")])
            self.assertRegex(result.err, r"culprit: rank 1 ")
            self.assertEqual(result.err.count("culprit:"), 1, result)


if __name__ == "__main__":
    main_on_gpus(2)
