"""What the tests of training on GPUs share: a model of aligned widths, curves, and how far two of them may be apart."""

from harness import TrainTest

# Largest relative difference of two losses of the same step. float32: the order of sums, enlarged by the steps between.
# bfloat16: 8 bits of every activation and matrix, which a loss averages over; a wrong sum is off by tens of per cent.
F32_CURVE, BF16_CURVE = 1e-4, 1e-2


class GpuTest(TrainTest):
    """Runs compute on GPUs unless told otherwise, in bfloat16 unless told otherwise."""

    def command(self, run_name, **options):
        defaults = {"run__device": "cuda", "model__d_model": 128, "train__sequence": 128}
        return super().command(run_name, **{**defaults, **options})

    def assert_same_curve(self, one, other, bound):
        """Both runs took the same steps, with losses that differ relatively by no more than `bound`."""
        first, second = self.trace(one), self.trace(other)
        self.assertEqual(first.keys(), second.keys())
        worst, at = max((abs(first[step][0] / second[step][0] - 1), step) for step in first)
        norm = max(abs(first[step][1] / second[step][1] - 1) for step in first)
        print(f"{self.id()}: {one} and {other}: losses differ by {worst:.1e} of {bound:.0e} (step {at}), norms by {norm:.1e}")
        self.assertLess(worst, bound, f"step {at} of {one} and {other}")
