"""What can be set about an agent; the defaults are the published settings of SAC (2018b) and SLAC."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator


class Config(BaseModel):
    """A frozen configuration section: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SacConfig(Config):
    """The soft actor-critic core that every agent shares."""

    hidden: tuple[PositiveInt, ...] = (256, 256)  # ReLU layers of actor and critics
    batch_size: PositiveInt = 256
    actor_lr: PositiveFloat = 3e-4
    critic_lr: PositiveFloat = 3e-4
    temperature_lr: PositiveFloat = 3e-4
    discount: float = Field(0.99, ge=0, le=1)  # per agent step
    polyak: float = Field(0.005, gt=0, le=1)  # how far the target critics follow at each update
    temperature: Literal["automatic", "fixed"] = "automatic"
    initial_temperature: PositiveFloat = 1.0
    target_entropy: float | None = None  # nats; None = -(action size)
    # Off in the papers; both help on few robot hours.
    critic_updates: PositiveInt = 1  # critic steps per update; the actor always takes one
    critic_layer_norm: bool = False
    actor_layer_norm: bool = False


class LatentConfig(Config):
    """The latent variable model of SLAC: sizes, likelihood and learning rate."""

    base_depth: PositiveInt = 32  # channels of the first convolution; doubles with each one
    features: PositiveInt = 256  # encoder output per frame
    z1: PositiveInt = 32
    z2: PositiveInt = 256
    hidden: PositiveInt = 256  # width of the two layers of every Gaussian head
    # The one number the authors tuned per task (0.004 to 0.4): small objects need a small variance.
    decoder_variance: PositiveFloat = 0.1
    lr: PositiveFloat = 1e-4
    # Where the spread of the posterior and of the z2 networks starts; None = wherever softplus puts it
    # (0.69). A start at 0.08 spares a small budget the long phase in which the latents are mostly noise.
    initial_std: float | None = Field(None, gt=1e-4)


class MachineConfig(Config):
    """Where and how exactly an agent computes."""

    device: str = "cpu"
    # PyTorch's word for how exact float32 products must be. "medium" lets CPUs with AMX and GPUs round the
    # factors to bfloat16; on other CPUs it stays float32 by other kernels, twice as fast on AMD (measured:
    # 170 instead of 330 us for 256^3 on Zen 5, largest error 1.5e-6 instead of 0.9e-6).
    matmul: Literal["highest", "high", "medium"] = "highest"


class SacStateConfig(MachineConfig):
    """Soft actor-critic from the state vector."""

    kind: Literal["sac_state"] = "sac_state"
    sac: SacConfig = SacConfig()


class SlacConfig(MachineConfig):
    """Stochastic latent actor-critic from images."""

    kind: Literal["slac"] = "slac"
    sac: SacConfig = SacConfig()
    model: LatentConfig = LatentConfig()
    window: int = Field(8, ge=2)  # frames that the actor sees; the model sees one more
    model_batch: PositiveInt = 32  # the first windows of each batch; the rest trains only actor and critics
    precision: Literal["fp32", "bf16"] = "fp32"  # of the convolutions

    @model_validator(mode="after")
    def _model_batch_is_part_of_batch(self) -> Self:
        if self.model_batch > self.sac.batch_size:
            raise ValueError(
                f"model_batch {self.model_batch} is more than sac.batch_size {self.sac.batch_size}: "
                "the model learns from the first windows of the same batch"
            )
        return self


AgentConfig = Annotated[SacStateConfig | SlacConfig, Field(discriminator="kind")]
