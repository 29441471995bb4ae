#!/usr/bin/env python3
"""Saves that are cut short, disks that fail and bits that flip: the last intact checkpoint stays, and is the one used."""

import shutil

from harness import FAILURE, OK, PROGRAM, RETRYABLE, STEPS, TrainTest, fault, main, run

DISK_FAULTS = {"disk_full": "save:write", "short_write": "save:write", "fsync": "save:fsync", "close": "save:close"}


class CutShort(TrainTest):
    def test_killed_at_each_point_of_a_save(self):
        points = {"before_files": 1, "half_shard": 0, "after_shards": 1, "before_rename": 0, "before_latest": 0}
        for point, rank in points.items():
            with self.subTest(point):
                self.copy(self.reference(), point, step=4)
                killed = self.train(point, ranks=2, inject=[fault(rank, 6, "save:" + point, "kill")], code=137)
                self.assertRegex(killed.err, rf"culprit: rank {rank} .*died .*step 6, phase save")
                visible = point == "before_latest"  # the rename is what commits
                verified = run(PROGRAM, "verify", self.folder / point)
                self.assertEqual((verified.code, "step_00000006" in verified.out), (OK, visible), verified)

                result = self.train(point, ranks=2)
                self.assertIn(f"at step {6 if visible else 4}", result.out)
                self.assertEqual("the leftover of an interrupted save" in result.err, not visible, result)
                self.assertEqual(self.checkpoints(point), ["latest"] + [f"step_{step:08}" for step in (2, 4, 6, 8)])
                self.assert_same_run(point, self.reference())

    def test_disk_failures(self):
        faults = [fault(step % 2, step, point, what) for step, (what, point) in zip((1, 2, 4, 5), DISK_FAULTS.items())]
        result = self.train("disk", ranks=2, checkpoint__every=1, inject=faults)
        self.assertEqual(len(result.ours), 4, result)
        for line, step, count in zip(result.ours, (1, 2, 4, 5), (1, 2, 1, 2)):
            self.assertRegex(line, rf"step {step} not saved: rank {step % 2} on .*\(failure {count} of 3 in a row\)")
        self.assertEqual([event["step"] for event in self.events("disk", "checkpoint_failed")], [1, 2, 4, 5])
        self.assertEqual([event["step"] for event in self.events("disk", "checkpoint")], [3, 6, 7, 8])
        self.assertEqual(self.checkpoints("disk"), ["latest"] + [f"step_{step:08}" for step in (3, 6, 7, 8)])
        self.assert_same_run("disk", self.reference())

    def test_disk_failures_in_a_row(self):
        row = [fault(1, step, "save:write", "disk_full") for step in (3, 4)]
        result = self.train("row", ranks=2, checkpoint__every=1, checkpoint__max_failures=2, inject=row, code=RETRYABLE)
        self.assertRegex(result.ours[-1], r"not saved: .*failed 2 times in a row .*the newest is of step 2")
        self.assertEqual(len(result.ours), 2, result)
        self.assertEqual([event["step"] for event in self.events("row", "checkpoint_failed")], [3, 4])
        self.assertEqual(self.checkpoints("row"), ["latest", "step_00000001", "step_00000002"])

        last = self.train("row", ranks=2, checkpoint__max_failures=2, inject=[fault(0, STEPS, "save:fsync", "fsync")])
        self.assertEqual(len(last.ours), 1, last)  # the last save is tried again
        self.assert_same_run("row", self.reference())


class Damaged(TrainTest):
    def setUp(self):
        self.run_name = self._testMethodName
        self.copy(self.reference(), self.run_name)
        self.newest = self.checkpoint(self.run_name, STEPS)

    def falls_back(self, pattern):
        """`verify` finds the damage, a resume from the checkpoint is refused, and auto takes the one before."""
        verified = run(PROGRAM, "verify", self.folder / self.run_name)
        self.assertEqual(verified.code, FAILURE, verified)
        self.assertRegex(verified.out, rf"(?m)^DAMAGED  .*step_00000008.*{pattern}")
        self.assertEqual(verified.out.count("intact  "), 3, verified)
        self.refuse(self.run_name, pattern, FAILURE, resume=self.newest)

        result = self.train(self.run_name, ranks=2)
        self.assertRegex(result.err, rf"skipping the damaged checkpoint step_00000008: .*{pattern}")
        self.assertIn("at step 6", result.out)
        self.assert_same_run(self.run_name, self.reference())
        self.assertEqual(run(PROGRAM, "verify", self.folder / self.run_name).code, OK)

    def test_flipped_bit_in_a_shard(self):
        self.flip(self.newest / "shard_1.safetensors")
        self.falls_back(r"shard_1.safetensors: damaged: tensor backbone\.\S+, .*bytes at byte \d+")

    def test_cut_shard(self):
        shard = self.newest / "shard_0.safetensors"
        shard.write_bytes(shard.read_bytes()[:-1])
        self.falls_back(r"shard_0.safetensors: has \d+ bytes, not \d+; tensor backbone\.\S+ at byte \d+ is cut")

    def test_flipped_bit_in_the_manifest(self):
        self.flip(self.newest / "manifest.json")
        self.falls_back("manifest.json")

    def test_flipped_bit_in_latest(self):
        self.train(self.run_name, ranks=2, train__steps=STEPS + 1, override="train.steps")  # so that there is a `latest`
        self.flip(self.folder / self.run_name / "checkpoints" / "latest")
        result = self.train(self.run_name, train__steps=STEPS + 1)
        self.assertEqual(len(result.ours), 1, result)
        self.assertRegex(result.ours[0], "checkpoints/latest: ")
        self.assertIn(f"the checkpoint is at step {STEPS + 1}", result.out)

    def test_all_damaged(self):
        for step in (2, 4, 6, 8):
            self.flip(self.checkpoint(self.run_name, step) / "shard_0.safetensors")
        before = self.events(self.run_name)
        for resume in ("auto", "must", self.folder / self.run_name):
            result = self.train(self.run_name, resume=resume, code=FAILURE)
            self.assertEqual(sum("skipping the damaged checkpoint" in line for line in result.ours), 4, result)
            self.assertIn("is damaged; `densemamba verify` says how", result.ours[-1])
        self.refuse(self.run_name, "has checkpoints", resume="none")
        self.assertEqual(self.events(self.run_name), before)
        shutil.rmtree(self.folder / self.run_name)


if __name__ == "__main__":
    main()
