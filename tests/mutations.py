"""One small error for each row of docs/fidelity.md: does the row's test see it?

`python docs/make_fidelity.py --mutations` makes each in a copy of the package, runs the row's tests against the copy
and keeps what they said. tests/docs/test_fidelity.py sees to it that every row has one and that it still applies.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutation:
    """Replace `old`, which occurs once in the file of the package, by `new`; `what` says what becomes wrong."""

    file: str
    old: str
    new: str
    what: str

    def mutated(self, text: str) -> str:
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file} holds {text.count(self.old)} times, not once: {self.old}")
        return text.replace(self.old, self.new)


MUTATIONS: dict[str, Mutation] = {
    "Crop boxes (distribution)": Mutation(
        "views/boxes.py",
        "shortest + np.floor(draws[..., 1] * (tallest - shortest + 1))",
        "np.floor(np.sqrt(shortest**2 + draws[..., 1] * (tallest**2 - shortest**2)))",
        "the area is uniform, not the height",
    ),
    "Crop and bicubic resize, TF2": Mutation(
        "views/resample.py", '-0.75 if resample == "tf1" else -0.5', "-0.75", "torch's cubic kernel, a = -0.75"
    ),
    "Crop and bicubic resize, TF1": Mutation(
        "views/resample.py", 'shift = 0.0 if resample == "tf1" else 0.5', "shift = 0.5", "half-pixel centres"
    ),
    "Training view, every draw given": Mutation(
        "views/images.py", "lambda part: part.flip(3)", "lambda part: part.flip(2)", "flips upside down"
    ),
    "Test-time view": Mutation(
        "views/resample.py",
        "return (height - int(tall) + 1) // 2,",
        "return (height - int(tall)) // 2,",
        "the central box's offset rounds down",
    ),
    "Colour operators": Mutation(
        "views/color.py",
        "pivot = x.mean((2, 3), keepdim=True)",
        "pivot = x.mean((1, 2, 3), keepdim=True)",
        "contrast about one mean for all channels",
    ),
    "Colour jitter, both brightness rules": Mutation(
        "views/color.py",
        "        x = x.clamp_(0, 1)\n    return x\n",
        "    return x.clamp_(0, 1)\n",
        "clips once at the end, not after each operator",
    ),
    "Gaussian blur": Mutation(
        "views/blur.py",
        'mode = "constant" if padding == "zero" else "reflect"',
        'mode = "replicate"',
        "borders continued instead of zero",
    ),
    "ResNet, head, classifier: float64": Mutation(
        "encoders/resnet.py",
        "F.max_pool2d(x, 3, 2, padding=odd, ceil_mode=True)",
        "F.max_pool2d(x, 3, 2, padding=1)",
        "max-pooling padded on all sides, as torchvision's",
    ),
    "ResNet, head, classifier: float32 inference": Mutation(
        "distributed.py", "eps: float = 1e-5,", "eps: float = 1e-3,", "batch norm with Keras' default eps of 1e-3"
    ),
    "ResNet, head, classifier: float32 training": Mutation(
        "distributed.py", "if not self.training:", "if True:", "training normalises by the running averages"
    ),
    "Moving averages after a step": Mutation(
        "distributed.py",
        "(variance * correction if unbiased else variance)",
        "(variance * correction)",
        "the average of the unbiased variance, as torch's",
    ),
    "NT-Xent: value": Mutation(
        "losses/nt_xent.py", 'return loss if scale == "mean_2n" else 2 * loss', "return loss", "the paper's scale"
    ),
    "NT-Xent: gradient": Mutation(
        "losses/nt_xent.py",
        "return z * torch.rsqrt(z.square()",
        "return z * torch.rsqrt(z.detach().square()",
        "no gradient through the norm",
    ),
    "NT-Xent: gradient in float64": Mutation(
        "losses/blocks.py",
        "p.diagonal(k).sub_(2 * grad)",
        "p.diagonal(k).sub_(grad)",
        "the backward pass pulls an anchor to its partner but not the partner to it",
    ),
    "NT-Xent: logits": Mutation(
        "losses/diagnostics.py", "return a @ b.T / temperature", "return a @ b.T", "no temperature"
    ),
    "Contrastive accuracy and entropy": Mutation(
        "losses/diagnostics.py",
        "-(log_p.exp() * log_p).sum(1)",
        "-log_p.mean(1)",
        "entropy against the uniform distribution",
    ),
    "NT-Xent over replicas: value": Mutation(
        "losses/nt_xent.py", " + len(z) * rank()  # [2n]", "  # [2n]", "every rank takes rank 0's rows for its own"
    ),
    "NT-Xent over replicas: gradients": Mutation(
        "distributed.py",
        "dist.all_reduce(grad)\n        return grad.narrow(",
        "return grad.narrow(",
        "a gather that loses the other ranks' gradients",
    ),
    "LARS, every variant": Mutation(
        "optim/lars.py",
        'group["eta"] * p / s, 1.0)',
        'group["eta"] * p / s, group["eta"])',
        "a tensor of zeros takes steps of eta * lr, not lr",
    ),
    "Learning rate and step counts": Mutation(
        "optim/schedules.py",
        "0.5 * (1 + math.cos(math.pi * progress))",
        "(1 - progress)",
        "a line in place of the cosine",
    ),
    "Distillation": Mutation(
        "losses/distillation.py", "loss = loss * temperature**2", "loss = loss * temperature", "tau, not tau squared"
    ),
    "Training step: pretraining with LARS": Mutation(
        "evaluation/monitors.py",
        "loss = loss + self.rule.decay(self.classifier)",
        "pass",
        "the classifier does not decay",
    ),
    "Training step: fine-tuning with momentum": Mutation(
        "optim/lars.py",
        'torch._foreach_add(steps, velocity, alpha=momentum) if group["nesterov"] else velocity',
        "velocity",
        "momentum does not look ahead",
    ),
    "Training step: linear evaluation": Mutation(
        "optim/groups.py", "return weight_decay / 2 *", "return weight_decay *", "the classifier decays twice as fast"
    ),
    "Converted checkpoints": Mutation(
        "encoders/reference_names.py",
        "tensor.permute(3, 2, 0, 1)",
        "tensor.permute(3, 2, 1, 0)",
        "kernels transposed in space",
    ),
    "MoCo: steps, gradients, queue": Mutation(
        "methods/moco.py",
        "keys = keys[order.argsort()]",
        "keys = keys[order]",
        "keys are shuffled again, not back",
    ),
    "MoCo: the key encoder's average": Mutation(
        "methods/moco.py",
        "get_ema_multi_avg_fn(self.momentum)(",
        "get_ema_multi_avg_fn(1 - self.momentum)(",
        "m and 1 - m change places",
    ),
    "MoCo: learning rates": Mutation(
        "optim/other_schedules.py", "+ self.first_epoch", "+ 1", "the first epoch counts as the second"
    ),
    "Speech: contrastive loss": Mutation(
        "losses/nt_xent.py",
        'logits.scatter(1, own[:, None], float("-inf"))',
        "logits",
        "an anchor is a candidate of its own",
    ),
    "Speech: reconstruction and total loss": Mutation(
        "losses/reconstruction.py",
        "hidden = hidden & valid[:, :, None]",
        "hidden = hidden & valid.any()",
        "what lies beyond the length counts",
    ),
    "Speech: encoder, pooling and heads": Mutation(
        "encoders/audio/transformer.py", 'nn.GELU("tanh")', "nn.GELU()", "the exact GELU, not its approximation"
    ),
}


@contextmanager
def mutated_package(file: str, change: Callable[[str], str]) -> Iterator[dict[str, str]]:
    """A copy of the package of which one file is changed; yields the environment in which tests import the copy."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "twofold"
        shutil.copytree(ROOT / "src" / "twofold", package)  # with what is compiled, which starts faster
        path = package / file
        path.write_text(change(path.read_text()))
        # (a wide terminal, so that pytest's summary does not cut what a test said)
        environment = os.environ | {"PYTHONPATH": folder, "OMP_NUM_THREADS": "1", "COLUMNS": "400"}
        environment |= {"TWOFOLD_GOLDEN": "none"}  # slices are enough to notice
        environment.pop("TWOFOLD_FIDELITY", None)
        yield environment


def outcome(component: str, tests: list[str]) -> dict[str, str]:
    """Make the row's error in a copy of the package and run the row's tests on it; what failed first and how.

    `said` is empty where no test failed in the row's own comparison: the row would not have noticed.
    """
    mutation = MUTATIONS[component]
    with mutated_package(mutation.file, mutation.mutated) as environment:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb=no", "-rf", *tests]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    summary = rf"^FAILED (tests/.*?) - AssertionError: {re.escape(component)}, ?(.*)$"
    failed = re.findall(summary, result.stdout, re.MULTILINE)
    if not failed:
        print(result.stdout[-3000:], file=sys.stderr)
    test, said = failed[0] if failed else ("", "")
    return {"file": mutation.file, "what": mutation.what, "test": test.split("[")[0], "said": said}
