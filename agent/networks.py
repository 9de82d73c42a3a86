"""The networks: image encoder and decoder, Gaussian heads, tanh-Gaussian policy, critics.

Glorot-uniform weights and zero biases everywhere, drawn from a passed generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAK = 0.2  # TensorFlow's slope, which the published SLAC uses; PyTorch's 0.01 is another network
MIN_STD = 1e-5
LOG_STD_RANGE = (-20.0, 2.0)
LOG_2PI = math.log(2 * math.pi)

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


class _Unset:
    """Leaves a layer's weights to _filled(): PyTorch's own drawing would use the global generator.

    The usual way around it, device="meta", imports sympy on its first use: 2.4 s before the first action.
    """

    def reset_parameters(self) -> None:
        pass


class _Linear(_Unset, nn.Linear):
    pass


class _Conv2d(_Unset, nn.Conv2d):
    pass


class _ConvTranspose2d(_Unset, nn.ConvTranspose2d):
    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        assert self.bias is not None
        assert output_size is None
        if self.kernel_size == (5, 5) and x.device.type == "cpu":
            y: Tensor = _BySubPixels.apply(x, self.weight)  # type: ignore[no-untyped-call]
        else:
            y = F.conv_transpose2d(x, self.weight, None, 2, self.kernel_size[0] // 2, 1)
        # Added here, the bias has a plain sum as gradient: oneDNN's own takes longer than that of the weights
        # (138 ms for both, 55 without the bias, 64 -> 32 channels, 288 frames).
        biased: Tensor = y.add_(self.bias.to(y.dtype)[:, None, None])
        return biased


class _BySubPixels(torch.autograd.Function):
    """A transposed 5x5 convolution of stride 2 without bias, forward as a 3x3 one to four times the channels.

    Even and odd rows and columns of the result each see their own taps of the kernel. For few channels oneDNN
    takes half the time for it (46 instead of 87 ms, 32 -> 3 channels, 288 frames), though not to go back.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        inputs, outputs = weight.shape[:2]
        # Row 2i + p of the result meets row i + j - 1 of x at row 4 + p - 2j of the kernel; row 5 is zero.
        taps = F.pad(weight, (0, 1, 0, 1)).view(inputs, outputs, 3, 2, 3, 2).flip(2, 4)
        kernel = taps.permute(3, 5, 1, 0, 2, 4).reshape(4 * outputs, inputs, 3, 3)
        height, width = x.shape[2:]
        y = F.conv2d(x, kernel, padding=1).permute(0, 2, 3, 1).reshape(-1, height, width, 2, 2 * outputs)
        size = (len(x), outputs, 2 * height, 2 * width)
        # Not a view, so that what comes next may change it in place.
        result = torch.empty(size, dtype=y.dtype, device=y.device, memory_format=torch.channels_last)
        rows = result.permute(0, 2, 3, 1).view(-1, height, 2, width, 2 * outputs)
        rows.copy_(y.transpose(2, 3))
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = (saved.to(gradient.dtype) for saved in ctx.saved_tensors)
        dx, dw, _ = torch.ops.aten.convolution_backward(
            gradient, x, weight, None, [2, 2], [2, 2], [1, 1], True, [1, 1], 1, [True, True, False]
        )
        return dx, dw


class _SquaredError(torch.autograd.Function):
    """|truth - mean|^2 of each image (N,), in a third of the passes over memory that the plain terms take."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, truth: Tensor) -> Tensor:
        error = truth.float().div_(255).sub_(mean)
        ctx.save_for_backward(error)
        flat = error.permute(0, 2, 3, 1).flatten(1)  # as it lies in memory
        squares: Tensor = torch.linalg.vecdot(flat, flat)
        return squares

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (error,) = ctx.saved_tensors
        return error * (-2 * gradient)[:, None, None, None], None


def squared_error(mean: Tensor, image: Tensor) -> Tensor:
    """Of mean images (N, C, H, W) in [0, 1] against uint8 ones of that shape: a sum for each (N,)."""
    error: Tensor = _SquaredError.apply(mean, image)  # type: ignore[no-untyped-call]
    return error


def glorot(weight: Tensor, fan_in: int, fan_out: int, generator: torch.Generator) -> None:
    """Fills weight, uniform within +-sqrt(6 / (fan_in + fan_out))."""
    limit = math.sqrt(6.0 / (fan_in + fan_out))
    with torch.no_grad():
        weight.uniform_(-limit, limit, generator=generator)


def linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A dense layer."""
    return _filled(_Linear(inputs, outputs), inputs, outputs, generator)


