"""Room for decoded images: what is asked for is waited for, and given back whatever happens."""

import os
import threading
import time

import numpy as np
import pytest
import tifffile
from PIL import Image

from twofold.data import DataConfig
from twofold.data.decoding import images, opening, parts
from twofold.data.decoding.images import decode_image
from twofold.data.decoding.parts import OpenImages, Part
from twofold.data.decoding.room import Room


def test_no_more_is_held_at_once_than_there_is() -> None:
    room, held, most, lock = Room(100), [0], [0], threading.Lock()

    def work(units: int) -> None:
        with room.taken(units):
            with lock:
                held[0] += min(units, 100)
                most[0] = max(most[0], held[0])
            time.sleep(0.005)
            with lock:
                held[0] -= min(units, 100)

    threads = [threading.Thread(target=work, args=(units,)) for units in [40, 1000, 60, 100, 30, 30, 30, 30] * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert held == [0]
    assert most[0] <= 100


def test_what_there_is_room_for_is_held_at_the_same_time() -> None:
    room, second, late = Room(100), threading.Event(), threading.Event()

    def take(units: int, taken: threading.Event) -> None:
        with room.taken(units):
            taken.set()

    with room.taken(60):
        threads = [threading.Thread(target=take, args=given) for given in ((40, second), (41, late))]
        for thread in threads:
            thread.start()
        assert second.wait(60)
        threads[0].join(60)
        assert not late.is_set()
    assert late.wait(60)
    threads[1].join(60)


def test_it_is_given_back_after_an_error_and_anew_in_a_forked_process() -> None:
    room = Room(10)
    with pytest.raises(ZeroDivisionError), room.taken(10):
        1 / 0  # noqa: B018
    with room.taken(10):
        child = os.fork()
        if child == 0:  # nothing is held there: nobody would give it back
            with room.taken(10):
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.parametrize("name", ["a.png", "deep.png", "a.npy", "bands.tif"])
def test_decoding_takes_its_pixels(name: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    class Noted(Room):
        def taken(self, units: int):  # type: ignore[no-untyped-def]
            taken.append(units)
            return super().taken(units)

    monkeypatch.setattr(images, "PIXELS", Noted(10**6))
    monkeypatch.setattr(opening, "PIXELS", Noted(10**6))
    monkeypatch.setattr(parts, "PIXELS", Noted(10**6))
    path = tmp_path / name
    if path.suffix == ".npy":
        np.save(path, np.full((20, 30), 7, np.uint8))
    elif path.suffix == ".tif":
        tifffile.imwrite(path, np.full((20, 30, 5), 0.5, np.float32), photometric="minisblack", planarconfig="contig")
    else:
        Image.fromarray(np.full((20, 30), 7, np.uint8 if name == "a.png" else np.uint16)).save(path)
    config = DataConfig()
    if name == "a.png":
        decode_image(str(path), 3, config)
        OpenImages().read(0, lambda: (str(path), None), Part(0, (0, 0, 4, 4)), 3, config, None)
        assert taken == [600, 600]
    else:
        opening.stored(str(path), config, None, first=False)
        assert taken == [3000 if name == "bands.tif" else 600]
