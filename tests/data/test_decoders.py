from __future__ import annotations

import threading
import warnings

import pytest

from embedcache.data.decoders import decoder_warnings, one_line, why_undecodable


def warn(text: str, module: str = "PIL.TiffImagePlugin") -> None:
    warnings.warn_explicit(text, UserWarning, "file.py", 1, module=module)


def test_each_thread_hears_its_own_decoder():
    turn = threading.Barrier(2, timeout=5)
    heard: dict[str, list[str]] = {}

    def decode(name: str) -> None:
        with decoder_warnings() as messages:
            turn.wait()  # both are inside
            warn(f"{name} is\nodd")
            warn(f"{name} is\nodd")
            turn.wait()
        heard[name] = messages

    threads = [threading.Thread(target=decode, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == {"a": ["a is odd"], "b": ["b is odd"]}


def test_a_catch_that_another_thread_leaves_makes_no_decoder_unheard():
    def decode_another() -> None:
        with decoder_warnings():
            pass

    before = warnings.showwarning, list(warnings.filters)
    catch = warnings.catch_warnings()  # of a thread that loads an encoder
    catch.__enter__()
    warnings.simplefilter("ignore")
    with decoder_warnings() as messages:
        catch.__exit__(None, None, None)
        thread = threading.Thread(target=decode_another)
        thread.start()
        thread.join()
        warn("heard")
    assert messages == ["heard"]
    assert (warnings.showwarning, list(warnings.filters)) == before


def test_other_warnings_and_those_afterwards_are_as_ever():
    with decoder_warnings() as messages, pytest.raises(UserWarning, match="of torch"):
        warn("of torch", module="torch.nn")
    assert not messages
    with pytest.raises(UserWarning, match="late"):
        warn("late")


def test_what_pydicom_cites_is_not_repeated():
    with decoder_warnings() as messages:
        warn("Invalid value for VR PN: 'Doe^Jo'. Please see <https://...>", "pydicom.valuerep")
    assert messages == ["Invalid value for VR PN"]


@pytest.mark.parametrize(
    "error",
    [
        TypeError("unsupported operand type(s) for *: 'int' and 'NoneType'"),
        AttributeError("'FileDataset' object has no attribute 'BitsStored'"),
        KeyError("Rows"),
        ValueError(""),
    ],
)
def test_what_python_says_is_not_repeated(error):
    assert why_undecodable(error).startswith("damaged, or of a kind that its decoder does not know")


def test_what_a_decoder_says_is_one_line_of_a_readable_length():
    assert why_undecodable(OSError("image file\n is  truncated")) == "image file is truncated"
    assert why_undecodable(MemoryError()) == "there is not enough memory for it"
    assert len(one_line("x\0" * 9999)) < 500