def noise_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal noise of the shape, device and type of x."""
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


@dataclass(frozen=True, slots=True)
class Gaussian:
    """A diagonal Gaussian over the last axis: mean and std (..., n)."""

    mean: Tensor
    std: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """A reparameterised draw (..., n)."""
        return self.mean + self.std * noise_like(self.mean, generator)

    def log_prob(self, x: Tensor) -> Tensor:
        """log density of x (..., n), summed over the last axis."""
        z = (x - self.mean) / self.std
        return (-0.5 * z.square() - self.std.log() - 0.5 * LOG_2PI).sum(-1)

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self || other) in closed form, summed over the last axis."""
        ratio = (self.std / other.std).square()
        shift = ((self.mean - other.mean) / other.std).square()
        return 0.5 * (ratio + shift - 1 - ratio.log()).sum(-1)

    def where(self, condition: Tensor, other: Gaussian) -> Gaussian:
        """This one where condition (..., 1) holds, else the other."""
        return Gaussian(
            torch.where(condition, self.mean, other.mean), torch.where(condition, self.std, other.std)
        )


class GaussianHead(nn.Module):
    """inputs -> 2 leaky layers -> diagonal Gaussian of `outputs` dimensions, std = softplus + 1e-5."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: int,
        generator: torch.Generator,
        initial_std: float | None = None,
    ) -> None:
        super().__init__()
        self.first = linear(inputs, hidden, generator)
        self.second = linear(hidden, hidden, generator)
        self.last = linear(hidden, 2 * outputs, generator)
        if initial_std is not None:
            with torch.no_grad():
                self.last.bias[outputs:].fill_(math.log(math.expm1(initial_std - MIN_STD)))

    def forward(self, *inputs: Tensor) -> Gaussian:
        """The distribution given the concatenated inputs (..., inputs)."""
        return self._after_first(self.first(torch.cat(inputs, -1)))

    def early(self, *inputs: Tensor) -> Tensor:
        """The share (..., hidden) of the leading inputs in the first layer, for a whole sequence at once."""
        known = torch.cat(inputs, -1)
        return F.linear(known, self.first.weight[:, : known.shape[-1]], self.first.bias)

    def late(self, early: Tensor, *inputs: Tensor) -> Gaussian:
        """The distribution given early() of the leading inputs, and the rest of them."""
        rest = torch.cat(inputs, -1)
        return self._after_first(early + F.linear(rest, self.first.weight[:, -rest.shape[-1] :]))

    def _after_first(self, first: Tensor) -> Gaussian:
        hidden = F.leaky_relu(self.second(F.leaky_relu(first, LEAK)), LEAK)
        mean, raw = self.last(hidden).chunk(2, -1)
        return Gaussian(mean, F.softplus(raw) + MIN_STD)


def convolution(inputs: int, outputs: int, kernel: int, generator: torch.Generator) -> nn.Conv2d:
    """A convolution that halves height and width.

    With symmetric padding the stride never reaches the last row and column of it: TensorFlow's "SAME", which
    the published network uses, on the mirrored image.
    """
    layer = _Conv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2)
    return _filled(layer, inputs * kernel**2, outputs * kernel**2, generator)


def deconvolution(inputs: int, outputs: int, kernel: int, generator: torch.Generator) -> nn.ConvTranspose2d:
    """The transpose of convolution(): doubles height and width."""
    layer = _ConvTranspose2d(inputs, outputs, kernel, 2, kernel // 2, output_padding=1)
    return _filled(layer, inputs * kernel**2, outputs * kernel**2, generator)


def _filled(layer: Layer, fan_in: int, fan_out: int, generator: torch.Generator) -> Layer:
    glorot(layer.weight, fan_in, fan_out, generator)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    # Channels last in memory: what the images are, and what the CPU's and the GPU's kernels are fastest with.
    if layer.weight.dim() == 4:
        layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    return layer


def side_after_convolutions(height: int, width: int) -> tuple[int, int]:
    """Height and width after four halvings. Raises ValueError for sizes that cannot be halved so often."""
    if height % 16 or width % 16 or min(height, width) < 16:
        raise ValueError(
            f"Images are {height}x{width}; the encoder halves them four times and needs multiples of 16. "
            "Set the camera's size to 64x64"
        )
    return height // 16, width // 16


class Encoder(nn.Module):
    """image -> feature vector: four strided convolutions and one over all that remains, all leaky."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        base_depth: int,
        features: int,
        generator: torch.Generator,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        self.bf16 = bf16
        self.features = features
        height, width = side_after_convolutions(*image_shape[:2])
        depths = [image_shape[2], *(base_depth * 2**i for i in range(4))]
        kernels = (5, 3, 3, 3)
        self.convolutions = nn.ModuleList(
            convolution(depths[i], depths[i + 1], kernels[i], generator) for i in range(4)
        )
        # The published 4x4 convolution without padding: the same numbers as a product, and faster.
        area = height * width
        self.last = linear(area * depths[-1], features, generator)
        glorot(self.last.weight, area * depths[-1], area * features, generator)

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> (N, features) float32."""
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.bf16):
            x = image.float().div_(255)
            for layer in self.convolutions:
                x = F.leaky_relu_(layer(x), LEAK)  # (N, depth, H/2, W/2), channels last in memory
            x = F.leaky_relu_(self.last(x.permute(0, 2, 3, 1).flatten(1)), LEAK)
        return x.float()


class Decoder(nn.Module):
    """latent -> mean image: the encoder mirrored, leaky to the very end as the published one."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        inputs: int,
        base_depth: int,
        generator: torch.Generator,
        bf16: bool = False,
    ) -> None:
        super().__init__()
        self.bf16 = bf16
        self.side = side_after_convolutions(*image_shape[:2])
        depths = [*(base_depth * 2**i for i in (3, 2, 1, 0)), image_shape[2]]
        kernels = (3, 3, 3, 5)
        # The published 4x4 transposed convolution from a single pixel, as a product; one bias per channel.
        area = self.side[0] * self.side[1]
        self.weight = nn.Parameter(torch.empty(area * depths[0], inputs))
        self.bias = nn.Parameter(torch.zeros(depths[0]))
        glorot(self.weight, area * inputs, area * depths[0], generator)
        self.deconvolutions = nn.ModuleList(
            deconvolution(depths[i], depths[i + 1], kernels[i], generator) for i in range(4)
        )

    def forward(self, latent: Tensor) -> Tensor:
        """(N, inputs) -> (N, C, H, W) float32, near [0, 1]."""
        with torch.autocast(latent.device.type, torch.bfloat16, enabled=self.bf16):
            x = F.linear(latent, self.weight).view(len(latent), *self.side, len(self.bias)) + self.bias
            x = F.leaky_relu_(x.permute(0, 3, 1, 2), LEAK)
            for layer in self.deconvolutions:
                x = F.leaky_relu_(layer(x), LEAK)  # (N, depth, 2H, 2W), channels last in memory
        return x.float()


