"""MDRNets, the Memory-Disentangled Refinement Networks, which fill the holes of a face image."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from showface.losses import LossWeights, labels_at
from showface.models.coarse import CoarseNetwork
from showface.models.config import MDRNetsConfig
from showface.models.encoder import Encoder
from showface.models.losses import inpainting_losses
from showface.models.network import InpaintingNetwork, check_inputs
from showface.models.output import InpaintingOutput, MDRNetsOutput
from showface.models.refinement import RefinementNetwork
from showface.nn import DisentangledMemory, MaskRegionEnhancement, push_pull_fill
from showface.nn.blocks import composite, pad_to_multiple


class MDRNets(InpaintingNetwork):
    """Coarse network, encoder, DMM, MREM and guided refinement network, in the poster's four steps.

        model = showface.MDRNets.from_pretrained()           # the bundled weights
        result = model(image, hole).image                    # (B, 3, H, W) in [-1, 1], (B, 1, H, W) with 1 = hole

    Any H and W work: images are padded and results cropped inside.
    """

    system = "mdrnets"
    config_type = MDRNetsConfig
    config: MDRNetsConfig
    stride = 16

    def __init__(self, config: MDRNetsConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MDRNetsConfig()
        self.coarse = CoarseNetwork(config.coarse_channels, config.coarse_blocks, config.regions)
        self.encoder: Encoder | None = None
        self.memory: DisentangledMemory | None = None
        self.enhancement: MaskRegionEnhancement | None = None
        self.refinement: RefinementNetwork | None = None
        # Features, parsing logits and labels of the last training batch, for `update_memory`.
        self._memory_batch: tuple[Tensor, Tensor, Tensor] | None = None
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
            image: (B, 3, H, W) floating point in [-1, 1]; pixels under the hole are ignored.
            hole: (B, 1, H, W), 1 = corrupted, 0 = known.

        Raises:
            TypeError, ValueError: a wrong dtype or shape.
        """
        check_inputs(image, hole)
        height, width = image.shape[-2:]
        raw_coarse, coarse, parsing, padded_hole = self._run_coarse(image, hole)
        raw_image = raw_coarse
        if self.encoder is not None and self.refinement is not None:
            # No gradient to the parsing: only its own loss trains it, so that a region keeps its meaning.
            enhanced = self._enhance(self.encoder(coarse, padded_hole), parsing.detach().softmax(1), padded_hole)
            raw_image = self.refinement(coarse, padded_hole, enhanced)

        def crop(x: Tensor) -> Tensor:
            return x[..., :height, :width]

        raw_coarse, raw_image = crop(raw_coarse), crop(raw_image)
        return MDRNetsOutput(
            image=composite(image, hole, raw_image),
            coarse=crop(coarse),
            raw_image=raw_image,
            raw_coarse=raw_coarse,
            parsing=parsing,
        )

    def parts(self, image: Tensor, hole: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The queries to the memory: one latent for each part of each face.

        Args:
            image, hole: as `forward`; None for images without a hole.

        Returns:
            latent (B, K, C); region (B, K), the part's index, or -1 where the face does not show it; and parsing
            (B, K, h, w), probabilities at stride 4 of the padded image.

        Raises:
            TypeError, ValueError: as `forward`.
            RuntimeError: a network without a memory.
        """
        if self.encoder is None or self.memory is None:
            raise RuntimeError("a network without a memory has no latents of parts")
        hole = torch.zeros_like(image[:, :1]) if hole is None else hole
        check_inputs(image, hole)
        _, coarse, parsing, padded_hole = self._run_coarse(image, hole)
        probability = parsing.softmax(1)
        latent, region = self.memory.pool(self.encoder(coarse, padded_hole), probability)
        count = len(image)
        return rearrange(latent, "(b k) c -> b k c", b=count), rearrange(region, "(b k) -> b k", b=count), probability

    def _run_coarse(self, image: Tensor, hole: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The coarse image before and after known pixels are put back, the parsing logits, the hole; all padded."""
        hole = (pad_to_multiple(hole.to(image.dtype), self.stride) > 0.5).to(image.dtype)
        image = pad_to_multiple(image, self.stride)
        raw, parsing = self.coarse(push_pull_fill(image, hole), hole)
        return raw, composite(image, hole, raw), parsing, hole

    def _enhance(self, features: Tensor, parsing: Tensor, hole: Tensor) -> Tensor:
        recalled = self.memory(features, parsing) if self.memory is not None else None
        if self.enhancement is not None:
            return self.enhancement(features, hole, recalled)
        return features if recalled is None else self.fuse(torch.cat([features, recalled], dim=1))

    def encode(self, image: Tensor) -> Tensor:
        """Features of whole images, (B, C, h, w), for the InCo² loss and the memory.

        Gradients reach the image but not the encoder's weights. Otherwise the encoder could lower the InCo² loss by
        making all features equal.

        Raises:
            RuntimeError: a coarse-only network, which has no encoder.
        """
        if self.encoder is None:
            raise RuntimeError("a coarse-only network has no encoder")
        weights = {name: weight.detach() for name, weight in self.encoder.named_parameters()}
        image = pad_to_multiple(image, self.stride)
        return torch.func.functional_call(self.encoder, weights, (image, torch.zeros_like(image[:, :1])))

    def training_losses(
        self, image: Tensor, hole: Tensor, labels: Tensor, weights: LossWeights
    ) -> tuple[InpaintingOutput, dict[str, Tensor]]:
        output = self(image, hole)
        features = None
        if self.encoder is not None:
            with torch.no_grad():
                clean = self.encode(image)
            if weights.coordination:
                features = self.encode(output.image), clean
            self._memory_batch = clean, output.parsing.detach(), labels
        return output, inpainting_losses(output, image, hole, labels, weights, features)

    def untrained(self, weights: LossWeights) -> list[nn.Module]:
        return [] if weights.parsing else [self.coarse.to_parsing]

    def update_memory(self) -> None:
        """Write the parts of the last batch's uncorrupted images to the memory."""
        if self.memory is not None and self._memory_batch is not None:
            clean, logits, labels = self._memory_batch
            self.memory.write(clean, _known_parsing(logits, labels))
        self._memory_batch = None


def _known_parsing(logits: Tensor, labels: Tensor) -> Tensor:
    """Parsing probabilities (B, K, h, w): one-hot labels where known, the prediction elsewhere."""
    predicted = logits.softmax(1)
    labels = labels_at(labels, logits)
    known = F.one_hot(labels.clamp_min(0), logits.shape[1]).movedim(-1, 1).to(predicted.dtype)
    return torch.where((labels >= 0)[:, None], known, predicted)
