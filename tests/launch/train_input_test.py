#!/usr/bin/env python3
"""What a user may give a run that cannot work: one clear line and the documented exit code; and damaged data."""

import os
import struct

from harness import FAILURE, USAGE, TrainTest, fault, main, ranks_of


def zstd_frame(text, good=True):
    """A zstd frame (RFC 8878) of one raw block; the damaged one has the reserved block type."""
    data = text.encode()
    block = 1 | (0 if good else 3) << 1 | len(data) << 3
    return struct.pack("<IBI", 0xFD2FB528, 0b10100000, len(data)) + struct.pack("<I", block)[:3] + data


class BadInput(TrainTest):
    def test_data_files(self):
        empty = self.folder / "empty.jsonl"
        empty.touch()
        blank = self.folder / "blank.jsonl"
        blank.write_text("\n\n")
        text = self.folder / "text.jsonl"
        text.write_text("no JSON\n")
        for data, pattern, code in (("", "no training data; name .* with --data.train", USAGE),
                                    (self.folder / "nothing*.jsonl", r"no file matches .*nothing\*.jsonl", USAGE),
                                    (self.folder, "is not a regular file", USAGE),
                                    (empty, "empty.jsonl is empty", USAGE),
                                    (blank, "there is no document to use in .*blank.jsonl", FAILURE),
                                    (text, r"text.jsonl, line 1 \(byte 0\): .*set (--data\.)?on_error to skip", FAILURE)):
            with self.subTest(str(data)):
                self.refuse("bad data", pattern, code, data__train=data)
        self.refuse("bad data", "no file matches", ranks=2, data__train=self.folder / "nothing")
        self.refuse("bad data", r"text.jsonl, line 1 \(byte 0\)", FAILURE, ranks=4, tensor=2, data__train=text)

    def test_validation_data(self):
        self.refuse("valid", "validation file a.jsonl has the content of training file a.jsonl", data__valid=self.data)
        self.refuse("valid", "--data.valid and --data.holdout exclude each other", data__valid=self.data, data__holdout=0.1)
        self.refuse("valid", "fewer than 100000 sequences of 32 tokens; lower --train.valid_sequences", data__holdout=0.1,
                    train__valid_sequences=100000)
        self.refuse("valid", "--train.valid_sequences 3 does not divide over 2 data ranks", ranks=2, data__holdout=0.1,
                    train__valid_sequences=3)
        self.assertEqual(self.events("valid"), [])  # all of it before the first step
        self.train("valid", train__valid_sequences=3, train__steps=1)  # which nobody reads

    def test_options(self):
        for options, pattern in (({"train__batsh": 8}, "unknown option '--train.batsh'; did you mean '--train.batch'"),
                                 ({"train__batch": "x"}, "train.batch"),
                                 ({"config": "no-such.cfg"}, "no-such"),
                                 ({"data__tokenizer": self.folder / "no.model"}, "no.model"),
                                 ({"model__dense_depth": 9}, "--model.dense_depth is 9"),
                                 ({"inject": "rank=0"}, "--inject")):
            with self.subTest(str(options)):
                code = FAILURE if "data__tokenizer" in options else USAGE
                self.refuse("bad options", pattern, code, **options)
        self.refuse("bad options", "unknown option '--train.batsh'", ranks=2, train__batsh=8)
        self.assertFalse((self.folder / "bad options").exists())

    def test_grids(self):
        self.refuse("grid", r"3 ranks do not divide into tensor groups of 2", ranks=3, tensor=2)
        self.refuse("grid", r"\[124, 31\] does not divide over 4 tensor ranks; change --parallel.tensor", ranks=4, tensor=4,
                    model__d_model=31)
        self.refuse("grid", "--train.batch 7 does not divide over 2 data ranks", ranks=2, train__batch=7)
        self.refuse("grid", "8 sequences a step do not divide into micro-batches of 3", train__micro_batch=3)

    def test_run_directories(self):
        self.refuse("unused", "cannot make /dev/null/x/checkpoints: Not a directory; choose another --run.dir",
                    run__dir="/dev/null/x")
        busy = self.start("busy", ranks=2, inject=[fault(0, 2, "forward", "hang")])
        self.wait_for_step(busy)
        holder = ranks_of(busy)
        self.refuse("busy", rf"busy is in use by process {min(holder)} on ", FAILURE)
        self.assertIsNone(busy.poll())  # the first job does not notice
        for pid in holder:
            os.kill(pid, 9)
        self.finish(busy)
        self.train("busy", ranks=2)


class DamagedData(TrainTest):
    """Three frames of documents; in the middle one is damage."""

    def setUp(self):
        lines = self.data.read_text(encoding="utf-8").splitlines(keepends=True)
        self.frames = ["".join(lines[:30]), "".join(lines[30:60]), "".join(lines[60:90])]
        self.path = self.folder / f"{self._testMethodName}.jsonl.zst"

    def skips_the_same_everywhere(self, counts, sentence):
        """With on_error skip every grid reads the same, tells it once, and keeps the counts in the checkpoint."""
        for ranks, tensor in ((0, 1), (2, 1), (4, 2)):
            name = f"{self._testMethodName} {ranks}"
            result = self.train(name, ranks=ranks, tensor=tensor, data__train=self.path, data__on_error="skip", train__steps=18)
            self.assertEqual(sum(sentence in line for line in result.ours), 1, result)
            state = self.record(name, 18)["data_state"]
            self.assertEqual((state["skipped_lines"], state["skipped_frames"]), counts)
            self.assert_close_run(name, f"{self._testMethodName} 0", 18)
        # A resume behind the damage does not count it again.
        self.copy(name, "resumed " + name, step=16)
        again = self.train("resumed " + name, data__train=self.path, data__on_error="skip", train__steps=18)
        self.assertEqual(again.ours, [], again)
        self.assert_close_run("resumed " + name, name, 18)

    def test_damaged_frame(self):
        first, second, third = self.frames
        self.path.write_bytes(zstd_frame(first) + zstd_frame(second, good=False) + zstd_frame(third))
        self.refuse("frame", rf"test_damaged_frame.jsonl.zst, frame 2, line 31 \(byte {len(first.encode())} of the "
                    r"decompressed stream\): the frame is damaged", FAILURE, ranks=2, data__train=self.path, train__steps=50)
        self.skips_the_same_everywhere((0, 1), "frame 2, line 31")

    def test_bad_line(self):
        first, second, third = self.frames
        self.path.write_bytes(zstd_frame(first) + zstd_frame('{"text": 5}\n' + second) + zstd_frame(third))
        self.refuse("line", r"test_bad_line.jsonl.zst, frame 2, line 31 ", FAILURE, ranks=2, data__train=self.path,
                    train__steps=50)
        self.skips_the_same_everywhere((1, 0), "line 31")


if __name__ == "__main__":
    main()
