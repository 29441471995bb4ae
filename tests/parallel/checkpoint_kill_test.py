#!/usr/bin/env python3
"""Kills one of two ranks at each point of a save: the job ends, the checkpoint before is intact, the next save works."""
import os
import subprocess
import sys
import tempfile

PROGRAM = os.path.join(os.environ["BUILD_DIR"], "checkpoint_mpi_test")
MPIRUN = ["mpirun", "--oversubscribe", "-n", "2"]
POINTS = ["before_files", "half_shard", "after_shards", "before_rename", "before_latest"]


def run(test, directory, injection=""):
    """One job of the test program's hidden tests; returns (exit status, output)."""
    environment = dict(os.environ, CHECKPOINT_DIRECTORY=directory, CHECKPOINT_INJECT=injection)
    command = MPIRUN + [PROGRAM, "--gtest_also_run_disabled_tests", f"--gtest_filter=KilledSave.DISABLED_{test}"]
    job = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    return job.returncode, job.stdout


def main():
    with tempfile.TemporaryDirectory(prefix="densemamba.") as parent:
        for point in POINTS:
            for rank in range(2):
                directory = os.path.join(parent, f"{point}.{rank}")
                os.mkdir(directory)
                status, output = run("Save", directory, f"rank={rank},step=2,point=save:{point},fault=kill")
                if status == 0 or "signal 9" not in output:
                    print(f"FAILED: rank {rank} was not killed at save:{point}\n{output}")
                    return 1
        status, output = run("CheckAndSaveAgain", parent)
        if status != 0 or "PASSED" not in output:
            print(f"FAILED: after the kills\n{output}")
            return 1
    print(f"ok: {2 * len(POINTS)} kills, nothing lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
