#!/usr/bin/env python3
"""Kills one of two ranks at each point of a save: the job ends, the checkpoint before is intact, the next save works."""
import os
import shutil
import subprocess
import sys
import tempfile

PROGRAM = os.path.join(os.environ["BUILD_DIR"], "checkpoint_mpi_test")
MPIRUN = [os.environ.get("MPIRUN", "mpirun"), "--oversubscribe", "-n", "2"]
POINTS = ["before_files", "half_shard", "after_shards", "before_rename", "before_latest"]


def run(test, directory, injection=""):
    """One job of the test program's hidden tests; returns (exit status, output)."""
    environment = dict(os.environ, CHECKPOINT_DIRECTORY=directory, CHECKPOINT_INJECT=injection)
    command = MPIRUN + [PROGRAM, "--gtest_also_run_disabled_tests", f"--gtest_filter=KilledSave.DISABLED_{test}"]
    job = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    return job.returncode, job.stdout


def main():
    failures = 0
    for point in POINTS:
        for rank in range(2):
            directory = tempfile.mkdtemp(prefix="densemamba.")
            try:
                status, output = run("Save", directory, f"rank={rank},step=2,point=save:{point},fault=kill")
                killed = status != 0 and "signal 9" in output
                status, check = run("CheckAndSaveAgain", directory)
                if killed and status == 0 and "1 test" in check:
                    print(f"ok: rank {rank} killed at save:{point}")
                else:
                    failures += 1
                    print(f"FAILED: rank {rank} at save:{point}\n{output}\n{check}")
            finally:
                shutil.rmtree(directory)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
