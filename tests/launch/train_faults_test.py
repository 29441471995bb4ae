#!/usr/bin/env python3
"""Ranks that die, hang or compute NaN: the job ends with the culprit named or goes on, and a relaunch takes the same path."""

from harness import FAILURE, RETRYABLE, STEPS, TrainTest, fault, main

KILLED = 128 + 9  # mpirun gives the exit code of the process that died first


class RankFaults(TrainTest):
    def relaunch(self, run_name, ranks=2):
        """Goes on after a fault, and ends as if nothing had happened."""
        result = self.train(run_name, ranks=ranks)
        self.assert_same_run(run_name, self.reference())
        return result

    def test_killed_in_a_step(self):
        result = self.train("killed", ranks=2, inject=[fault(1, 5, "backward", "kill")], code=KILLED)
        self.assertRegex(result.err, r"culprit: rank 1 .* died .*collective \d+ \(.*bytes\), step 5, phase backward")
        self.assertEqual(result.err.count("culprit:"), 1, result)
        self.assertEqual(self.checkpoints("killed"), ["latest", "step_00000002", "step_00000004"])
        self.assertIn("which is gone", self.relaunch("killed").err)  # the lock of the job that died

    def test_hangs(self):
        result = self.train("hanging", ranks=2, parallel__watchdog_seconds=3, code=RETRYABLE,
                            inject=[fault(1, 3, "forward", "hang")])
        self.assertRegex(result.err, r"culprit: rank 1 .* never entered collective \d+ .* step 3, phase forward")
        self.assertRegex(result.err, r"(?m)^ +0 .*inside for")
        self.assertRegex(result.err, r"(?m)^ +1 .*outside for")
        self.assertEqual(result.err.count("culprit:"), 1, result)
        self.relaunch("hanging")

    def test_one_rank_fails(self):
        result = self.refuse("failing", "rank 1 of 2 on .*: injected error at reduce of step 3", RETRYABLE, ranks=2,
                             inject=[fault(1, 3, "reduce", "error")])
        self.assertNotIn("culprit:", result.err)
        self.relaunch("failing")

    def test_not_a_number(self):
        result = self.train("nan", ranks=4, tensor=2, train__nonfinite_budget=2, checkpoint__every=3,
                            inject=[fault(3, 3, "gradient", "nan"), fault(0, 4, "gradient", "nan")])
        self.assertEqual([line.split(": ", 2)[1] for line in result.ours], ["rank 0 of 4 on " + self.host()] * 2, result)
        self.assertIn("step 3: ", result.ours[0])
        self.assertIn("(2 of 2 allowed)", result.ours[1])
        steps = self.events("nan", "step")
        self.assertEqual([event["step"] for event in steps if not event["updated"]], [3, 4])
        self.assertIsNone(steps[2]["grad_norm"])
        self.assertEqual((self.record("nan", STEPS)["updates"], self.record("nan", STEPS)["nonfinite_steps"]), (STEPS - 2, 2))
        # The data went on all the same, and nothing of the poisoned gradient is left.
        self.assertEqual(self.record("nan", STEPS)["data_state"], self.record(self.reference(), STEPS)["data_state"])
        self.assertLess(steps[-1]["loss"], steps[0]["loss"] - 0.2)

        # What was skipped stays counted over a resume.
        self.refuse("nan", r"more than --train.nonfinite_budget 2 updates were skipped", FAILURE, ranks=2,
                    train__steps=STEPS + 4, override="train.steps", train__nonfinite_budget=2,
                    inject=[fault(1, STEPS + 1, "gradient", "nan")])

    def host(self):
        with open("/proc/sys/kernel/hostname", encoding="ascii") as file:
            return file.read().strip()


if __name__ == "__main__":
    main()
