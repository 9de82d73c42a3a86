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
    # REDQ and RLPD: 10 members, targets from 2, 20 critic updates; the actor then climbs the members' mean.
    critic_members: PositiveInt = 2  # above 2 the actor climbs their mean, else their minimum
    critic_subset: PositiveInt | None = None  # members drawn for each target's minimum; None = all

    @model_validator(mode="after")
    def _subset_is_part_of_members(self) -> Self:
        if self.critic_subset is not None and self.critic_subset > self.critic_members:
            raise ValueError(
                f"critic_subset {self.critic_subset} is more than critic_members {self.critic_members}: "
                "the target's critics are drawn from the members"
            )
        return self


class EncoderConfig(Config):
    """The image encoder: sizes."""

    base_depth: PositiveInt = 32  # channels of the first convolution; doubles with each one
    features: PositiveInt = 256  # encoder output per frame


class LatentConfig(EncoderConfig):
    """The latent variable model of SLAC: sizes, likelihood and learning rate."""

    z1: PositiveInt = 32
    z2: PositiveInt = 256
    hidden: PositiveInt = 256  # width of the two layers of every Gaussian head
    # The one number the authors tuned per task (0.004 to 0.4): small objects need a small variance.
    decoder_variance: PositiveFloat = 0.1
    lr: PositiveFloat = 1e-4
    # Where the spread of the posterior and of the z2 networks starts; None = wherever softplus puts it
    # (0.69). A start at 0.08 spares a small budget the long phase in which the latents are mostly noise.
    initial_std: float | None = Field(None, gt=1e-4)
    # Shortens gradients that are more than this many times as long as usual, each tensor's on its own; None =
    # never, as published. Reconstructions get sharper until the learning rate is just small enough for them;
    # from 3e-4 on single updates then undo thousands, now and then (docs/results.md).
    gradient_limit: float | None = Field(None, ge=1)


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

    @property
    def observations(self) -> tuple[str, ...]:
        """What the agent learns from."""
        return ("state",)


class ImageConfig(MachineConfig):
    """What every agent that learns from images has."""

    sac: SacConfig = SacConfig()
    model: EncoderConfig = EncoderConfig()
    window: int = Field(8, ge=2)  # frames that the actor sees; a model sees one more
    precision: Literal["fp32", "bf16"] = "fp32"  # of the convolutions
    # Off in the papers. DrQ: 4; it draws anew for each image, here a window's frames move alike.
    random_shift: int = Field(0, ge=0)  # px, by which windows are moved at most before an update sees them
    # The robot's own joint positions and velocities join each frame's features: what it can feel, it need not
    # see. Never the object's.
    proprioception: bool = False

    @property
    def observations(self) -> tuple[str, ...]:
        """What the agent learns from."""
        return ("image", "joints") if self.proprioception else ("image",)


class SacPixelsConfig(ImageConfig):
    """Soft actor-critic from images, without a model of them: the critic trains the encoder."""

    kind: Literal["sac_pixels"] = "sac_pixels"
    window: int = Field(4, ge=2)  # frames that actor and critic see


class SlacConfig(ImageConfig):
    """Stochastic latent actor-critic from images."""

    kind: Literal["slac"] = "slac"
    model: LatentConfig = LatentConfig()
    model_batch: PositiveInt = 32  # the first windows of each batch; the rest trains only actor and critics
    # 0 in the paper: each update encodes its windows anew. With N actor and critics learn from features of
    # all stored frames that are renewed every N updates: many windows for the price of few, fresh ones for
    # each of `sac.critic_updates`, and features that are up to N updates old.
    feature_age: int = Field(0, ge=0)
    # On a GPU: the whole update as one CUDA graph. Never run by us.
    cuda_graph: bool = False

    @model_validator(mode="after")
    def _model_batch_is_part_of_batch(self) -> Self:
        if self.model_batch > self.sac.batch_size:
            raise ValueError(
                f"model_batch {self.model_batch} is more than sac.batch_size {self.sac.batch_size}: "
                "the model learns from the first windows of the same batch"
            )
        if self.feature_age and self.sac.batch_size * self.sac.critic_updates <= self.model_batch:
            raise ValueError(
                f"feature_age {self.feature_age} is for windows beside the model's, but model_batch "
                f"{self.model_batch} leaves none of sac.batch_size {self.sac.batch_size}: raise that, or set "
                "feature_age to 0"
            )
        if self.cuda_graph and not self.device.startswith("cuda"):
            raise ValueError(f"cuda_graph is for device cuda; it is {self.device}")
        if self.feature_age and self.random_shift:
            raise ValueError(
                f"feature_age {self.feature_age} keeps features of images as they are, random_shift "
                f"{self.random_shift} moves them: set one of the two to 0"
            )
        return self


AgentConfig = Annotated[SacStateConfig | SacPixelsConfig | SlacConfig, Field(discriminator="kind")]
