"""The nodes, in the V3 schema of ComfyUI: an IMAGE is (B, H, W, C) float 0 to 1, a MASK is (B, H, W), 1 = hole."""

from __future__ import annotations

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from comfy_api.latest import ComfyExtension, io
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from showface import Inpainter, load_model
from showface.data.hole import grow_hole
from showface.faces import Face, find_faces
from showface.models import InpaintingNetwork

Model = io.Custom("SHOWFACE_MODEL")
CATEGORY = "showface"
# Optional, so that graphs which were saved without it still run.
DETAIL = {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.05, "optional": True}
THRESHOLD = {"default": 0.6, "min": 0.05, "max": 0.95, "step": 0.05}


class LoadModel(io.ComfyNode):
    """Load a network by the name that `showface.load_model` takes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ShowfaceLoadModel",
            display_name="Load Face Model",
            category=CATEGORY,
            description="Load a model that fills faces. The bundled ones may be used for research only.",
            inputs=[
                io.String.Input(
                    "name",
                    default="default",
                    tooltip="default, psnr, the folder of a saved model, or org/name on the Hub",
                ),
                io.Combo.Input("device", options=["auto", "cpu", "cuda"], default="auto"),
                io.Boolean.Input(
                    "choose_detail",
                    default=False,
                    optional=True,
                    tooltip="Off: the model's own detail. On: the one below.",
                ),
                io.Float.Input("detail", tooltip="0 = smooth, closest pixel by pixel, to 1 = sharp", **DETAIL),
            ],
            outputs=[Model.Output("model", display_name="model")],
        )

    @classmethod
    def execute(cls, name: str, device: str, choose_detail: bool = False, detail: float = 1.0) -> io.NodeOutput:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return io.NodeOutput(load_model(name, device, detail=detail if choose_detail else None))


class InpaintFace(io.ComfyNode):
    """Fill the masked part of each image. Known pixels keep their exact values."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ShowfaceInpaintFace",
            display_name="Inpaint Face",
            category=CATEGORY,
            description="Fill the masked part of a photo. Faces in it are found, and filled in aligned crops.",
            search_aliases=["restore face", "fill face"],
            inputs=[
                Model.Input("model"),
                io.Image.Input("image"),
                io.Mask.Input("mask", tooltip="1 = hole. One mask serves a whole batch, and one image several masks."),
                io.Int.Input("grow", default=0, min=0, max=256, tooltip="Grow the hole by this many pixels."),
                io.Boolean.Input("faces", default=True, tooltip="Find faces. Otherwise fill as in any picture."),
            ],
            outputs=[io.Image.Output("filled", display_name="image"), io.Mask.Output("hole", display_name="mask")],
        )

    @classmethod
    def execute(cls, model: InpaintingNetwork, image: Tensor, mask: Tensor, grow: int, faces: bool) -> io.NodeOutput:
        count = max(len(image), len(mask))
        if len(image) not in (1, count) or len(mask) not in (1, count):
            raise ValueError(f"as many masks as images are wanted, or one of either; got {len(image)} and {len(mask)}")
        image = image.expand(count, *image.shape[1:])
        if mask.shape[1:] != image.shape[1:3]:
            # ComfyUI gives an empty mask of 64 x 64 with an image that has none.
            mask = F.interpolate(mask[:, None], image.shape[1:3], mode="nearest-exact")[:, 0]
        holes = [grow_hole(one.cpu().numpy() >= 0.5, grow) for one in mask.expand(count, *mask.shape[1:])]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the mask is empty")
            restored = Inpainter(model, faces=faces).restore_many(zip(map(_photo, image), holes, strict=True))
        result = image.clone()
        for out, hole, photo in zip(result, holes, restored, strict=True):
            colours = np.asarray(photo.image)[hole].astype(np.float32) / 255
            out[torch.from_numpy(hole).to(out.device), :3] = torch.from_numpy(colours).to(out)
        return io.NodeOutput(result, torch.from_numpy(np.stack(holes)).to(mask))


class FindFaces(io.ComfyNode):
    """The boxes of the faces in each image, the largest face of an image first."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ShowfaceFindFaces",
            display_name="Find Faces",
            category=CATEGORY,
            description="Find faces, also turned or small ones. Also draws their boxes into the image.",
            inputs=[io.Image.Input("image"), io.Float.Input("threshold", **THRESHOLD)],
            outputs=[
                io.BoundingBox.Output("boxes", display_name="boxes", is_output_list=True),
                io.Int.Output("count", display_name="count"),
                io.Image.Output("drawn", display_name="image"),
            ],
        )

    @classmethod
    def execute(cls, image: Tensor, threshold: float) -> io.NodeOutput:
        boxes, drawn = [], image.clone()
        for index, one in enumerate(image):
            photo = _photo(one)
            for face in find_faces(photo, threshold=threshold):
                left, top, right, bottom = _corners(face, photo.size)
                boxes.append({"x": left, "y": top, "width": right - left, "height": bottom - top})
                frame = Image.new("1", photo.size)
                ImageDraw.Draw(frame).rectangle((left, top, right - 1, bottom - 1), outline=1, width=2)
                drawn[index][torch.from_numpy(np.array(frame)), :3] = torch.tensor([0.0, 0.4, 1.0]).to(drawn)
        return io.NodeOutput(boxes, len(boxes), drawn)


class FaceMask(io.ComfyNode):
    """A mask of the faces in each image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ShowfaceFaceMask",
            display_name="Face Mask",
            category=CATEGORY,
            description="Mask the faces of a photo, 1 = face. It is empty where no face is found.",
            inputs=[
                io.Image.Input("image"),
                io.Combo.Input("shape", options=["ellipse", "box"], default="ellipse"),
                io.Combo.Input("which", options=["all", "largest"], default="all"),
                io.Float.Input("threshold", **THRESHOLD),
            ],
            outputs=[io.Mask.Output("mask", display_name="mask")],
        )

    @classmethod
    def execute(cls, image: Tensor, shape: str, which: str, threshold: float) -> io.NodeOutput:
        masks = []
        for one in image:
            photo = _photo(one)
            faces = find_faces(photo, threshold=threshold)
            masks.append(_drawn(faces[:1] if which == "largest" else faces, photo.size, shape))
        return io.NodeOutput(torch.from_numpy(np.stack(masks)).to(image))


class Showface(ComfyExtension):
    """The pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadModel, InpaintFace, FindFaces, FaceMask]


async def comfy_entrypoint() -> Showface:
    """Called by ComfyUI when it loads the pack."""
    return Showface()


def _photo(image: Tensor) -> Image.Image:
    """An (H, W, C) image as RGB; further channels are left out."""
    if image.shape[-1] < 3:
        raise ValueError(f"an image must have red, green and blue, got {image.shape[-1]} channels")
    pixels = (image[..., :3].clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.cpu().numpy())


def _corners(face: Face, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A face's box in whole pixels, cut off at the border: left, top, right, bottom."""
    width, height = size
    left, top, right, bottom = (round(edge) for edge in face.box)
    return max(0, left), max(0, top), min(width, right), min(height, bottom)


def _drawn(faces: list[Face], size: tuple[int, int], shape: str) -> NDArray[np.float32]:
    mask = Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    for face in faces:
        left, top, right, bottom = _corners(face, size)
        (draw.ellipse if shape == "ellipse" else draw.rectangle)((left, top, right - 1, bottom - 1), fill=1)
    return np.asarray(mask, dtype=np.float32)
