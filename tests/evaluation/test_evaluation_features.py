"""Feature extraction: the published preprocessing, order, modes, and files that cannot be read."""

import numpy as np
import pytest
import torch
from evaluation_doubles import LazySource, Means

from twofold.data import ArraySource
from twofold.errors import UserError
from twofold.evaluation.features import Extractor
from twofold.views.resample import center_crop


def pictures(n: int, height: int, width: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, channels)).astype(np.uint8)


def by_hand(encoder: Means, image: np.ndarray, size: int | None, proportion: float | None) -> np.ndarray:
    """One image at a time, in evaluation mode."""
    x = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    x = x.float() / 255 if proportion is None else center_crop(x, size, proportion, "antialias").clamp(0, 1)
    encoder.eval()
    with torch.no_grad():
        out = encoder(x)[0].numpy()
    encoder.train()
    return out


@pytest.mark.parametrize(
    ("height", "width", "size", "proportion"),
    [
        (28, 28, None, None),  # no size known: as they are
        (28, 28, 28, None),
        (96, 96, 96, None),  # the encoder's own size
        (28, 28, 32, 1.0),  # small images are not cropped
        (32, 32, 64, 1.0),
        (64, 48, 32, 1.0),
        (64, 48, 40, 0.875),
        (40, 40, 64, 0.875),
    ],
)
@pytest.mark.parametrize("lazy", [False, True])
def test_every_image_gets_the_published_preprocessing(height, width, size, proportion, lazy: bool) -> None:
    encoder, images = Means(), pictures(7, height, width)
    source = LazySource(list(images), [0] * 7) if lazy else ArraySource(images, np.zeros(7, np.int64))
    got = Extractor(size=size, batch=3).extract(encoder, source)
    want = np.stack([by_hand(encoder, image, size, proportion) for image in images])
    np.testing.assert_allclose(got.h, want, atol=1e-6)  # float32 sums in another order
    assert got.h.dtype == np.float32
    assert got.index.tolist() == list(range(7))
    words = {None: "images as they are", 1.0: "central square resized to", 0.875: "central square of 0.875"}
    assert got.text.startswith(words[proportion])


def test_the_encoders_own_size_is_the_default_and_the_rule_can_be_set() -> None:
    images = pictures(2, 80, 60)
    encoder = Means(size=48)
    got = Extractor().extract(encoder, ArraySource(images))
    np.testing.assert_allclose(got.h[0], by_hand(encoder, images[0], 48, 0.875), atol=1e-6)
    whole = Extractor(preprocessing="resize").extract(encoder, ArraySource(images))
    np.testing.assert_allclose(whole.h[1], by_hand(encoder, images[1], 48, 1.0), atol=1e-6)
    assert Extractor(size=48, preprocessing="none").extract(Means(), ArraySource(images)).text == "images as they are"


def test_images_of_many_sizes_are_read_in_order_and_broken_ones_left_out() -> None:
    shapes = [(50, 40), (64, 64), None, (33, 90), (48, 48), None, (40, 41), (120, 50)]
    images = [None if s is None else pictures(1, *s, 3, seed=i)[0] for i, s in enumerate(shapes)]
    encoder = Means(3)
    source = LazySource(images, list(range(8)))
    for batch in (1, 3, 100):
        done: list[tuple[int, int]] = []
        got = Extractor(size=48, batch=batch, workers=2).extract(encoder, source, lambda *a, done=done: done.append(a))
        assert got.index.tolist() == [0, 1, 3, 4, 6, 7]
        assert got.labels is not None
        assert got.labels.tolist() == [0, 1, 3, 4, 6, 7]
        assert got.skipped == (("file2.png", "cut short"), ("file5.png", "cut short"))
        want = [by_hand(encoder, images[i], 48, None if shapes[i] == (48, 48) else 0.875) for i in got.index]
        np.testing.assert_allclose(got.h, np.stack(want), atol=1e-6)
        assert done[-1] == (8, 8)
        assert [d for d, _ in done] == sorted(d for d, _ in done)
    assert len(source.skipped) == 2  # each file once, however often it is met


def test_too_many_broken_files_and_none_left_are_user_errors() -> None:
    images = [pictures(1, 40, 40)[0], None, None, None]
    with pytest.raises(UserError, match="3 of 4 images cannot be read"):
        Extractor(size=40).extract(Means(), LazySource(images))
    lazy = LazySource([pictures(1, 40, 40)[0], None], max_skipped=1)
    lazy.images[0] = None
    with pytest.raises(UserError, match="none of its 2 images"):
        Extractor(size=40).extract(Means(), lazy)


def test_each_submodules_mode_is_restored_also_after_an_error() -> None:
    encoder = Means(size=64)
    encoder.train()
    encoder.pool.eval()
    Extractor().extract(encoder, ArraySource(pictures(3, 80, 80)))
    assert (encoder.training, encoder.norm.training, encoder.pool.training) == (True, True, False)
    assert encoder.norm.num_batches_tracked == 0
    with pytest.raises(UserError, match="takes images of shape"):  # 80 pixels as they are do not fit
        Extractor(preprocessing="none").extract(encoder, ArraySource(pictures(3, 80, 80)))
    assert (encoder.training, encoder.norm.training, encoder.pool.training) == (True, True, False)


def test_images_reach_the_encoder_in_batches() -> None:
    encoder = Means()
    Extractor(batch=4).extract(encoder, ArraySource(pictures(10, 8, 8)))
    assert [s[0] for s in encoder.seen] == [4, 4, 2]


def test_what_cannot_be_extracted_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"3 channels, the encoder takes 1: set --data.channels 1"):
        Extractor().extract(Means(1), ArraySource(pictures(3, 8, 8, 3)))
    mixed = LazySource([pictures(1, 8, 8)[0], pictures(1, 9, 8)[0]])
    with pytest.raises(UserError, match="different sizes: give the size"):
        Extractor().extract(Means(), mixed)
    with pytest.raises(UserError, match="preprocessing 'auto'"):
        Extractor(size=8, preprocessing="none").extract(Means(), mixed)
    with pytest.raises(UserError, match="needs the size"):
        Extractor(preprocessing="crop").extract(Means(), mixed)
    spoiled = Means()
    torch.nn.init.constant_(spoiled.norm.weight, float("nan"))
    with pytest.raises(UserError, match="not finite"):
        Extractor().extract(spoiled, ArraySource(pictures(3, 8, 8)))


def test_sources_without_labels_give_none() -> None:
    assert Extractor().extract(Means(), ArraySource(pictures(3, 8, 8))).labels is None
