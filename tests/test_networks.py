"""The networks: the published ones to the last parameter, and fast paths equal to plain ones."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributions, nn
from torch.nn import functional as F

from agent.networks import (
    LEAK,
    Decoder,
    Encoder,
    EnsembleQ,
    Gaussian,
    GaussianHead,
    TanhGaussian,
    TanhGaussianPolicy,
    convolution,
    deconvolution,
)

IMAGE = (64, 64, 3)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("action_size", "actor", "critic"), [(6, 604_172, 141_569), (9, 611_090, 142_337)])
def test_actor_and_critic_have_the_published_parameter_counts(
    action_size: int, actor: int, critic: int, generator: torch.Generator
) -> None:
    policy = TanhGaussianPolicy(8 * 256 + 7 * action_size, action_size, (256, 256), generator)
    assert count(policy) == actor
    assert count(EnsembleQ(288, action_size, (256, 256), generator)) == 2 * critic


def test_encoder_and_decoder_have_the_published_parameter_counts(generator: torch.Generator) -> None:
    assert count(Encoder(IMAGE, 32, 256, generator)) == 1_438_784
    assert count(Decoder(IMAGE, 288, 32, generator)) == 1_569_603


def plain_encoder(encoder: Encoder, image: torch.Tensor) -> torch.Tensor:
    """The published stack: every layer a convolution, channels first."""
    x = image.contiguous().float() / 255
    for layer in encoder.convolutions:
        weight = layer.weight.contiguous()
        x = F.leaky_relu(F.conv2d(x, weight, layer.bias, stride=2, padding=weight.shape[-1] // 2), 0.2)
    last = encoder.last.weight.view(encoder.features, *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2)
    return F.leaky_relu(F.conv2d(x, last, encoder.last.bias), 0.2).flatten(1)


def plain_decoder(decoder: Decoder, latent: torch.Tensor) -> torch.Tensor:
    weight = decoder.weight.view(*decoder.side, len(decoder.bias), -1).permute(3, 2, 0, 1)
    x = F.leaky_relu(F.conv_transpose2d(latent[..., None, None], weight, decoder.bias), 0.2)
    for layer in decoder.deconvolutions:
        weight = layer.weight.contiguous()
        padding = weight.shape[-1] // 2
        x = F.leaky_relu(F.conv_transpose2d(x, weight, layer.bias, 2, padding, output_padding=1), 0.2)
    return x


def test_encoder_equals_the_published_stack_with_slope_two_tenths_to_the_end(
    generator: torch.Generator,
) -> None:
    encoder = Encoder(IMAGE, 4, 16, generator)
    image = torch.randint(0, 256, (5, 64, 64, 3), generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2)
    torch.testing.assert_close(encoder(image), plain_encoder(encoder, image), atol=1e-5, rtol=1e-5)
    assert LEAK == 0.2


def test_decoder_equals_the_published_stack_with_slope_two_tenths_to_the_end(
    generator: torch.Generator,
) -> None:
    decoder = Decoder(IMAGE, 12, 4, generator)
    latent = torch.randn(5, 12, generator=generator)
    mean = decoder(latent)
    torch.testing.assert_close(mean, plain_decoder(decoder, latent), atol=1e-5, rtol=1e-5)
    assert mean.shape == (5, 3, 64, 64)
    assert (mean < 0).any()  # leaky, not clipped


@pytest.mark.parametrize(("kernel", "padding"), [(3, (0, 1)), (5, (1, 2))])
def test_convolution_is_tensorflows_same_on_the_mirrored_image(
    kernel: int, padding: tuple[int, int], generator: torch.Generator
) -> None:
    layer = convolution(2, 3, kernel, generator)
    x = torch.randn(1, 2, 8, 8, generator=generator)
    same = F.conv2d(F.pad(x.flip(2, 3), padding * 2), layer.weight.flip(2, 3), layer.bias, stride=2)
    torch.testing.assert_close(layer(x), same.flip(2, 3))


@pytest.mark.parametrize("kernel", [3, 5])
def test_deconvolution_is_the_transpose_of_convolution(kernel: int, generator: torch.Generator) -> None:
    down, up = convolution(2, 3, kernel, generator), deconvolution(3, 2, kernel, generator)
    up.weight.data = down.weight.data
    x, y = torch.randn(1, 2, 8, 8, generator=generator), torch.randn(1, 3, 4, 4, generator=generator)
    torch.testing.assert_close((down(x) * y).sum(), (x * up(y)).sum())


def test_bfloat16_convolutions_stay_close_to_float32(generator: torch.Generator) -> None:
    exact = Encoder(IMAGE, 4, 16, torch.Generator().manual_seed(1))
    rough = Encoder(IMAGE, 4, 16, torch.Generator().manual_seed(1), bf16=True)
    image = torch.randint(0, 256, (3, 3, 64, 64), generator=generator, dtype=torch.uint8)
    assert rough(image).dtype == torch.float32
    torch.testing.assert_close(rough(image), exact(image), atol=0.02, rtol=0.05)


def test_other_image_sizes_work_in_steps_of_sixteen_and_others_are_refused(
    generator: torch.Generator,
) -> None:
    image = torch.zeros(2, 3, 32, 48, dtype=torch.uint8)
    assert Encoder((32, 48, 3), 2, 8, generator)(image).shape == (2, 8)
    assert Decoder((32, 48, 3), 5, 2, generator)(torch.zeros(2, 5)).shape == (2, 3, 32, 48)
    with pytest.raises(ValueError, match="multiples of 16"):
        Encoder((60, 64, 3), 2, 8, generator)


def test_weights_are_glorot_uniform_and_biases_zero(generator: torch.Generator) -> None:
    policy = TanhGaussianPolicy(300, 2, (256,), generator)
    first = policy.layers[0]
    assert isinstance(first, nn.Linear)
    limit = math.sqrt(6 / 556)
    assert first.weight.abs().max() <= limit
    assert first.weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.02)
    assert (first.bias == 0).all()
    end = Encoder(IMAGE, 8, 64, generator).last  # a 4x4 convolution in disguise: fans of 16 * 64 both ways
    assert end.weight.abs().max().item() == pytest.approx(math.sqrt(6 / 2048), rel=1e-3)


def test_one_seed_gives_one_network_whatever_the_global_generator_does() -> None:
    weights = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        weights.append(Encoder(IMAGE, 2, 8, torch.Generator().manual_seed(7)).state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_ensemble_equals_its_members_one_by_one(generator: torch.Generator) -> None:
    ensemble = EnsembleQ(3, 2, (16, 16), generator)
    state, action = torch.randn(7, 3, generator=generator), torch.randn(7, 2, generator=generator)
    weights = [p.detach() for p in ensemble.parameters()]
    for member, q in enumerate(ensemble(state, action)):
        x = torch.cat((state, action), 1)
        for layer in range(3):
            x = x @ weights[2 * layer][member] + weights[2 * layer + 1][member]
            x = x.relu() if layer < 2 else x
        torch.testing.assert_close(q, x[:, 0])
    assert not torch.equal(*ensemble(state, action))


def test_layer_norm_critics_see_no_scale_of_the_hidden_layers(generator: torch.Generator) -> None:
    ensemble = EnsembleQ(3, 2, (64,), generator, layer_norm=True)
    state, action = torch.randn(7, 3, generator=generator), torch.randn(7, 2, generator=generator)
    torch.testing.assert_close(
        ensemble(state, action), ensemble(100 * state, 100 * action), atol=1e-3, rtol=1e-2
    )


def test_gaussian_density_and_divergence_are_those_of_the_textbook(generator: torch.Generator) -> None:
    mean, other = torch.randn(2, 5, 4, generator=generator)
    std, spread = torch.rand(2, 5, 4, generator=generator) + 0.1
    ours, theirs = Gaussian(mean, std), distributions.Normal(mean, std)
    x = ours.sample(generator)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x).sum(-1))
    expected = distributions.kl_divergence(theirs, distributions.Normal(other, spread)).sum(-1)
    torch.testing.assert_close(ours.kl(Gaussian(other, spread)), expected)
    assert (ours.kl(ours) == 0).all()


def test_gaussian_head_hoists_what_is_known_early_without_changing_the_result(
    generator: torch.Generator,
) -> None:
    head = GaussianHead(9, 4, 16, generator)
    a, b, c = (torch.randn(5, 3, generator=generator) for _ in range(3))
    whole, hoisted = head(a, b, c), head.late(head.early(a, b), c)
    torch.testing.assert_close(whole.mean, hoisted.mean)
    torch.testing.assert_close(whole.std, hoisted.std)
    assert (whole.std > 1e-5).all()


def test_initial_std_sets_where_the_spread_starts_and_nothing_else(generator: torch.Generator) -> None:
    narrow = GaussianHead(9, 4, 256, torch.Generator().manual_seed(0), initial_std=0.08)
    usual = GaussianHead(9, 4, 256, torch.Generator().manual_seed(0))
    zero = torch.zeros(1, 9)
    torch.testing.assert_close(narrow(zero).std, torch.full((1, 4), 0.08))
    torch.testing.assert_close(usual(zero).std, torch.full((1, 4), math.log(2) + 1e-5))
    x = torch.randn(5, 9, generator=generator)
    assert torch.equal(narrow(x).mean, usual(x).mean)
    assert count(narrow) == count(usual)


def test_tanh_gaussian_density_is_that_of_the_change_of_variables(generator: torch.Generator) -> None:
    mean = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    log_std = torch.randn(6, 3, generator=generator, dtype=torch.float64) - 1
    action, log_prob = TanhGaussian(mean, log_std).sample(generator)
    squash = distributions.TanhTransform()
    reference = distributions.TransformedDistribution(distributions.Normal(mean, log_std.exp()), [squash])
    torch.testing.assert_close(log_prob, reference.log_prob(action).sum(-1), atol=1e-6, rtol=1e-6)


def test_tanh_gaussian_density_stays_finite_where_tanh_saturates(generator: torch.Generator) -> None:
    mean = torch.tensor([[40.0, -40.0]]).requires_grad_()
    action, log_prob = TanhGaussian(mean, torch.zeros(1, 2)).sample(generator)
    log_prob.sum().backward()
    assert action.abs().max() <= 1
    assert torch.isfinite(log_prob).all()
    assert mean.grad is not None
    assert torch.isfinite(mean.grad).all()


def test_greedy_action_is_the_squashed_mean() -> None:
    mean = torch.tensor([[0.3, -2.0]])
    assert torch.equal(TanhGaussian(mean, torch.zeros(1, 2)).mode, mean.tanh())


def test_policy_spread_is_clipped(generator: torch.Generator) -> None:
    policy = TanhGaussianPolicy(2, 1, (8,), generator)
    last = policy.layers[-1]
    assert isinstance(last, nn.Linear)
    for bias, expected in ((1e3, 2.0), (-1e3, -20.0)):
        nn.init.constant_(last.bias, bias)
        assert policy(torch.zeros(1, 2)).log_std.item() == expected
