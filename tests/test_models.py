"""MDRNets: switches, sizes, known pixels, files."""

import dataclasses
import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from showface import MDRNets, MDRNetsConfig, load_model
from showface.losses import LossWeights, weighted_sum
from showface.models.losses import inpainting_losses
from showface.nn import channels_last

from support.networks import SIZES, photo, wake

SWITCHES = {
    "whole": {},
    "no memory": {"use_memory": False},
    "no enhancement": {"use_enhancement": False},
    "neither": {"use_memory": False, "use_enhancement": False},
    "coarse only": {"use_refinement": False},
}


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_every_part_can_be_left_out(device, tiny, switches):
    model = channels_last(wake(MDRNets(dataclasses.replace(tiny, **switches)))).to(device)
    refines = model.config.use_refinement
    assert (model.memory is not None) == (refines and model.config.use_memory)
    assert (model.enhancement is not None) == (refines and model.config.use_enhancement)
    assert (model.encoder is not None) == (model.refinement is not None) == refines

    image, hole = (x.to(device) for x in photo())
    output = model(image, hole)
    assert output.parsing.shape == (2, 19, 8, 8)
    if not refines:
        assert torch.equal(output.image, output.coarse)
        with pytest.raises(RuntimeError, match="no encoder"):
            model.encode(image)
    labels = torch.randint(19, (2, 32, 32), device=device)
    features = (model.encode(output.image), model.encode(image)) if refines else None
    losses = inpainting_losses(output, image, hole, labels, LossWeights(), features)
    weighted_sum(losses, model.loss_weights(LossWeights())).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_size(device, model, size):
    image, hole = (x.to(device) for x in photo(*size))
    model.to(device)
    with torch.no_grad():
        output = model(image, hole)
    known = (hole == 0).expand_as(image)
    for result in (output.image, output.coarse):
        assert result.shape == image.shape
        assert result.isfinite().all()
        assert torch.equal(result[known], image[known])
    assert torch.equal(output.image[~known], output.raw_image[~known])
    assert torch.equal(output.coarse[~known], output.raw_coarse[~known])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_full_and_empty_holes(model, value):
    image, _ = photo(37, 50)
    hole = torch.full_like(image[:, :1], value)
    output = model(image, hole)
    assert output.raw_image.isfinite().all()
    assert torch.equal(output.image, image) == (value == 0)
    output.raw_image.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, 1e30])
def test_what_lies_under_the_hole_does_not_matter(model, garbage):
    image, hole = photo(37, 50)
    spoilt = torch.where(hole > 0, garbage, image)
    with torch.no_grad():
        assert torch.equal(model(spoilt, hole).image, model(image, hole).image)


def test_images_of_a_batch_do_not_touch_each_other(model):
    image, hole = photo(batch=3)
    hole[1], hole[2] = 0, 1
    with torch.no_grad():
        together = model(image, hole).raw_image
        alone = torch.cat([model(image[i : i + 1], hole[i : i + 1]).raw_image for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_train_and_eval_modes_agree(model):
    image, hole = photo()
    with torch.no_grad():
        assert torch.equal(model.train()(image, hole).image, model.eval()(image, hole).image)


def test_features_tell_positions_apart(model):
    """A common mean would make all positions similar for the memory and the correlations."""
    features = model.encode(photo(64, 64)[0]).flatten(2)
    torch.testing.assert_close(features.mean(2), torch.zeros(features.shape[:2]), rtol=0, atol=1e-4)
    directions = torch.nn.functional.normalize(features, dim=1)
    assert (directions.mT @ directions).mean() < 0.2


def test_a_pass_does_not_write_to_the_memory(model):
    before = model.memory.memory.clone()
    model.train()(*photo())
    assert torch.equal(model.memory.memory, before)


def test_parts_are_what_the_forward_asks_about(model, tiny):
    images, hole = torch.rand(5, 3, 32, 32) * 2 - 1, torch.zeros(5, 1, 32, 32)
    hole[:, :, 8:20, 8:20] = 1
    asked = []
    model.memory.register_forward_hook(lambda module, given, out: asked.append(module.pool(*given)))
    model(images, hole)
    latent, region, _ = model.parts(images, hole)
    torch.testing.assert_close(latent.flatten(0, 1), asked[0][0])
    assert torch.equal(region.flatten(), asked[0][1])
    without = MDRNets(MDRNetsConfig(**{**tiny.to_dict(), "use_memory": False}))
    with pytest.raises(RuntimeError, match="without a memory"):
        without.parts(images)


def test_bool_and_integer_holes(model):
    image, hole = photo()
    with torch.no_grad():
        expected = model(image, hole).image
        for other in (hole.bool(), hole.to(torch.uint8), hole.double()):
            assert torch.equal(model(image, other).image, expected)


def test_float64_and_bfloat16(model):
    image, hole = photo()
    with torch.no_grad():
        expected = model(image, hole).raw_image
        double = model.double()(image.double(), hole.double()).raw_image
        assert double.dtype == torch.float64
        torch.testing.assert_close(double.float(), expected, rtol=1e-3, atol=1e-3)
        half = model.bfloat16()(image.bfloat16(), hole.bfloat16()).raw_image
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), expected, rtol=0.1, atol=0.1)


