"""Properties that must hold for any input: a right result, or one clear error. Hypothesis chooses the inputs."""

import contextlib
import io
import json
import string
import sys
import warnings
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from PIL import Image

from showface import MDRNetsConfig, cli
from showface.data import read_image, read_mask

pytest.importorskip("hypothesis", reason="the property tests need hypothesis, which the extra `test` brings")
from hypothesis import strategies as st

from support.properties import both_lists, run_many

# Images and masks.


@both_lists
def test_any_picture_is_read_as_image_and_as_mask(count: int) -> None:
    names = "1 L P RGB RGBA RGBX CMYK YCbCr HSV LA I F I;16 La RGBa PA"
    numbers = {"I": [0, 1, 255, 65535], "I;16": [0, 1, 255, 65535], "F": [0, 1, 255, 65535, 0.5, -5, np.nan, np.inf]}
    dtypes = {"I": np.int32, "F": np.float32, "I;16": np.uint16}

    def check(case: tuple[str, int, int, int, str]) -> None:
        mode, width, height, seed, polarity = case
        rng = np.random.default_rng(seed)
        if mode in numbers:
            image = Image.fromarray(rng.choice(numbers[mode], (height, width)).astype(dtypes[mode]))
        elif mode in ("La", "RGBa", "PA"):
            bands = {"La": 2, "RGBa": 4, "PA": 2}[mode]
            image = Image.frombytes(mode, (width, height), rng.bytes(width * height * bands))
        else:
            image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)
        rgb = read_image(image)
        assert (rgb.mode, rgb.size) == ("RGB", (width, height))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            hole = read_mask(image, polarity=polarity)
            resized = read_mask(image, (31, 37), polarity=polarity)
        assert (hole.dtype, hole.shape, resized.shape) == (np.bool_, (height, width), (31, 37))

    sides, polarities = st.integers(1, 30), st.sampled_from(["white", "black"])
    modes, seeds = st.sampled_from(names.split()), st.integers(0, 2**31)
    run_many(count, st.tuples(modes, sides, sides, seeds, polarities), check)


# Configurations.

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
names = st.sampled_from([field.name for field in fields(MDRNetsConfig)]) | st.text(string.ascii_lowercase, max_size=8)


@both_lists
def test_any_configuration(count: int) -> None:
    def check(values: dict[str, Any]) -> None:
        problem = ""
        try:
            config = MDRNetsConfig.from_dict(values)
        except ValueError as error:
            problem = str(error)
        if problem:
            assert any(name in problem for name in values)
            return
        again = MDRNetsConfig.from_dict(json.loads(json.dumps(config.to_dict())))
        assert again == config
        assert all(type(getattr(config, name)) in (int, float, bool, tuple) for name in values)

    run_many(4 * count, st.dictionaries(names, json_values, max_size=3), check)


# The command.

WORDS = """inpaint mask demo memory info --version --help -o --out --model --mask --paint --alpha --size --grow --batch
--invert --no-faces --mask-polarity --overwrite --limit --device white black 0 -1 16 1e9 nan photo.png mask.png
nothing.png folder x.png x.gif x.jpg . .. / ~ ~/x.png psnr cpu meta [red] [/] é"""
words = st.sampled_from([*WORDS.split(), "", "\0"]) | st.text(max_size=6)


@both_lists
def test_any_command_ends_in_one_line(count: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr("showface.inference.fill_holes", None)
    for module in ("registry", "inference"):
        monkeypatch.setattr(f"showface.{module}.load_model", refuse_to_load)
    monkeypatch.setattr(
        "showface.info.describe",
        lambda: {"versions": {}, "devices": [], "extension": {"built": False, "why_missing": "x"}, "operators": {}},
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    Image.new("L", (8, 8), 255).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    before = sorted(path.name for path in tmp_path.rglob("*"))

    def check(arguments: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", ["showface", *arguments])
        out, err = io.StringIO(), io.StringIO()
        streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
        with streams[0], streams[1], warnings.catch_warnings(), pytest.raises(SystemExit) as stop:
            cli.main()
        assert "Traceback" not in err.getvalue()
        if stop.value.code == 1:
            lines = [line for line in err.getvalue().splitlines() if not line.startswith("note:")]
            assert len(lines) == 1
            assert lines[0].startswith("error: ")
            assert sorted(path.name for path in tmp_path.rglob("*")) == before
        else:
            assert stop.value.code in (0, 2)

    commands = st.sampled_from(["inpaint", "mask", "demo", "memory", "info"]).map(lambda word: [word])
    run_many(count, st.tuples(commands | st.just([]), st.lists(words, max_size=7)).map(lambda x: x[0] + x[1]), check)


def refuse_to_load(folder: object, device: object = "cpu", *, detail: object = None) -> None:
    raise ValueError("no model is loaded here")
