"""What was made faster computes the same numbers as the plain way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from agent.build import build_policy
from agent.config import SlacConfig
from agent.networks import convolution, deconvolution, glorot, linear, squared_error


class NothingOnMeta(TorchDispatchMode):
    """Fails when a tensor is made on the device without numbers."""

    def __torch_dispatch__(
        self, work: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = work(*args, **(kwargs or {}))
        assert not getattr(result, "is_meta", False), work
        return result


def test_a_policy_is_built_without_the_meta_device_which_imports_for_seconds() -> None:
    with NothingOnMeta():
        build_policy(SlacConfig(), image_shape=(64, 64, 3), state_size=None, action_size=9, seed=0)


@pytest.mark.parametrize("kind", [linear, convolution, deconvolution])
def test_layers_draw_from_the_passed_generator_only(kind: Callable[..., Any]) -> None:
    before = torch.random.get_rng_state()
    generator, again = (torch.Generator().manual_seed(7) for _ in range(2))
    sizes = (5, 3) if kind is linear else (5, 3, 3)
    layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d = kind(*sizes, generator)
    assert torch.equal(torch.random.get_rng_state(), before)
    area = 1 if kind is linear else 9
    expected = torch.empty(layer.weight.shape)
    glorot(expected, 5 * area, 3 * area, again)
    assert torch.equal(layer.weight, expected)
    assert layer.bias is not None
    assert not layer.bias.any()


@pytest.mark.parametrize(("kernel", "dtype"), [(5, torch.float64), (5, torch.float32), (3, torch.float32)])
def test_deconvolution_and_its_gradients_are_those_of_pytorch(kernel: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    layer = deconvolution(8, 3, kernel, generator).to(dtype)
    nn.init.uniform_(layer.bias, generator=generator)  # type: ignore[arg-type]
    x = torch.randn(5, 8, 6, 10, generator=generator, dtype=dtype, requires_grad=True)
    truth = torch.randn(5, 3, 12, 20, generator=generator, dtype=dtype)
    plain = nn.functional.conv_transpose2d(x, layer.weight, layer.bias, 2, kernel // 2, 1)
    values, gradients = [], []
    for y in (layer(x), plain):
        values.append(y)
        loss = (nn.functional.leaky_relu_(y, 0.2) - truth).square().sum()
        gradients.append(torch.autograd.grad(loss, [x, layer.weight, layer.bias]))
    torch.testing.assert_close(*values)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_deconvolution_keeps_images_channels_last() -> None:
    layer = deconvolution(8, 3, 5, torch.Generator().manual_seed(3))
    x = torch.zeros(5, 8, 6, 10).contiguous(memory_format=torch.channels_last)
    assert layer(x).is_contiguous(memory_format=torch.channels_last)


def test_squared_error_and_its_gradient_are_those_of_the_plain_terms() -> None:
    generator = torch.Generator().manual_seed(4)
    image = torch.randint(0, 256, (6, 3, 16, 24), generator=generator, dtype=torch.uint8)
    image = image.contiguous(memory_format=torch.channels_last)
    mean = torch.rand(image.shape, generator=generator).contiguous(memory_format=torch.channels_last)
    weights = torch.randn(6, generator=generator)  # each image's own share in the loss
    mean.requires_grad_()
    values, gradients = [], []
    for error in (squared_error(mean, image), (image.float() / 255 - mean).square().sum((1, 2, 3))):
        values.append(error)
        gradients.append(torch.autograd.grad((weights * error).sum(), mean)[0])
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)
    assert gradients[0].is_contiguous(memory_format=torch.channels_last)
