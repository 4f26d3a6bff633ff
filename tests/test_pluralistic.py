"""The pluralistic baselines, DSI and ICT: sampling, codes, and what each part may see."""

import pytest
import torch
import torch.multiprocessing as processes
import torch.nn.functional as F
from torch import distributed

from showface.baselines import BASELINES, DSI, ICT, BaselineConfig, PluralisticBaseline
from showface.baselines.ict import COLOURS, ColourTransformer
from showface.baselines.pixelcnn import StructureGenerator
from showface.baselines.pluralistic import Codebook, draw
from showface.baselines.vqvae import CODES, HierarchicalVQVAE
from showface.losses import LossWeights, weighted_sum

from support.networks import photo, wake

WIDTH = 8
NAMES = ("dsi", "ict")
STAGES = [(name, stage.name) for name in NAMES for stage in BASELINES[name].stages]


def make(name: str) -> PluralisticBaseline:
    network = wake(BASELINES[name](BaselineConfig(WIDTH, 32)))
    assert isinstance(network, PluralisticBaseline)
    return network.eval()


def losses_of(network: PluralisticBaseline, stage: str, image: torch.Tensor, hole: torch.Tensor) -> dict:
    labels = torch.full((len(image), *image.shape[2:]), -1)
    return network.training_losses(image, hole, labels, LossWeights(), stage)[1]


@pytest.mark.parametrize("name", NAMES)
class TestSamples:
    def test_seeds(self, name):
        network = make(name)
        image, hole = photo()
        global_state = torch.get_rng_state()
        samples = network.sample(image, hole, n=2, seed=0)
        output = network(image, hole)
        assert torch.equal(torch.get_rng_state(), global_state)
        assert samples.shape == (2, *image.shape)
        assert torch.equal(samples[0], output.image)
        assert not torch.equal(samples[0], samples[1])
        assert torch.equal(samples[1], network.sample(image, hole, seed=1)[0])
        known = (hole == 0).expand_as(image)
        assert all(torch.equal(sample[known], image[known]) for sample in samples)

    def test_errors(self, name):
        image, hole = photo()
        with pytest.raises(ValueError, match="n must be at least 1, got 0"):
            make(name).sample(image, hole, n=0)
        with pytest.raises(ValueError, match=r"stage must be one of .*, got 'rest'"):
            losses_of(make(name), "rest", image, hole)


@pytest.mark.parametrize(("name", "stage"), STAGES)
class TestStages:
    def test_gradients_reach_its_parameters_and_no_other(self, name, stage):
        network = make(name).train()
        [known] = [x for x in network.stages if x.name == stage]
        trained = {id(parameter) for parameter in known.parameters(network)}
        for parameter in network.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        total = weighted_sum(losses_of(network, stage, *photo()), network.loss_weights(LossWeights()))
        assert total.requires_grad == bool(trained)
        if trained:
            total.backward()
        for path, parameter in network.named_parameters():
            if id(parameter) in trained:
                assert parameter.grad is not None, path
                assert parameter.grad.isfinite().all(), path
                assert parameter.grad.abs().sum() > 0, path
            else:
                assert parameter.grad is None, path

    def test_a_few_steps_lower_the_loss(self, name, stage):
        network = BASELINES[name](BaselineConfig(WIDTH, 32)).train()
        image, hole = F.interpolate(torch.rand(2, 3, 4, 4) * 2 - 1, (32, 32), mode="bilinear"), photo()[1]
        [known] = [x for x in network.stages if x.name == stage]
        parameters = known.parameters(network)
        optimiser = torch.optim.Adam(parameters, 1e-2) if parameters else None
        totals = []
        for _ in range(20):
            total = weighted_sum(losses_of(network, stage, image, hole), network.loss_weights(LossWeights()))
            if optimiser is not None:
                optimiser.zero_grad()
                total.backward()
                optimiser.step()
            network.update_memory()
            totals.append(total.item())
        assert sum(totals[-3:]) < 0.9 * sum(totals[:3])


def test_every_parameter_has_one_stage():
    for name in NAMES:
        network = make(name)
        trained = [id(x) for stage in network.stages for x in stage.parameters(network)]
        assert sorted(trained) == sorted(id(x) for x in network.parameters())


