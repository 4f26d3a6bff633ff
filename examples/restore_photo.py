"""Restore a photo. Without arguments it restores the bundled portrait.

python examples/restore_photo.py
python examples/restore_photo.py photo.jpg mask.png --out restored.png --model psnr
"""

import argparse
from importlib.resources import as_file, files
from pathlib import Path

import showface


def main() -> None:
    parser = argparse.ArgumentParser(description="Fill the hole of a face photo.")
    parser.add_argument("photo", nargs="?", type=Path, help="by default the bundled portrait")
    parser.add_argument("mask", nargs="?", type=Path, help="white = hole")
    parser.add_argument("--out", type=Path, default=Path("restored.png"))
    parser.add_argument("--model", default="default", help="default, psnr, or the folder of a trained model")
    arguments = parser.parse_args()
    if arguments.photo and not arguments.mask:
        parser.error("a photo needs a mask")

    model = showface.load_model(arguments.model)
    with as_file(files("showface") / "assets" / "demo") as demo:
        photo = arguments.photo or demo / "portrait.png"
        mask = arguments.mask or demo / "mask.png"
        restored = showface.inpaint(photo, mask, model=model)  # known pixels stay as they are
    restored.save(arguments.out)
    print(f"{arguments.out}: {restored.width} x {restored.height}")


if __name__ == "__main__":
    main()
