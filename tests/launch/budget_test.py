#!/usr/bin/env python3
"""launch/budget.py finds a time for every op of a step, for plain and dense models and every level of recomputation."""

import re
import subprocess
import unittest

from harness import PROGRAM, SOURCE

TINY = ("--model.layers 3 --model.d_model 16 --model.vocabulary 130 --batch 4 --seq 24 --train.micro_batch 2 "
        "--train.loss_chunk 8").split()


class Budget(unittest.TestCase):
    def table(self, *options):
        done = subprocess.run([SOURCE / "launch" / "budget.py", "--program", PROGRAM, "--device", "cpu", "--repeats", "2", *TINY,
                               *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = {cells[0]: cells[1:] for line in done.stdout.splitlines() if len(cells := re.split(r"\s*\|\s*", line.strip("| "))) > 2}
        self.assertIn("unexplained", rows)
        return {op: float(cells[0]) for op, cells in rows.items() if cells[0][:1].isdigit()}

    def test_plain(self):
        calls = self.table("--model.dense_depth", "0")
        self.assertEqual(calls["scan forward, 0 sources"], 6)  # 3 layers, 2 micro-batches
        self.assertEqual(calls["rmsnorm forward"], 8)
        self.assertEqual(calls["head forward"], 12)  # 48 tokens in chunks of 8, twice
        self.assertEqual(calls["adamw"], 1)
        self.assertEqual(self.table("--model.dense_depth", "0", "--train.recompute", "selective")["dt_proj forward"], 12)

    def test_dense(self):
        calls = self.table("--model.dense_depth", "2", "--train.recompute", "block", "--seconds", "0.02")
        self.assertEqual([calls[f"scan backward, {sources} sources"] for sources in range(3)], [2, 2, 2])
        self.assertEqual(calls["in_proj whole forward"], 12)
        self.assertEqual(calls["gate fc1 backward weight"], 4)

    def test_refusals(self):
        for options, words in ((["--program", "/nowhere"], "is no program"), ([], "--batch")):
            done = subprocess.run([SOURCE / "launch" / "budget.py", "--program", PROGRAM, "--device", "cpu", *options, "--batch", "0"],
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(words, done.stderr)


if __name__ == "__main__":
    unittest.main()
