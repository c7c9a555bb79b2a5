"""Encoders of others: entry points of distributions, and files of the user's."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import embedcache
from embedcache.encoders.plugins import find_plugin, installed, plugin_names, register_file
from embedcache.encoders.registry import find_spec, identify_by_name, registered
from embedcache.errors import EncoderError, UnknownEncoderError
from embedcache.extract.report import PassReport
from embedcache.files.digests import DigestCache

CODE = '''
import numpy as np
from embedcache.encoders.preprocess import Preprocess
from embedcache.encoders.spec import Encoder, EncoderSpec, WeightsSource, check_rows, identity_of

FACTOR = {factor}
SPEC = EncoderSpec(
    name="{name}", architecture="four", output="values", dim=4,
    preprocess=Preprocess(
        height=2, width=2, fit="squash", resample="bilinear", mean=(0.0,), std=(1.0,)
    ),
    weights=WeightsSource(kind="none", licence="MIT", commercial=True),
    loader=__name__ + ":load",
)

class Four(Encoder):
    """Four grey values."""
    def encode(self, batch):
        return check_rows(batch.reshape(len(batch), 4) * np.float32(FACTOR), len(batch), self.spec)

def load(found, device):
    return Four(found.spec, identity_of(found.spec, "none", found.precision))
'''


@pytest.fixture(autouse=True)
def _no_plugins_before_and_after():
    modules = set(sys.modules)
    installed.cache_clear()
    yield
    installed.cache_clear()
    for name in set(sys.modules) - modules:
        if name.startswith(("acme", "embedcache_encoder_file_")):
            del sys.modules[name]


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution that registers encoders: a folder on the path, as pip leaves it."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def call(distribution: str, entries: dict[str, str], code: str = "") -> None:
        folder = site / f"{distribution}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        )
        lines = [f"{name} = {value}" for name, value in entries.items()]
        (folder / "entry_points.txt").write_text("\n".join(["[embedcache.encoders]", *lines, ""]))
        (site / f"{distribution}.py").write_text(code)
        importlib.invalidate_caches()
        installed.cache_clear()

    return call


def n_written(report: PassReport) -> int:
    return sum(tally.n_written for tally in report.tallies)


def grey(value: int) -> Image.Image:
    return Image.new("L", (5, 4), value)


def test_a_distribution_registers_an_encoder_that_is_imported_when_it_is_asked_for(install):
    install("acme", {"four": "acme:SPEC"}, CODE.format(name="four", factor=2))
    assert "four" in plugin_names()
    assert "four" in registered()
    assert "acme" not in sys.modules
    assert find_spec("four").weights.licence == "MIT"
    encoder = embedcache.load_encoder("four")
    assert np.array_equal(encoder.embed([grey(255)]), np.full((1, 4), 2, np.float32))


def test_a_plugin_works_like_any_other_encoder_on_the_command_line(install, project, command):
    install("acme", {"four": "acme:SPEC"}, CODE.format(name="four", factor=2))
    assert n_written(project.extract("four")) == n_written(project.extract("pixels")) > 0
    assert project.embeddings("four").X.shape[1] == 4
    said = command("encoders")
    assert said.code == 0
    assert "four" in said.out


def test_two_distributions_with_one_name_are_an_error_that_names_both(install):
    install("acme", {"four": "acme:SPEC"})
    install("acme_two", {"four": "acme_two:SPEC"})
    with pytest.raises(
        EncoderError, match=r"'four' is registered twice, by acme\w*:SPEC and by acme\w*:SPEC; unin"
    ):
        find_spec("four")
    assert find_spec("resnet50").name == "resnet50"  # built-in ones do not suffer from it


def test_a_distribution_cannot_take_the_name_of_a_built_in_encoder(install):
    install("acme", {"usfm": "acme:SPEC"})
    with pytest.raises(EncoderError, match="'usfm' is registered twice, by embedcache and by acme"):
        plugin_names()


def test_a_plugin_that_fails_on_import_says_which_and_why(install, command):
    install("acme", {"four": "acme:SPEC"}, "raise RuntimeError('no licence key')")
    with pytest.raises(
        EncoderError, match=r"plug-in encoder 'four' \(acme:SPEC\): RuntimeError\('no licence key'"
    ):
        find_spec("four")
    assert find_spec("pixels").name == "pixels"


@pytest.mark.parametrize("code", ["SPEC = 'four'", CODE.format(name="five", factor=1)])
def test_a_plugin_that_is_not_what_it_says_is_refused(code, install):
    install("acme", {"four": "acme:SPEC"}, code)
    with pytest.raises(EncoderError, match=r"'four' \(acme:SPEC\) is no EncoderSpec of its name"):
        find_spec("four")


def test_a_misspelt_plugin_gets_the_nearest(install):
    install("acme", {"quadruple": "acme:SPEC"})
    with pytest.raises(UnknownEncoderError, match="'quadrupel'; did you mean 'quadruple'"):
        find_spec("quadrupel")
    assert find_plugin("quadrupel") is None


def test_a_file_registers_what_it_defines_and_an_edited_one_is_another_encoder(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(CODE.format(name="mine", factor=2))
    assert register_file(file) == ["mine"]
    assert find_spec("mine").architecture.startswith("four@")
    first = embedcache.load_encoder("mine", encoder_file=file)
    assert embedcache.load_encoder("mine", encoder_file=str(file)).fingerprint == first.fingerprint
    # As long as before and within the same second: Python's own cache would not see it.
    file.write_text(CODE.format(name="mine", factor=3))
    second = embedcache.load_encoder("mine", encoder_file=file)
    assert second.fingerprint != first.fingerprint
    assert first.embed([grey(255)])[0, 0] == 2
    assert second.embed([grey(255)])[0, 0] == 3
    assert not (tmp_path / "__pycache__").exists()


def test_a_copy_of_a_file_elsewhere_is_the_same_encoder(tmp_path):
    prints = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "mine.py"
        file.write_text(CODE.format(name="mine", factor=2))
        register_file(file)
        prints.append(identify_by_name("mine", digests=DigestCache()).fingerprint)
    assert prints[0] == prints[1]


def test_names_of_other_encoders_are_taken(tmp_path, install):
    file = tmp_path / "mine.py"
    file.write_text(CODE.format(name="usfm", factor=2))
    with pytest.raises(EncoderError, match=r"mine\.py: encoder 'usfm' exists already; choose ano"):
        register_file(file)
    install("acme", {"four": "acme:SPEC"})
    file.write_text(CODE.format(name="four", factor=2))
    with pytest.raises(EncoderError, match=r"mine\.py: encoder 'four' exists already"):
        register_file(file)


@pytest.mark.parametrize(
    ("code", "match"),
    [
        ("x = 1", r"mine\.py: defines no EncoderSpec; see CONTRIBUTING"),
        ("", "defines no EncoderSpec"),
        ("raise ValueError('broken')", r"mine\.py: ValueError\('broken'\)"),
        ("def (", r"mine\.py: SyntaxError"),
        ("import nowhere_to_be_found", r"mine\.py: ModuleNotFoundError"),
        ("import sys; sys.exit(0)", r"mine\.py: SystemExit\(0\)"),
        ("raise RuntimeError('two\\nlines')", r"mine\.py: RuntimeError\('two\\nlines'\)"),
    ],
)
def test_a_file_without_an_encoder_is_an_error_each_time(code, match, tmp_path):
    (tmp_path / "mine.py").write_text(code)
    for _ in range(2):
        with pytest.raises(EncoderError, match=match):
            register_file(tmp_path / "mine.py")


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(UnknownEncoderError, match=r"nowhere\.py: No such file"):
        register_file(tmp_path / "nowhere.py")


def test_a_project_encodes_with_a_file(project, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(CODE.format(name="mine", factor=2))
    n_images = n_written(project.extract("mine", encoder_file=file))
    assert n_images > 0
    assert n_written(project.extract("mine", encoder_file=file)) == 0
    rows = project.embeddings("mine").X
    file.write_text(CODE.format(name="mine", factor=4))
    assert n_written(project.extract("mine", encoder_file=file)) == n_images
    assert rows.shape == (n_images, 4)


def test_the_command_encodes_with_a_file(project, command, tmp_path):
    Path(tmp_path / "mine.py").write_text(CODE.format(name="mine", factor=2))
    said = command("extract", "-m", "mine", "--encoder-file", "mine.py")
    assert said.code == 0, said.err
    said = command("extract", "-m", "mime", "--encoder-file", "mine.py")
    assert said.code != 0
    assert "no encoder 'mime'; did you mean 'mine'?" in said.err


RAISE = "{}\n        return"
PREPROCESS = "def preprocess(self, _): {}\n    def encode"


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("return check_rows", RAISE.format("raise KeyError('gone')"), "failed: KeyError('gone')"),
        ("return check_rows", RAISE.format("raise SystemExit(0)"), "failed: SystemExit(0)"),
        ("* np.float32(FACTOR)", ".astype(object)", "returned an array of object, expected"),
        ("* np.float32(FACTOR)", ".astype('U9')", "returned an array of <U9, expected an"),
        (".reshape(len(batch), 4)", ".reshape(-1, 2)", "shape (512, 2), expected (256, 4)"),
        ("batch.reshape(len(batch), 4)", "batch.reshape(-1, 4)[1:]", "returned shape (255, 4)"),
        ("return Four(", "return 4  # ", "the loader of 'mine' returned int, no Encoder"),
        ("return Four(", "raise OSError(28, 'full')  # ", "cannot be loaded: OSError(28, 'full')"),
        ("def encode", PREPROCESS.format("return np.zeros((1, 1))"), "array of shape (1, 1)"),
        ("def encode", PREPROCESS.format("1 / 0"), "cannot preprocess: ZeroDivisionError"),
    ],
)
def test_what_a_foreign_encoder_does_wrong_is_one_line(old, new, match, project, tmp_path):
    code = CODE.format(name="mine", factor=2).replace("check_rows(batch", "(lambda x, *_: x)(batch")
    old = old.replace("return check_rows", "return (lambda x, *_: x)")
    assert old in code
    (tmp_path / "mine.py").write_text(code.replace(old, new, 1).replace("batch_size", ""))
    with pytest.raises(EncoderError, match=re.escape(match)) as raised:
        project.extract("mine", encoder_file=tmp_path / "mine.py", batch_size=256)
    assert "\n" not in str(raised.value)


def test_an_encoder_that_returns_one_array_again_and_again_gives_each_image_its_row(
    project, tmp_path
):
    code = CODE.format(name="mine", factor=2)
    (tmp_path / "mine.py").write_text(code)
    project.extract("mine", encoder_file=tmp_path / "mine.py")
    rows = project.embeddings("mine").X
    code = code.replace(
        "return check_rows", "OUT[:] = batch.reshape(-1, 4) * 2\n        return OUT;"
    )
    (tmp_path / "again.py").write_text(
        code.replace('"mine"', '"again"').replace(
            "FACTOR = 2", "OUT = np.zeros((7, 4), np.float32)"
        )
    )
    project.extract("again", encoder_file=tmp_path / "again.py", batch_size=7)
    assert np.array_equal(project.embeddings("again").X, rows)


def test_what_a_foreign_encoder_prints_is_not_in_the_output(project, command, tmp_path):
    code = CODE.format(name="mine", factor=2).replace("return", "print('hello')\n        return", 1)
    (tmp_path / "mine.py").write_text(code + "\nprint('hello')\n")
    printed = command("extract", "-m", "mine", "--encoder-file", "mine.py", "--json")
    assert printed.code == 0
    assert json.loads(printed.out)["tallies"][0]["n_failed"] == 0
    assert "hello" in printed.err


def test_nan_of_a_foreign_encoder_is_a_failed_image(project, tmp_path):
    code = CODE.format(name="mine", factor="float('nan')")
    (tmp_path / "mine.py").write_text(code)
    [tally] = project.extract("mine", encoder_file=tmp_path / "mine.py").tallies
    assert tally.n_written == 0
    assert {reason for _, reason in tally.failures} == {"the encoder returned NaN or infinity"}
