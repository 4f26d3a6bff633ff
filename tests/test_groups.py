"""The experiment that compares groups of faces."""

import json
import sys

import groups
import numpy as np
import pytest

from showface.evaluation import run_evaluation

from support.pictures import save_faces


def test_lightness_is_that_of_the_standard():
    pixels = np.array([[0, 0, 0], [119, 119, 119], [255, 255, 255], [255, 0, 0]], dtype=np.uint8)
    assert groups.lightness(pixels) == pytest.approx([0, 50.03, 100, 53.24], abs=0.02)


def test_quarters():
    values = {("set", f"{i}.jpg"): float(i) for i in range(9)}
    dark, light = groups.quarters(values).items()
    assert dark == ("darkest quarter of skin (L* up to 1.0)", {("set", "0.jpg"), ("set", "1.jpg")})
    assert light == ("lightest quarter of skin (L* from 7.0)", {("set", "7.jpg"), ("set", "8.jpg")})


def test_table_of_an_evaluation(tmp_path, monkeypatch, capsys):
    save_faces(tmp_path / "faces", 8)
    systems = {"showface default": lambda image, hole: image, "navier-stokes": lambda image, hole: np.zeros_like(image)}
    run_evaluation(systems, [tmp_path / "faces"], tmp_path / "out", size=32)
    names = sorted(path.name for path in (tmp_path / "faces").iterdir())
    record = tmp_path / "groups.json"
    record.write_text(json.dumps({"first two": {"faces": names[:2]}}))
    monkeypatch.setattr(groups, "RECORD", record)
    arguments = ["groups.py", str(tmp_path / "out" / "results.json"), "--images", str(tmp_path / "faces")]
    monkeypatch.setattr(sys, "argv", arguments)
    groups.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| group | faces | 1-20% | 20-40% | 40-60% |"
    assert [line.split(" | ")[1] for line in lines[2:]] == ["8", "2", "2", "2"]
    scores = json.loads((tmp_path / "out" / "results.json").read_text())["scores"]
    found = {(x["system"], x["image"]): x["psnr"] for x in scores if x["bin"] == "1-20%"}
    gains = [found["showface default", name] - found["navier-stokes", name] for name in names[:2]]
    expected = f"{np.mean([found['showface default', name] for name in names[:2]]):.2f} ({np.mean(gains):.2f} ± "
    assert lines[3].split(" | ")[2].startswith(expected)

    monkeypatch.setattr(sys, "argv", [*arguments, "--against", "telea"])
    with pytest.raises(SystemExit):
        groups.main()
    assert "has no system 'telea': it has navier-stokes, showface default" in capsys.readouterr().err

    monkeypatch.setattr(sys, "argv", arguments)
    record.write_text(json.dumps({"strangers": {"faces": ["stranger.png"]}}))
    with pytest.raises(SystemExit):
        groups.main()
    assert "lacks faces of the groups, such as faces/stranger.png" in capsys.readouterr().err
