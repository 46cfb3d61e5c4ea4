"""Small checkpoints written by TensorFlow itself, to hold our reader of its files against.

Run as a script where TensorFlow is installed (2.21 wrote the files that are committed):

    python tests/golden/slices/tensor_bundles.py

`values.npz` holds what was written. `one`: a TF1 Saver's checkpoint of a network of the projection head's and
classifier's names, with its graph (`.meta`) and an optimizer's slots. `three`: three data files and many types.
`parts`: a partitioned variable.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np

OUT = Path(__file__).resolve().parents[1] / "checkpoints" / "tensorflow_written"


def one(tf, values: dict[str, np.ndarray]) -> None:
    """Classifier on the first of two layers of a head, trained for two steps with momentum."""
    with tf.Graph().as_default():
        x = tf.constant(np.random.default_rng(0).standard_normal((4, 6, 6, 3)).astype(np.float32))
        with tf.variable_scope("base_model"):
            h = tf.reduce_mean(tf.nn.relu(convolution(tf, "conv2d", x, 4)), [1, 2], name="final_avg_pool")
        z = h
        with tf.variable_scope("head_contrastive"):
            z = first = tf.nn.relu(dense(tf, "nl_0/dense", z, 4))
            z = dense(tf, "nl_1/dense", z, 2)
        with tf.variable_scope("head_supervised/linear_layer"):
            logits = dense(tf, "dense", first, 5)
        step = tf.train.get_or_create_global_step()
        loss = tf.reduce_mean(logits**2) + tf.reduce_mean(z**2)
        train = tf.train.MomentumOptimizer(0.1, 0.9).minimize(loss, step)
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            session.run(train)
            session.run(train)
            tf.train.Saver().save(session, "one/model.ckpt", global_step=step)
            values |= {f"one/{v.op.name}": session.run(v) for v in tf.global_variables()}


def dense(tf, name: str, x, units: int):
    with tf.variable_scope(name):
        return tf.matmul(x, tf.get_variable("kernel", [x.shape[1], units]), name="MatMul")


def convolution(tf, name: str, x, filters: int):
    with tf.variable_scope(name):
        return tf.nn.conv2d(x, tf.get_variable("kernel", [3, 3, 3, filters]), 1, "SAME", name="Conv2D")


def three(tf, values: dict[str, np.ndarray]) -> None:
    """Three data files; every type that the reader knows."""
    rng = np.random.default_rng(1)
    tensors = {f"layer_{i}/kernel": rng.standard_normal((3, i + 1)).astype(np.float32) for i in range(30)}
    for name in ("float16", "float64", "int8", "int16", "int32", "int64", "uint8", "uint32", "uint64"):
        tensors[f"types/{name}"] = (100 * rng.random((2, 3))).astype(name)
    tensors |= {
        "types/bool": np.array([True, False]),
        "types/scalar": np.float32(0.5),
        "types/empty": np.zeros((0, 3), "f4"),
    }
    wide = rng.standard_normal(7).astype(np.float32)
    names, parts = sorted(tensors), []
    Path("three").mkdir(exist_ok=True)
    for shard in range(3):
        part = f"three/part_{shard}"
        these = {name: tf.constant(tensors[name]) for name in names[shard::3]}
        if shard == 0:
            these |= {"types/bfloat16": tf.cast(wide, tf.bfloat16), "text": tf.constant(b"\x00text\xff" * 40)}
        tf.raw_ops.SaveV2(
            prefix=part, tensor_names=list(these), shape_and_slices=[""] * len(these), tensors=list(these.values())
        )
        parts.append(part)
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix="three/all", delete_old_dirs=False)
    tensors["types/bfloat16"] = tf.cast(tf.cast(wide, tf.bfloat16), tf.float32).numpy()
    values |= {f"three/{name}": np.asarray(value) for name, value in tensors.items()}


def parts(tf) -> None:
    """A variable saved in two slices."""
    with tf.Graph().as_default():
        tf.get_variable("kernel", [6, 2], partitioner=tf.fixed_size_partitioner(2))
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            tf.train.Saver().save(session, "parts/model.ckpt", write_meta_graph=False)


def main() -> None:
    """Write the files."""
    import tensorflow
    import tensorflow.compat.v1 as v1

    values: dict[str, np.ndarray] = {}
    OUT.mkdir(parents=True, exist_ok=True)
    os.chdir(OUT)  # TensorFlow writes paths into the files as they are given
    three(tensorflow, values)
    v1.disable_resource_variables()
    one(v1, values)
    parts(v1)
    np.savez_compressed("values.npz", **values)


if __name__ == "__main__":
    sys.exit(main())
