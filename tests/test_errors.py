"""Errors name options as the command that was called names them."""

import pickle

import pytest

from twofold.data import DataConfig, SkipList
from twofold.errors import Option, Stopped, UserError, called


def test_an_error_of_one_piece_says_what_it_was_given():
    assert str(UserError("--data.root {x} %s 50 %")) == "--data.root {x} %s 50 %"
    assert UserError("plain").options == ()


def test_options_have_the_names_of_the_command():
    error = UserError(Option("data.root"), " x: look in ", Option("data.root"), " or --data.root")
    assert str(error) == "--data.root x: look in --data.root or --data.root"
    assert error.options == ("data.root", "data.root")
    renamed = error.renamed({"data.root": "root"})
    assert str(renamed) == "--root x: look in --root or --data.root"  # a piece of text is nobody's to change
    assert renamed.options == ("root", "root")
    again = pickle.loads(pickle.dumps(renamed))
    assert (str(again), again.options) == (str(renamed), ("root", "root"))


def test_a_command_calls_the_options_of_other_rooms_by_its_own_names():
    @called({"data.max_skipped": "most", "data.workers": "threads"})
    def command(**options):
        DataConfig(**options)
        SkipList(10, 0.1).add("a.png", "broken")
        SkipList(10, 0.0).add("a.png", "of --data.max_skipped")

    for _ in range(2):
        with pytest.raises(UserError, match=r"^--threads -1: give 0 or more"):
            command(workers=-1)
        with pytest.raises(UserError, match=r"--most allows 0; .*\n  a.png: of --data\.max_skipped$"):
            command()
    with pytest.raises(UserError, match=r"^--data\.workers -1"):
        DataConfig(workers=-1)


def test_what_stopped_says_how_it_goes_on():
    stop = Stopped.at("at step 7 of 9", 15)
    assert str(stop) == "stopped at step 7 of 9; nothing is lost: the same command with --resume goes on"
    assert stop.signal == 15
