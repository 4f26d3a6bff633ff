"""Restore a photo, and keep what its file carries, such as EXIF data. Without arguments it restores the portrait.

python examples/restore_photo.py
python examples/restore_photo.py photo.jpg mask.png --out restored.png --model psnr
"""

import argparse
from importlib.resources import as_file, files
from pathlib import Path

import showface
from showface.data import read_photo, save_photo


def main() -> None:
    parser = argparse.ArgumentParser(description="Fill the hole of a face photo.")
    parser.add_argument("photo", nargs="?", type=Path, help="by default the bundled portrait")
    parser.add_argument("mask", nargs="?", type=Path, help="white = hole")
    parser.add_argument("--out", "-o", type=Path, default=Path("restored.png"))
    parser.add_argument("--overwrite", action="store_true", help="write over an existing file")
    parser.add_argument("--model", default="default", help="default, psnr, or the folder of a trained model")
    arguments = parser.parse_args()
    if arguments.photo and not arguments.mask:
        parser.error("a photo needs a mask")

    inpainter = showface.Inpainter(arguments.model)
    with as_file(files("showface") / "assets" / "demo") as demo:
        photo = read_photo(arguments.photo or demo / "portrait.png")
        result = inpainter.restore(photo.rgb, arguments.mask or demo / "mask.png")
    # Known pixels stay as they are, bit for bit where the format can hold them.
    save_photo(result.image, arguments.out, photo, hole=result.hole, overwrite=arguments.overwrite)
    print(f"{arguments.out}: {result.image.width} x {result.image.height}")


if __name__ == "__main__":
    main()