def test_autocast_keeps_known_pixels(model):
    image, hole = photo()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        output = model(image, hole)
    known = (hole == 0).expand_as(image)
    assert output.image.dtype == torch.float32
    assert torch.equal(output.image[known], image[known])


def test_encoding_gives_gradients_to_the_image_only(model):
    image = photo()[0].requires_grad_()
    features = model.encode(image)
    assert features.shape == (2, 8, 8, 8)
    features.square().sum().backward()
    assert image.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_compile(model):
    image, hole = photo()
    torch._dynamo.reset()
    with torch.no_grad():
        expected = model(image, hole).image
        got = torch.compile(model, backend="aot_eager")(image, hole).image
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("image", "hole", "error", "message"),
    [
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 1, 8, 8), TypeError, "image .*got torch.uint8"),
        (torch.zeros(3, 8, 8), torch.zeros(1, 1, 8, 8), ValueError, r"image must have shape .*\(3, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), ValueError, r"image must have shape .*\(1, 1, 8, 8\)"),
        (torch.zeros(1, 3, 0, 8), torch.zeros(1, 1, 0, 8), ValueError, r"image must have shape .*\(1, 3, 0, 8\)"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8), ValueError, r"hole must have shape .*got \(1, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8), torch.zeros(1, 1, 8, 8), ValueError, r"hole must have shape \(2, 1, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8, device="meta"), ValueError, "hole must be on cpu .*meta"),
    ],
)
def test_errors(model, image, hole, error, message):
    with pytest.raises(error, match=message):
        model(image, hole)


class TestConfig:
    def test_json_round_trip(self, tiny):
        text = json.dumps(tiny.to_dict())
        assert MDRNetsConfig.from_dict(json.loads(text)) == tiny

    def test_unknown_name(self):
        with pytest.raises(ValueError, match="unknown configuration of MDRNets: chanels, depth"):
            MDRNetsConfig.from_dict({"depth": 3, "channels": 8, "chanels": 8})

    @pytest.mark.parametrize(
        ("name", "value"),
        [("channels", 0), ("slots", -3), ("regions", 2.5), ("memory_rate", 1.0), ("refinement_blocks", (1, 1))],
    )
    def test_bad_values(self, name, value):
        with pytest.raises(ValueError, match=f"{name} must"):
            MDRNetsConfig(**{name: value})


