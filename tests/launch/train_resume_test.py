#!/usr/bin/env python3
"""Going on from a checkpoint: to the last bit on the same grid, on the same tokens on any, and never on something else."""

import shutil

from harness import (FAILURE, OK, PROGRAM, SIGTERM, SIGUSR1, STEPS, USAGE, TrainTest, fault, main, ranks_of, run, send,
                     write_corpus)


class SameGrid(TrainTest):
    def test_stopped_and_resumed_is_the_same_to_the_last_bit(self):
        for name, grid in {"data": {"ranks": 2}, "data and tensor": {"ranks": 4, "tensor": 2}}.items():
            with self.subTest(name):
                self.train(f"{name} straight", **grid)
                first = self.train(f"{name} parts", **grid, train__stop_at=3)
                self.assertNotIn("resume ", first.out)
                second = self.train(f"{name} parts", **grid, resume="must")
                self.assertIn("at step 3", second.out)
                self.assert_same_run(f"{name} straight", f"{name} parts")

        again = self.train("data parts", ranks=2)
        self.assertIn(f"nothing to do: the checkpoint is at step {STEPS}", again.out)
        self.assert_same_run("data straight", "data parts")

    def test_signals_save_and_resume_identically(self):
        endless = {"ranks": 2, "train__steps": 100000, "checkpoint__every": 0, "log__every": 100000}
        job = self.start("signals", **endless)
        self.wait_for_step(job)
        send(job.pid, SIGUSR1)  # which mpirun passes on to all ranks
        result = self.finish(job)
        self.assertEqual(result.code, OK, result)
        self.assertIn("signal 10 received", result.out)
        stops = [self.events("signals")[-1]["step"]]

        job = self.start("signals", **endless, resume="must")
        self.wait_for_step(job)
        send(ranks_of(job)[-1], SIGTERM)  # to one rank alone
        result = self.finish(job)
        self.assertEqual(result.code, OK, result)
        stops.append(self.events("signals")[-1]["step"])
        self.assertEqual(self.checkpoints("signals"), ["latest"] + [f"step_{step:08}" for step in stops])

        last = stops[-1] + 2
        self.train("signals", **endless, train__stop_at=last)
        self.train("undisturbed", **endless, train__stop_at=last)
        self.assert_same_run("signals", "undisturbed", last)

    def test_second_signal_ends_at_once(self):
        job = self.start("impatient", ranks=0, log__every=1, inject=[fault(0, 2, "forward", "hang")])
        self.wait_for_step(job)
        send(job.pid, SIGUSR1)
        send(job.pid, SIGTERM)
        result = self.finish(job)
        self.assertIn(result.code, (128 + SIGUSR1, 128 + SIGTERM), result)


class OtherGrid(TrainTest):
    def test_same_tokens_on_any_grid(self):
        self.train("hops", ranks=4, tensor=2, train__stop_at=2)
        self.train("hops", train__stop_at=4, train__micro_batch=8)
        self.train("hops", ranks=4, train__stop_at=5, train__micro_batch=1)
        self.train("hops", ranks=4, tensor=4, train__stop_at=7, train__micro_batch=4)
        self.train("hops", ranks=4, tensor=2)
        self.assert_close_run("hops", self.reference())


class Refusals(TrainTest):
    def setUp(self):
        self.run_name = self._testMethodName
        self.copy(self.reference(), self.run_name, step=4)

    def refuse_here(self, pattern, code=USAGE, **options):
        """Refused, and nothing in the run has changed."""
        before = self.checkpoints(self.run_name), self.events(self.run_name)
        self.refuse(self.run_name, pattern, code, **options)
        self.assertEqual((self.checkpoints(self.run_name), self.events(self.run_name)), before)

    def test_other_options(self):
        self.refuse_here(r"of another model \(model.layers: 3 → 2\); give the same", model__layers=2, ranks=2)
        self.refuse_here(r"of another model \(model.dense_depth: 2 → 0\)", model__dense_depth=0)
        self.refuse_here(r"optimizer.lr: 0.003 → 0.001.*--override KEY", optimizer__lr=1e-3)
        self.refuse_here(r"\(train.batch: 8 → 4; train.steps: 8 → 6\)", train__batch=4, train__steps=6,
                         override="optimizer.lr")
        self.refuse_here(r"--override optimizer.lrr: .*did you mean optimizer.lr\?", override="optimizer.lrr")
        self.refuse_here(r"--override train.micro_batch: not a key that needs it", override="train.micro_batch")

        allowed = self.train(self.run_name, train__steps=6, override="train.steps", checkpoint__every=1,
                             data__threads=2, train__recompute="block", log__every=2)
        for change in ("train.steps: 8 → 6", "checkpoint.every: 2 → 1", "train.recompute: none → block"):
            self.assertIn("changed  " + change, allowed.out)
        self.assertEqual(self.events(self.run_name)[-1]["step"], 6)

    def test_other_data(self):
        other = write_corpus(self.folder / "other.jsonl", seed=2)
        self.refuse_here("trained on other data: data file a.jsonl .* is missing", data__train=other)
        self.refuse_here("trained on other data: data file other.jsonl .* is new", data__train=f"{self.data},{other}")

        replaced = self.folder / "elsewhere" / "a.jsonl"
        replaced.parent.mkdir()
        shutil.copy(self.data, replaced)
        self.train(self.run_name, data__train=replaced, train__stop_at=5)  # a moved file is the same file
        replaced.write_text(self.data.read_text().replace("mamba", "snake", 1))
        self.refuse_here("data file a.jsonl .* was replaced", data__train=replaced)

        self.train("two files", data__train=f"{self.data},{other}", train__stop_at=1)
        self.refuse("two files", "the data files are in another order: place 1 was a.jsonl",
                    data__train=f"{other},{self.data}")

    def test_other_tokenizer(self):
        self.refuse_here("of another model .model.vocabulary: 257 → 300", model__vocabulary=300)
        self.refuse_here("--model.vocabulary 100 is smaller than the tokenizer's 257", model__vocabulary=100)
        models = []
        for seed in (1, 3):
            text = write_corpus(self.folder / f"{seed}.jsonl", seed=seed)
            models.append(self.folder / f"{seed}.model")
            made = run(PROGRAM, "tokenizer", "train", "--input", text, "--vocabulary", 290, "--output", models[-1])
            self.assertEqual(made.code, OK, made)
        self.train("tokens", data__tokenizer=models[0], train__stop_at=1)
        self.refuse("tokens", "trained on other data: the tokenizer is another one", data__tokenizer=models[1])

    def test_what_to_resume(self):
        own, newest = self.folder / self.run_name, self.checkpoint(self.run_name, 4)
        self.refuse_here("has checkpoints; go on from them", resume="none")
        self.refuse_here("there is no such directory", resume=self.folder / "nothing")
        self.refuse_here("goes on from step_00000004", resume=self.checkpoint(self.run_name, 2))
        self.refuse_here("goes on from step_00000004", resume=self.checkpoint(self.reference(), 4))
        self.refuse("empty", "--resume must: .* has no checkpoint", resume="must")
        self.refuse("empty", "manifest.json", FAILURE, resume=self.folder)

        self.train("fork", resume=self.checkpoint(self.run_name, 2), ranks=2)  # in a run directory of its own: a new run
        self.train(self.run_name, resume=newest, ranks=2, train__stop_at=6)
        self.train(self.run_name, resume=own, ranks=2)
        self.assert_same_run(self.run_name, self.reference())
        self.assertEqual(self.shards("fork", STEPS), self.shards(self.reference(), STEPS))


if __name__ == "__main__":
    main()
