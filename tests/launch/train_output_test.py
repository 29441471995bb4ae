#!/usr/bin/env python3
"""What a run and its neighbours write: metrics, configuration, plans and samples; and outputs that cannot be written."""

import json
import math
import os
import subprocess

from harness import FAILURE, OK, PROGRAM, SOURCE, STEPS, USAGE, TrainTest, main, run

PRESETS = sorted(path.stem for path in (SOURCE / "configs").glob("*.cfg"))


class Metrics(TrainTest):
    def test_contract(self):
        self.train("run", ranks=2, data__holdout=0.2, train__valid_every=4, train__valid_sequences=8, checkpoint__every=3)
        events = self.events("run")
        self.assertEqual([(event["event"], event["step"]) for event in events if event["event"] != "step"],
                         [("start", 0), ("checkpoint", 3), ("valid", 4), ("checkpoint", 6), ("valid", STEPS),
                          ("checkpoint", STEPS), ("end", STEPS)])
        steps = [event for event in events if event["event"] == "step"]
        self.assertEqual([event["step"] for event in steps], list(range(1, STEPS + 1)))
        for event in steps:
            self.assertEqual(event["tokens"], 8 * 32)
            self.assertAlmostEqual(event["tokens_per_second"], event["tokens"] / event["seconds"], delta=1)
            self.assertEqual(event["total_tokens"], event["step"] * 8 * 32)
            self.assertTrue(math.isfinite(event["loss"]) and event["grad_norm"] > 0 and event["lr"] > 0)
        self.assertAlmostEqual(steps[0]["loss"], math.log(257), delta=0.2)  # a fresh model knows nothing
        valid = self.events("run", "valid")
        self.assertLess(valid[1]["loss"], valid[0]["loss"])
        self.assertEqual({event["tokens"] for event in valid}, {8 * 32})
        self.assertEqual(valid[0]["unigram_loss"], valid[1]["unigram_loss"])
        self.assertLess(0, valid[0]["unigram_loss"])

        # Validation is of the same held-out text on every grid, and changes nothing in the training.
        self.train("alone", data__holdout=0.2, train__valid_sequences=8)
        self.assertEqual(self.events("alone", "valid")[0]["unigram_loss"], valid[0]["unigram_loss"])
        self.assertAlmostEqual(self.events("alone", "valid")[0]["loss"], valid[1]["loss"], delta=1e-4)
        self.assert_close_run("alone", "run")

    def test_overlap_changes_no_bit(self):
        self.train("overlap", ranks=2, parallel__overlap="true")
        self.train("no_overlap", ranks=2, parallel__overlap="false")
        self.assert_same_run("overlap", "no_overlap")

    def test_torn_line(self):
        self.train("torn", train__stop_at=2)
        path = self.folder / "torn" / "metrics.jsonl"
        path.write_bytes(path.read_bytes() + b'{"event":"step","lo')  # what a kill may leave
        self.train("torn")
        lines = path.read_text().splitlines()
        torn = [line for line in lines if not line.endswith("}")]
        self.assertEqual(torn, ['{"event":"step","lo'])
        self.assertEqual(json.loads(lines[lines.index(torn[0]) + 1])["event"], "start")

    def test_outputs_that_cannot_be_written(self):
        self.train("plain")
        with open("/dev/full", "w", encoding="ascii") as full:  # ENOSPC at every write
            command = [str(word) for word in self.command("full")]
            (self.folder / "full").mkdir()
            (self.folder / "full" / "metrics.jsonl").symlink_to("/dev/full")
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        self.assertEqual(done.returncode, OK, done.stderr)
        self.assertEqual(done.stderr.count("metrics.jsonl: a line was lost (No space left on device)"), 1, done.stderr)
        self.assertEqual(self.shards("full", STEPS), self.shards("plain", STEPS))

        reading, writing = os.pipe()
        os.close(reading)  # EPIPE at every write, as behind `| head -1`
        done = subprocess.run([str(word) for word in self.command("pipe", log__every=1)], stdout=writing, stderr=writing,
                              check=False)
        os.close(writing)
        self.assertEqual(done.returncode, OK)
        self.assert_same_run("pipe", "plain")