class TestFiles:
    @pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
    def test_round_trip(self, tiny, tmp_path, switches):
        model = wake(MDRNets(dataclasses.replace(tiny, **switches))).eval()
        model.save_pretrained(tmp_path / "new" / "model")
        loaded = MDRNets.from_pretrained(tmp_path / "new" / "model")
        assert loaded.config == model.config
        assert not loaded.training
        assert sorted(os.listdir(tmp_path / "new" / "model")) == ["config.json", "model.safetensors"]
        with torch.no_grad():
            image, hole = photo()
            assert torch.equal(loaded(image, hole).image, model(image, hole).image)

    def test_half_the_size(self, model, tmp_path):
        model.save_pretrained(tmp_path / "full")
        channels_last(model).save_pretrained(tmp_path / "half", torch.float16)
        sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half")]
        assert sizes[1] < 0.6 * sizes[0]
        loaded = MDRNets.from_pretrained(tmp_path / "half")
        assert {x.dtype for x in loaded.parameters()} == {torch.float32}
        assert loaded.memory.idle.dtype == torch.int32
        image, hole = photo()
        with torch.no_grad():
            torch.testing.assert_close(loaded(image, hole).image, model(image, hole).image, rtol=0.02, atol=0.02)

    def test_what_is_missing_is_named(self, model, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no config.json in .*nowhere: a model is a folder with"):
            MDRNets.from_pretrained(tmp_path / "nowhere")
        model.save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match=r"no model\.safetensors in"):
            MDRNets.from_pretrained(tmp_path)

    @pytest.mark.parametrize("text", ["{", "[]", "null", '{"channels": "many"}', '{"depth": 3}', '{"channels": -1}'])
    def test_broken_configuration(self, model, tmp_path, text):
        model.save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config.json is not a configuration of MDRNets: "):
            MDRNets.from_pretrained(tmp_path)

    def test_broken_or_other_weights(self, model, tiny, tmp_path):
        model.save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({**tiny.to_dict(), "channels": 16}))
        with pytest.raises(ValueError, match=r"model.safetensors does not fit its configuration: "):
            MDRNets.from_pretrained(tmp_path)
        model.save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").write_bytes(b"not weights")
        with pytest.raises(ValueError, match=r"model.safetensors does not fit its configuration: "):
            MDRNets.from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        ("name", "value", "problem"),
        [
            ("coarse_blocks", 10**9, r"coarse_blocks is 1000000000, and model.safetensors has only \d+ tensors"),
            (
                "refinement_blocks",
                [1, 1, 10**9],
                r"refinement_blocks is .*, and model.safetensors has only \d+ tensors",
            ),
            ("channels", 10**12, r"channels is 1000000000000, and model.safetensors has only [\d,]+ numbers"),
            ("channels", 10**5, r"model.safetensors does not fit its configuration: .* must have the shape"),
            ("slots", 10**5, r"memory.idle must have the shape \(19, 100000\), not \(19, "),
            ("image_size", 10**9, "image_size must be at most 4096, got 1000000000"),
            ("channels", True, "channels must be an integer, got True"),
            ("channels", 8.0, "channels must be an integer, got 8.0"),
            ("channels", None, "channels must be an integer, got None"),
            ("use_memory", 1, "use_memory must be true or false, got 1"),
            ("use_memory", "no", "use_memory must be true or false, got 'no'"),
            ("memory_rate", "0.5", "memory_rate must be a number, got '0.5'"),
            ("memory_rate", float("nan"), "memory_rate must be a number, got nan"),
            ("refinement_blocks", "111", "refinement_blocks must be a list of integers, got '111'"),
            ("refinement_blocks", [1, 1, True], r"refinement_blocks must be a list of integers, got \[1, 1, True\]"),
            ("refinement_blocks", [1, 1, -1], "refinement_blocks must be three numbers from 0"),
            ("refinement_blocks", 3, "refinement_blocks must be a list of integers, got 3"),
        ],
    )
    def test_a_configuration_is_checked_before_anything_is_built(self, model, tmp_path, name, value, problem):
        model.save_pretrained(tmp_path)
        file = tmp_path / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))
        with pytest.raises(ValueError, match=problem):
            MDRNets.from_pretrained(tmp_path)

    @pytest.mark.parametrize("text", ["[" * 100_000, '{"a": 1' + "0" * 5000 + "}", " " * 2**20 + "{}", "\xff\xfe"])
    def test_hostile_json(self, model, tmp_path, text):
        model.save_pretrained(tmp_path)
        (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
        for load in (MDRNets.from_pretrained, load_model):
            with pytest.raises(ValueError, match=r"config.json is not a configuration of "):
                load(tmp_path)

    def test_other_dtypes(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        state = load_file(tmp_path / "model.safetensors")
        for name, dtype, problem in (
            ("coarse.to_parsing.bias", torch.int32, "coarse.to_parsing.bias must be floating point, not I32"),
            ("memory.idle", torch.float32, "memory.idle must be torch.int32, not F32"),
            ("memory.idle", torch.int64, "memory.idle must be torch.int32, not I64"),
        ):
            save_file({**state, name: state[name].to(dtype)}, tmp_path / "model.safetensors")
            with pytest.raises(ValueError, match=f"model.safetensors does not fit its configuration: {problem}"):
                MDRNets.from_pretrained(tmp_path)

    def test_a_failing_write_leaves_the_old_model(self, model, tmp_path, monkeypatch):
        model.save_pretrained(tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

        def fail(state, path, **options):
            path.write_bytes(b"half of it")
            raise OSError("no space left on device")

        monkeypatch.setattr("showface.models.network.save_file", fail)
        with pytest.raises(OSError, match="no space left"):
            wake(model).save_pretrained(tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_files_can_be_read_by_others(self, model, tmp_path):
        old = os.umask(0o022)
        try:
            model.save_pretrained(tmp_path)
        finally:
            os.umask(old)
        assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}