class TestDraw:
    def test_frequencies(self):
        logits = torch.tensor([[1.0, 3.0, -2.0, 0.5]])
        uniform = (torch.arange(10_000) + 0.5) / 10_000
        for top, kept in ((0, [0, 1, 2, 3]), (2, [0, 1])):
            drawn = draw(logits.expand(10_000, 4), uniform, top).bincount(minlength=4) / 10_000
            expected = torch.zeros(4)
            expected[kept] = logits[0, kept].softmax(0)
            torch.testing.assert_close(drawn, expected, atol=2e-4, rtol=0)

    def test_the_ends(self):
        logits = torch.randn(5, 7)
        assert torch.equal(draw(logits, torch.zeros(())), logits.argmax(1))
        assert torch.equal(draw(logits, torch.tensor(1 - 2**-24)), logits.argmin(1))
        assert torch.equal(draw(logits, torch.rand(5), top=1), logits.argmax(1))


class TestCodebook:
    def test_nearest_and_straight_through(self):
        book = Codebook(6, 3, decay=0.9)
        x = torch.randn(2, 3, 4, 5, requires_grad=True)
        codes, index, commitment = book.quantise(x)
        flat = x.detach().movedim(1, -1).reshape(-1, 1, 3)
        assert torch.equal(index.flatten(), (flat - book.vectors).square().sum(2).argmin(1))
        torch.testing.assert_close(codes, book.look_up(index))
        assert commitment.item() == pytest.approx((x - codes).square().mean().item())
        weight = torch.randn_like(x)
        (codes * weight).sum().backward()
        assert torch.equal(x.grad, weight)

    def test_moving_average_by_hand(self):
        book = Codebook(2, 1, decay=0.5)
        book.vectors.copy_(torch.tensor([[0.0], [10.0]]))
        book.counts.fill_(2)
        book.sums.copy_(2 * book.vectors)
        book.update(torch.tensor([[1.0], [3.0], [9.0]]))
        # Counts: 2 / 2 + 2 and 2 / 2 + 1. Sums: 0 / 2 + 4 and 20 / 2 + 9.
        assert book.counts.tolist() == [3, 2]
        torch.testing.assert_close(book.vectors[:, 0], torch.tensor([4 / 3, 9.5]))

    def test_unused_codes_are_replaced(self):
        book = Codebook(3, 1, decay=0.9)
        book.vectors.copy_(torch.tensor([[0.0], [1.0], [1000.0]]))
        book.counts.copy_(torch.tensor([10.0, 10, 0]))
        book.sums.copy_(book.counts[:, None] * book.vectors)
        book.update(torch.rand(20, 1))
        assert book.vectors.max() <= 1

    def test_finds_clusters(self):
        centres = torch.rand(8, 3)
        book = Codebook(32, 3, decay=1)
        for _ in range(20):
            book.update(centres[torch.randint(8, (64,))] + 0.001 * torch.randn(64, 3))
        assert book.distances(centres).min(1).values.max() < 1e-4