class Configuration(TrainTest):
    def test_printed_configuration_gives_the_same_run(self):
        self.train("given", train__steps=3)
        command = [str(word) for word in self.command("again", train__steps=3)]
        printed = run(*command, "--print-config")
        self.assertEqual((printed.code, printed.err), (OK, ""), printed)
        self.assertFalse((self.folder / "again").exists())
        config = self.folder / "printed.cfg"
        config.write_text(printed.out, encoding="utf-8")
        again = run(PROGRAM, "train", "--config", config)
        self.assertEqual(again.code, OK, again)
        self.assert_same_run("given", "again", 3)

    def test_plans(self):
        self.assertGreater(len(PRESETS), 0)
        for preset in PRESETS:
            for ranks, tensor in ((1, 1), (8, 1), (8, 2)):
                with self.subTest(f"{preset} on {ranks}/{tensor}"):
                    command = [PROGRAM, "plan", "--config", preset, "--ranks", ranks, "--parallel.tensor", tensor]
                    planned = run(*command)
                    self.assertEqual((planned.code, planned.err), (OK, ""), planned)
                    self.assertIn(f"grid     data {ranks // tensor} × tensor {tensor}\n", planned.out)
                    self.assertRegex(planned.out, r"  total +[\d.]+ MiB\n")
        refused = run(PROGRAM, "plan", "--config", PRESETS[0], "--ranks", 3, "--parallel.tensor", 2)
        self.assertEqual((refused.code, len(refused.ours)), (USAGE, 1), refused)

    def test_planned_memory_is_what_a_run_prints(self):
        trained = self.train("memory", ranks=2, tensor=2, train__steps=1).out
        command = self.command("unused", tensor=2, train__steps=1)
        planned = run(PROGRAM, "plan", "--ranks", 2, *command[command.index("train") + 1:]).out
        table = trained[trained.index("memory   of one rank:"):trained.index("run      ")]
        self.assertIn(table, planned)


class Generate(TrainTest):
    def generate(self, *arguments):
        result = run(PROGRAM, "generate", self.folder / "grid", "--tokens", 24, *arguments)
        self.assertEqual((result.code, result.ours), (OK, []), result)
        return result.out

    def test_samples_of_a_checkpoint_of_another_grid(self):
        self.train("grid", ranks=4, tensor=2, train__steps=30, checkpoint__every=0)
        one = self.generate("--prompt", "mamba", "--seed", 7)
        self.assertTrue(one.startswith("mamba"), one)
        self.assertEqual(self.generate("--prompt", "mamba", "--seed", 7), one)
        self.assertNotEqual(self.generate("--prompt", "mamba", "--seed", 8), one)
        greedy = self.generate("--prompt", "mamba", "--temperature", 0)
        self.assertEqual(self.generate("--prompt", "mamba", "--top_k", 1, "--seed", 9), greedy)
        self.assertEqual(self.generate("--prompt", "mamba", "--temperature", 0, "--seed", 5), greedy)
        self.assertGreater(len(self.generate("--temperature", 0)), 1)  # nothing but the beginning of a document
        self.assertEqual(self.generate("--prompt", "", "--temperature", 0), self.generate("--temperature", 0))

        manifest = json.loads((self.checkpoint("grid", 30) / "manifest.json").read_text())["body"]
        piece = [piece for piece in manifest["pieces"] if piece["kind"] == "value"][-1]
        self.flip(self.checkpoint("grid", 30) / manifest["files"][piece["file"]]["name"], piece["offset"])
        for names, code, pattern in ((["grid"], FAILURE, "damaged: tensor"), (["nothing"], USAGE, "nothing"), ([], USAGE, "name a")):
            refused = run(PROGRAM, "generate", *(self.folder / name for name in names))
            self.assertEqual((refused.code, len(refused.ours)), (code, 1), refused)
            self.assertRegex(refused.ours[0], pattern)


if __name__ == "__main__":
    main()