@dataclass(frozen=True, slots=True)
class TanhGaussian:
    """A distribution over actions in (-1, 1): tanh of a diagonal Gaussian; mean and log_std (B, A)."""

    mean: Tensor
    log_std: Tensor

    @property
    def mode(self) -> Tensor:
        """The greedy action (B, A)."""
        return self.mean.tanh()

    def sample(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A reparameterised action (B, A) and its log density (B,)."""
        noise = noise_like(self.mean, generator)
        raw = self.mean + self.log_std.exp() * noise
        gaussian = -0.5 * noise.square() - self.log_std - 0.5 * LOG_2PI
        # log(1 - tanh(u)^2) without the cancellation: finite for any u.
        squash = 2 * (math.log(2) - raw - F.softplus(-2 * raw))
        return raw.tanh(), (gaussian - squash).sum(-1)


class TanhGaussianPolicy(nn.Module):
    """pi(a | o): ReLU layers -> mean and clipped log std of a TanhGaussian."""

    def __init__(
        self,
        inputs: int,
        action_size: int,
        hidden: Sequence[int],
        generator: torch.Generator,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in hidden:
            layers.append(linear(inputs, width, generator))
            layers += [nn.LayerNorm(width)] if layer_norm else []
            layers.append(nn.ReLU())
            inputs = width
        self.layers = nn.Sequential(*layers, linear(inputs, 2 * action_size, generator))

    def forward(self, observation: Tensor) -> TanhGaussian:
        """The action distribution at each observation (B, inputs)."""
        mean, log_std = self.layers(observation).chunk(2, -1)
        return TanhGaussian(mean, log_std.clamp(*LOG_STD_RANGE))


class EnsembleLinear(nn.Module):
    """One dense layer for each of E members in a single batched product."""

    def __init__(self, members: int, inputs: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(members, 1, outputs))
        glorot(self.weight, inputs, outputs, generator)

    def forward(self, x: Tensor) -> Tensor:
        """(E, B, inputs) -> (E, B, outputs)."""
        return torch.baddbmm(self.bias, x, self.weight)


class EnsembleNorm(nn.Module):
    """Layer normalisation with scale and shift of its own for each member."""

    def __init__(self, members: int, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(members, 1, width))
        self.shift = nn.Parameter(torch.zeros(members, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        """(E, B, width) -> (E, B, width)."""
        return torch.addcmul(self.shift, F.layer_norm(x, x.shape[-1:]), self.scale)


class EnsembleQ(nn.Module):
    """Q_i(s, a) of E independent critics at the cost of one."""

    def __init__(
        self,
        state_size: int,
        action_size: int,
        hidden: Sequence[int],
        generator: torch.Generator,
        layer_norm: bool = False,
        members: int = 2,
    ) -> None:
        super().__init__()
        self.members = members
        layers: list[nn.Module] = []
        inputs = state_size + action_size
        for width in hidden:
            layers.append(EnsembleLinear(members, inputs, width, generator))
            layers += [EnsembleNorm(members, width)] if layer_norm else []
            layers.append(nn.ReLU())
            inputs = width
        self.layers = nn.Sequential(*layers, EnsembleLinear(members, inputs, 1, generator))

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """(B, S), (B, A) -> (E, B)."""
        x = torch.cat((state, action), -1)
        q: Tensor = self.layers(x.expand(self.members, *x.shape))
        return q.squeeze(-1)