def update_half(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    book, features = book_and_features()
    for batch in features:
        book.update(batch[32 * rank :][:32])
    torch.save(book.state_dict(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def book_and_features() -> tuple[Codebook, torch.Tensor]:
    torch.manual_seed(0)
    book = Codebook(4, 3, decay=0.9)
    book.counts.fill_(1)
    book.sums.copy_(book.vectors)
    return book, torch.randn(3, 64, 3)


@pytest.mark.long
@pytest.mark.skipif(not (distributed.is_available() and distributed.is_gloo_available()), reason="no gloo")
def test_two_processes_make_the_codebook_of_one(tmp_path):
    processes.spawn(update_half, args=(str(tmp_path),), nprocs=2)
    book, features = book_and_features()
    for batch in features:
        book.update(batch)
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for key, whole in book.state_dict().items():
        assert torch.equal(halves[0][key], halves[1][key])
        torch.testing.assert_close(halves[0][key], whole)


class TestDSI:
    def test_the_structure_generator_is_causal(self):
        """A code changes the logits of later positions only; of the next one and of the row below too."""
        network = wake(StructureGenerator(4, WIDTH, 3, CODES)).eval()
        codes, condition = torch.randn(1, 4, 4, 5), torch.randn(1, 3, 4, 5)
        with torch.no_grad():
            before = network(codes, condition).flatten(2)
            for place in range(20):
                other = codes.clone()
                other[:, :, place // 5, place % 5] += 1
                changed = (network(other, condition).flatten(2) != before).any(1)[0]
                assert not changed[: place + 1].any()
                assert changed[place + 1 :].all()  # attention reaches all later positions

    def test_the_condition_reaches_every_logit(self):
        network = wake(StructureGenerator(4, WIDTH, 3, CODES)).eval()
        codes, condition = torch.randn(1, 4, 3, 3), torch.randn(1, 3, 3, 3)
        changed = network(codes, condition) != network(codes, condition + 1)
        assert changed.any(1).all()

    def test_drawn_codes_follow_the_logits(self):
        """The drawing, which works on parts of the map, agrees with the logits of the whole map."""
        network = make("dsi")
        assert isinstance(network, DSI)
        condition, uniform = torch.randn(2, network.condition.outputs, 3, 4), torch.rand(3, 4)
        with torch.no_grad():
            index = network.draw_structure(condition, uniform)
            logits = network.structure(network.vqvae.structure.look_up(index), condition)
        again = draw(logits.movedim(1, -1).flatten(0, 2), uniform.flatten().repeat(2))
        assert torch.equal(again.view_as(index), index)

    def test_sizes_of_the_codes(self):
        vqvae = HierarchicalVQVAE(WIDTH)
        image = torch.randn(1, 3, 32, 48)
        structure, texture = vqvae.encode(image)
        assert (structure.shape, texture.shape) == ((1, 4, 6), (1, 8, 12))
        decoded = vqvae.decode(vqvae.structure.look_up(structure), vqvae.texture.look_up(texture))
        assert decoded.shape == image.shape

    def test_the_texture_follows_the_structure(self):
        """Other structure codes give another image."""
        network = make("dsi")
        assert isinstance(network, DSI)
        visible, hole = network.prepare(*photo())
        codes = torch.randn(2, network.vqvae.code_channels, 4, 4)
        with torch.no_grad():
            assert not torch.equal(network.texture(visible, hole, codes), network.texture(visible, hole, -codes))


class TestICT:
    def test_the_transformer_sees_both_sides(self):
        network = wake(ColourTransformer(WIDTH, 9)).eval()
        tokens, masked = torch.randint(COLOURS, (1, 9)), torch.zeros(1, 9, dtype=torch.bool)
        masked[0, 4] = True
        with torch.no_grad():
            before = network(tokens, masked)[0, 4]
            for place in range(9):
                other = tokens.clone()
                other[0, place] = (other[0, place] + 1) % COLOURS
                same = torch.equal(network(other, masked)[0, 4], before)
                assert same == (place == 4)  # the value of the masked token doesn't matter

    def test_visible_tokens_are_kept_and_masked_ones_drawn_in_order(self):
        network = make("ict")
        assert isinstance(network, ICT)
        length = network.grid**2
        tokens, masked = torch.randint(COLOURS, (2, length)), torch.rand(2, length) < 0.3
        uniform = torch.rand(length)
        with torch.no_grad():
            drawn = network.draw_tokens(tokens, masked, uniform)
            assert torch.equal(drawn[~masked], tokens[~masked])
            for row in range(2):
                left = masked[row].clone()
                for place in masked[row].nonzero()[:, 0].tolist():
                    logits = network.transformer(drawn[row : row + 1], left[None])[:, place]
                    assert draw(logits, uniform[place], 50).item() == drawn[row, place]
                    left[place] = False

    def test_a_pixel_of_a_hole_masks_its_token(self):
        network = make("ict")
        assert isinstance(network, ICT)
        hole = torch.zeros(1, 1, 32, 32)
        hole[..., 0, 31] = 1
        masked = network.masked(hole)[0]
        assert masked.nonzero()[:, 0].tolist() == [network.grid - 1]

    def test_the_upsampler_follows_the_prior(self):
        network = make("ict")
        assert isinstance(network, ICT)
        visible, hole = network.prepare(*photo())
        prior = torch.rand_like(visible)
        with torch.no_grad():
            assert not torch.equal(network.upsampler(visible, hole, prior), network.upsampler(visible, hole, -prior))
