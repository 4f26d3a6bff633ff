"""MDRNets, the Memory-Disentangled Refinement Networks: from an image with a hole to a whole face."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from showface.files import write_atomically, write_text
from showface.models.coarse import CoarseNetwork
from showface.models.config import MDRNetsConfig
from showface.models.encoder import Encoder
from showface.models.refinement import RefinementNetwork
from showface.nn import DisentangledMemory, MaskRegionEnhancement, push_pull_fill
from showface.nn.blocks import composite, pad_to_multiple

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


@dataclass
class MDRNetsOutput:
    """What one pass gives.

    Attributes:
        image: (B, 3, H, W), the result; known pixels are those of the input, bit for bit.
        coarse: (B, 3, H, W), the same of the coarse network.
        raw_image, raw_coarse: (B, 3, H, W), both before known pixels are put back; losses look at these.
        parsing: (B, K, h, w), logits at stride 4.
    """

    image: Tensor
    coarse: Tensor
    raw_image: Tensor
    raw_coarse: Tensor
    parsing: Tensor


class MDRNets(nn.Module):
    """Coarse network, encoder, DMM, MREM and guided refinement network, in the poster's four steps.

        model = showface.MDRNets.from_pretrained()           # the bundled weights
        result = model(image, hole).image                    # (B, 3, H, W) in [-1, 1], (B, 1, H, W) with 1 = hole

    Any H and W work; they are padded and cropped inside.
    """

    stride = 16

    def __init__(self, config: MDRNetsConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MDRNetsConfig()
        self.coarse = CoarseNetwork(config.coarse_channels, config.coarse_blocks, config.regions)
        self.encoder: Encoder | None = None
        self.memory: DisentangledMemory | None = None
        self.enhancement: MaskRegionEnhancement | None = None
        self.refinement: RefinementNetwork | None = None
        if not config.use_refinement:
            return
        width = config.channels
        self.encoder = Encoder(width, config.encoder_blocks)
        if config.use_memory:
            self.memory = DisentangledMemory(width, config.regions, config.slots, rate=config.memory_rate)
        if config.use_enhancement:
            self.enhancement = MaskRegionEnhancement(width, width if config.use_memory else 0)
        elif config.use_memory:
            self.fuse = nn.Conv2d(2 * width, width, 1)
        self.refinement = RefinementNetwork(config.refinement_channels, config.refinement_blocks, width)

    def forward(self, image: Tensor, hole: Tensor) -> MDRNetsOutput:
        """Inpaint.

        Args:
            image: (B, 3, H, W) floating point in [-1, 1]; what lies under the hole is ignored.
            hole: (B, 1, H, W), 1 = corrupted, 0 = known.

        Raises:
            TypeError, ValueError: a wrong dtype or shape.
        """
        _check(image, hole)
        height, width = image.shape[-2:]
        padded_hole = (pad_to_multiple(hole.to(image.dtype), self.stride) > 0.5).to(image.dtype)
        raw_coarse, coarse, parsing = self._run_coarse(pad_to_multiple(image, self.stride), padded_hole)
        raw_image = raw_coarse
        if self.encoder is not None and self.refinement is not None:
            # The parsing is what its own loss makes it: the memory must not bend the meaning of a region.
            enhanced = self._enhance(self.encoder(coarse, padded_hole), parsing.detach().softmax(1), padded_hole)
            raw_image = self.refinement(coarse, padded_hole, enhanced)

        def crop(x: Tensor) -> Tensor:
            return x[..., :height, :width]

        raw_coarse, raw_image = crop(raw_coarse), crop(raw_image)
        return MDRNetsOutput(
            image=composite(image, hole, raw_image),
            coarse=composite(image, hole, raw_coarse),
            raw_image=raw_image,
            raw_coarse=raw_coarse,
            parsing=parsing,
        )

    def parts(self, image: Tensor, hole: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """What the memory is asked about: one latent for each part of each face.

        Args:
            image, hole: as `forward`; without a hole, whole faces.

        Returns:
            latent (B, K, C); region (B, K), the part's index, or -1 where a face shows nothing of it; and parsing
            (B, K, h, w), probabilities at stride 4, padded to whole strides of the network.

        Raises:
            TypeError, ValueError: as `forward`.
            RuntimeError: a network without a memory.
        """
        if self.encoder is None or self.memory is None:
            raise RuntimeError("a network without a memory has no latents of parts")
        hole = torch.zeros_like(image[:, :1]) if hole is None else hole
        _check(image, hole)
        padded_hole = (pad_to_multiple(hole.to(image.dtype), self.stride) > 0.5).to(image.dtype)
        _, coarse, parsing = self._run_coarse(pad_to_multiple(image, self.stride), padded_hole)
        probability = parsing.softmax(1)
        latent, region = self.memory.pool(self.encoder(coarse, padded_hole), probability)
        return latent.unflatten(0, (len(image), -1)), region.unflatten(0, (len(image), -1)), probability

    def _run_coarse(self, image: Tensor, hole: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The coarse image before and after known pixels are put back, and the parsing's logits."""
        raw, parsing = self.coarse(push_pull_fill(image, hole), hole)
        return raw, composite(image, hole, raw), parsing

    def _enhance(self, features: Tensor, parsing: Tensor, hole: Tensor) -> Tensor:
        recalled = self.memory(features, parsing) if self.memory is not None else None
        if self.enhancement is not None:
            return self.enhancement(features, hole, recalled)
        return features if recalled is None else self.fuse(torch.cat([features, recalled], dim=1))

    def encode(self, image: Tensor) -> Tensor:
        """Features of whole images, (B, C, h, w): what the InCo² loss compares and what the memory stores.

        The encoder's weights take no gradient from here, only the image does: a loss between such features could
        otherwise be met by an encoder that makes all features alike.

        Raises:
            RuntimeError: a coarse-only network, which has no encoder.
        """
        if self.encoder is None:
            raise RuntimeError("a coarse-only network has no encoder")
        weights = {name: weight.detach() for name, weight in self.encoder.named_parameters()}
        image = pad_to_multiple(image, self.stride)
        return torch.func.functional_call(self.encoder, weights, (image, torch.zeros_like(image[:, :1])))

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `config.json` and `model.safetensors` into a folder, made if needed, each file atomically.

        Args:
            dtype: convert floating-point weights, say to torch.float16 for half the size.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            name: (x.to(dtype) if dtype and x.is_floating_point() else x).detach().cpu().contiguous()
            for name, x in self.state_dict().items()
        }
        write_atomically(folder / WEIGHTS_FILE, lambda path: save_file(state, path, metadata={"format": "pt"}))
        write_text(folder / CONFIG_FILE, json.dumps(self.config.to_dict(), indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path | None = None) -> "MDRNets":
        """Load a folder that `save_pretrained` wrote, in eval mode and float32; None loads the bundled model.

        Raises:
            FileNotFoundError: the folder or one of its two files is missing.
            ValueError: the configuration is not one of MDRNets, or the weights don't fit it.
        """
        folder = Path(folder) if folder is not None else Path(__file__).parent.parent / "assets" / "default"
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).is_file():
                wanted = f"a model is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
                raise FileNotFoundError(f"no {name} in {folder}: {wanted}")
        try:
            config = MDRNetsConfig.from_dict(json.loads((folder / CONFIG_FILE).read_text()))
        except (json.JSONDecodeError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / CONFIG_FILE} is not a configuration of MDRNets: {error}") from error
        model = cls(config)
        try:
            model.load_state_dict(load_file(folder / WEIGHTS_FILE))
        except Exception as error:  # safetensors and torch each have their own kind
            raise ValueError(f"{folder / WEIGHTS_FILE} does not fit its configuration: {error}") from error
        return model.eval()


def _check(image: Tensor, hole: Tensor) -> None:
    if not image.is_floating_point():
        raise TypeError(f"image must be floating point in [-1, 1], got {image.dtype}")
    if image.dim() != 4 or image.shape[1] != 3 or 0 in image.shape[2:]:
        raise ValueError(f"image must have shape (B, 3, H, W), got {tuple(image.shape)}")
    if hole.shape != (image.shape[0], 1, *image.shape[2:]):
        expected = (image.shape[0], 1, *image.shape[2:])
        raise ValueError(f"hole must have shape {expected} to go with image, got {tuple(hole.shape)}")
    if hole.device != image.device:
        raise ValueError(f"hole must be on {image.device} like image, got {hole.device}")
