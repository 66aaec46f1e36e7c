"""The parameters of training: what each means, its unit, where its default comes from, and strict checking.

Defaults are the recipe of DETR (Carion et al. 2020, "End-to-End Object Detection with Transformers", sections
3 and 4, appendix A.4) unless a field says otherwise.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from construction_panoptic.errors import ParameterError
from construction_panoptic.training import team
from construction_panoptic.training.device import process_count

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(gt=0)]
Rgb = tuple[float, float, float]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(_Settings):
    """The network's size and parts; the number of classes follows from the taxonomy."""

    backbone: Literal["tiny", "resnet18", "resnet34", "resnet50", "resnet101"] = Field(
        default="resnet50", description="Feature extractor; 'tiny' is a small network for trials on a CPU."
    )
    dilation: bool = Field(default=False, description="Dilated last stage (DETR's DC5): stride 16 instead of 32.")
    norm: Literal["frozen", "batch"] = Field(
        default="frozen",
        description="Batch normalisation: 'frozen' statistics as in DETR, or trained ('batch').",
    )
    num_queries: PositiveInt = Field(default=100, description="Object queries, the most segments found in an image.")
    hidden_dim: PositiveInt = Field(default=256, description="Width of the transformer, channels.")
    num_heads: PositiveInt = Field(default=8, description="Attention heads; must divide hidden_dim.")
    encoder_layers: Annotated[int, Field(ge=0)] = Field(default=6, description="Transformer encoder layers.")
    decoder_layers: PositiveInt = Field(default=6, description="Transformer decoder layers.")
    feedforward_dim: PositiveInt = Field(default=2048, description="Width of the feed-forward blocks, channels.")
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.1, description="Dropout in the transformer, share."
    )
    pre_norm: bool = Field(default=False, description="Layer normalisation before each block instead of after it.")
    auxiliary_outputs: bool = Field(default=True, description="Predict, and take a loss, after every decoder layer.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_dim % self.num_heads or self.hidden_dim % 16:
            raise ValueError(
                f"hidden_dim ({self.hidden_dim}) must be a multiple of 16 and of num_heads ({self.num_heads})"
            )
        return self


class OptimizerSettings(_Settings):
    """AdamW."""

    lr: Positive = Field(default=1e-4, description="Learning rate of everything but the backbone, per step.")
    lr_backbone: NotNegative = Field(default=1e-5, description="Learning rate of the backbone; 0 freezes it.")
    weight_decay: NotNegative = Field(default=1e-4, description="Decoupled weight decay.")
    clip_max_norm: NotNegative = Field(
        default=0.1, description="Largest L2 norm of the gradient; 0 leaves it unclipped."
    )


class ScheduleSettings(_Settings):
    """How the learning rates move; the factor is applied to every parameter group."""

    kind: Literal["step", "cosine", "one_cycle"] = Field(
        default="step",
        description="'step' as in DETR; 'cosine' (SGDR without restarts); 'one_cycle' (Smith 2018).",
    )
    drop_epoch: PositiveInt = Field(default=150, description="step: epochs between two drops.")
    drop_factor: Annotated[float, Field(gt=0.0, le=1.0)] = Field(default=0.1, description="step: factor of each drop.")
    warmup_epochs: NotNegative = Field(default=0.0, description="step and cosine: epochs of linear rise from 0.")
    rise_share: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        default=0.3,
        description="one_cycle: share of the training in which the rate rises (torch's OneCycleLR).",
    )
    start_factor: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        default=0.04, description="one_cycle: factor at the first step (torch's OneCycleLR: 1/25)."
    )
    final_factor: Share = Field(default=0.0, description="cosine and one_cycle: factor that the rate ends at.")


class AugmentationSettings(_Settings):
    """Sizes of the images in training and evaluation, and what is random; lengths are in pixels."""

    sides: tuple[PositiveInt, ...] = Field(
        default=tuple(range(480, 801, 32)),
        min_length=1,
        description="Shorter side in training, one drawn for each image.",
    )
    max_side: PositiveInt = Field(default=1333, description="Longest side, in training and evaluation.")
    flip: Share = Field(default=0.5, description="Probability of a horizontal flip.")
    crop: Share = Field(default=0.5, description="Probability of a resize to one of first_sides and a random crop.")
    first_sides: tuple[PositiveInt, ...] = Field(
        default=(400, 500, 600), min_length=1, description="Shorter side before the crop."
    )
    crop_min: PositiveInt = Field(default=384, description="Smallest side of a crop.")
    crop_max: PositiveInt = Field(default=600, description="Largest side of a crop.")
    evaluation_side: PositiveInt = Field(default=800, description="Shorter side in evaluation and prediction.")
    mean: Rgb = Field(default=(0.485, 0.456, 0.406), description="Mean of ImageNet's red, green, blue in 0…1.")
    std: tuple[Positive, Positive, Positive] = Field(
        default=(0.229, 0.224, 0.225), description="Standard deviation of ImageNet's red, green, blue in 0…1."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.crop_min > self.crop_max:
            raise ValueError(f"crop_min ({self.crop_min}) is above crop_max ({self.crop_max})")
        if self.crop_min > min(self.first_sides):
            raise ValueError(f"crop_min ({self.crop_min}) is above the smallest of first_sides")
        return self


class LossSettings(_Settings):
    """Weights of the loss terms."""

    ce: NotNegative = Field(default=1.0, description="Classification, cross-entropy.")
    bbox: NotNegative = Field(default=5.0, description="Boxes, L1 distance.")
    giou: NotNegative = Field(default=2.0, description="Boxes, generalised IoU.")
    mask: NotNegative = Field(default=1.0, description="Masks, sigmoid focal loss.")
    dice: NotNegative = Field(default=1.0, description="Masks, Dice loss.")
    no_object: Positive = Field(default=0.1, description="Weight of the no-object class within the cross-entropy.")


class MatchSettings(_Settings):
    """Costs by which predictions are assigned to segments (Hungarian matching)."""

    category: NotNegative = Field(default=1.0, description="Cost of the class: minus its probability.")
    bbox: NotNegative = Field(default=5.0, description="Cost of the box's L1 distance.")
    giou: NotNegative = Field(default=2.0, description="Cost of the box: minus the generalised IoU.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.category or self.bbox or self.giou):
            raise ValueError("all matching costs are 0; at least one must be above 0")
        return self


class ExecutionSettings(_Settings):
    """What runs the processes that train together; the result is the same with any."""

    engine: Literal["local", "ray"] = Field(
        default="local",
        description="Processes of this machine, or of a Ray cluster by Ray Train (RAY_ADDRESS, else a local one).",
    )


class StageSettings(_Settings):
    """One stage of training; the defaults are those of the detection stage."""

    epochs: PositiveInt = Field(default=200, description="Passes over the training images.")
    batch_size: PositiveInt = Field(default=4, description="Images a step, on each device.")
    accumulate: PositiveInt = Field(
        default=1,
        description="Parts that a batch is computed in, one after the other: the same step in less memory. A training "
        "can go on with another number.",
    )
    validation_batch_size: PositiveInt = Field(default=4, description="Images a forward pass in validation.")
    validate_every: PositiveInt = Field(
        default=1, description="Epochs between two validations; the last one always has one."
    )
    checkpoint_every_minutes: NotNegative | None = Field(
        default=10.0, description="Time between two checkpoints within an epoch; null or 0 saves after epochs alone."
    )
    progress_images: Annotated[int, Field(ge=0, le=16)] = Field(
        default=4, description="Validation images drawn at each validation, to watch the training; 0 draws none."
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        default=42, description="Seed of order, augmentation and dropout."
    )
    workers: Annotated[int, Field(ge=0)] = Field(default=2, description="Loading processes; 0 loads in the main one.")
    aspect_ratio_batches: bool = Field(
        default=False, description="Upright and lying images in batches of their own, which need less padding."
    )
    cache_mb: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Memory for decoded images in each loading process, MiB; 0 decodes every time."
    )
    device: str = Field(
        default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="'auto' takes CUDA if there is one."
    )
    devices: PositiveInt | Literal["auto"] = Field(
        default=1,
        description="Devices of this machine, or of the Ray cluster, that train together, a process each; 'auto' takes "
        "all CUDA devices. With device cpu they are processes that share the cores.",
    )
    execution: ExecutionSettings = Field(
        default_factory=ExecutionSettings, description="What runs the processes that train together."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Arithmetic of the network; 'auto' is bfloat16 autocast on CUDA, float32 on a CPU.",
    )
    weights: str | None = Field(
        default=None,
        min_length=1,
        description="Weights to start from: a published name ('detr-r50'), a path, or null.",
    )
    compile: bool = Field(
        default=False, description="Compile backbone and transformer with torch.compile: minutes once, then faster."
    )
    on_non_finite: Literal["stop", "skip"] = Field(
        default="stop",
        description="A loss or gradient that is not finite stops training, or its batch is skipped. To skip, "
        "numbers are read at every step, which makes CUDA wait.",
    )
    skip_at_most: Annotated[int, Field(ge=0)] = Field(
        default=10, description="skip: batches in the whole training; one more stops it."
    )
    failed_batch: str | None = Field(
        default="data/06_models/detection/failed_batch.pt",
        min_length=1,
        description="File for the batch that stops training, for `kedro replay`; null saves none.",
    )
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = Field(default_factory=ScheduleSettings)
    augmentation: AugmentationSettings = Field(default_factory=AugmentationSettings)
    losses: LossSettings = Field(default_factory=LossSettings)
    matching: MatchSettings = Field(default_factory=MatchSettings)

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        if self.devices != 1 and self.device.startswith("cuda:"):
            raise ValueError(f"device {self.device} is one device; set device: cuda or devices: 1")
        if self.devices != 1 and self.on_non_finite == "skip":
            raise ValueError("on_non_finite: skip needs devices: 1")
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate ({self.accumulate}) is above batch_size ({self.batch_size})")
        return self

    @property
    def processes(self) -> int:
        """The number of processes that train together; with Ray and ``auto``, only these processes know it.

        Raises:
            ParameterError: there are not so many CUDA devices.
        """
        if self.execution.engine == "ray":
            return team.size() if self.devices == "auto" else self.devices
        return process_count(self.devices, self.device)

    def fingerprint(self) -> dict[str, Any]:
        """The settings that the trained weights depend on, as plain data, to compare before a resume.

        Left out are where and how fast it runs and, for the step schedule, the number of epochs, so that a
        training can be made longer.
        """
        neutral = {"accumulate", "workers", "cache_mb", "device", "validation_batch_size", "validate_every"}
        neutral |= {
            "on_non_finite",
            "skip_at_most",
            "failed_batch",
            "checkpoint_every_minutes",
            "progress_images",
            "execution",
        }
        if self.schedule.kind == "step":
            neutral.add("epochs")
        kept = self.model_dump(mode="json", exclude=neutral)
        kept["devices"] = self.processes
        for name, only in (("aspect_ratio_batches", False), ("devices", 1)):
            if kept[name] == only:  # checkpoints from before there was a choice go on
                del kept[name]
        return kept


class MaskHeadSettings(StageSettings):
    """The mask-head stage: fewer epochs; the rate drops after 3/5 of them, as DETR's 15 of 25."""

    epochs: PositiveInt = Field(default=50, description="Passes over the training images.")
    batch_size: PositiveInt = Field(default=1, description="Images a step, on each device.")
    validation_batch_size: PositiveInt = Field(default=1, description="Images a forward pass in validation.")
    schedule: ScheduleSettings = Field(default_factory=lambda: ScheduleSettings(drop_epoch=30))
    failed_batch: str | None = Field(
        default="data/06_models/mask_head/failed_batch.pt",
        min_length=1,
        description="File for the batch that stops training, for `kedro replay`; null saves none.",
    )
    attention_gain: Positive = Field(
        default=1.0,
        description="Factor on the initial weights that read the attention maps; 1 is the published start, more "
        "parts the masks sooner in short trainings.",
    )
    cache: Literal["none", "memory", "disk"] = Field(
        default="none",
        description="Where the frozen detector's outputs of training images are kept, so that it runs once an image; "
        "needs a training without augmentation.",
    )
    cache_limit_mb: PositiveInt = Field(
        default=8192, description="Most that is kept, MiB; for images beyond it the detector runs each time."
    )
    cache_folder: str = Field(
        default="data/06_models/mask_head/features",
        min_length=1,
        description="disk: folder of the kept files; a relative one is seen from where the training is started.",
    )

    @model_validator(mode="after")
    def _check_cache(self) -> Self:
        augmentation = self.augmentation
        still = {
            "augmentation.flip: 0": augmentation.flip == 0,
            "augmentation.crop: 0": augmentation.crop == 0,
            "one number in augmentation.sides": len(set(augmentation.sides)) == 1,
        }
        wanted = [what for what, is_so in still.items() if not is_so]
        if self.cache != "none" and wanted:
            raise ValueError(
                f"cache: {self.cache} needs images that are the same in every epoch: set {', '.join(wanted)}, "
                "or cache: none"
            )
        return self

    def fingerprint(self) -> dict[str, Any]:
        """As for every stage. What is kept changes no number; running the detector image by image may round."""
        kept = super().fingerprint()
        for name in ("cache", "cache_limit_mb", "cache_folder"):
            del kept[name]
        return kept | ({"image_by_image": True} if self.cache != "none" and self.batch_size > 1 else {})


AnySettings = TypeVar("AnySettings", bound=BaseModel)


def parse(model: type[AnySettings], data: Mapping[str, Any] | AnySettings | None, prefix: str) -> AnySettings:
    """Check parameters and give them as typed settings.

    Args:
        model: the settings class.
        data: the parameters as nested dicts; None means every default; settings are returned as they are.
        prefix: name of the parameters' root, for messages, such as ``detection``.

    Raises:
        ParameterError: one line that names each wrong parameter, e.g. ``detection.optimizer.lr: …``.
    """
    if isinstance(data, model):
        return data
    if data is not None and not isinstance(data, Mapping):
        raise ParameterError(f"{prefix}: expected a group of parameters, not {data!r}")
    try:
        return model.model_validate(dict(data or {}))
    except ValidationError as error:
        raise ParameterError("; ".join(_describe(detail, model, prefix) for detail in error.errors())) from None


def _describe(detail: Any, model: type[BaseModel], prefix: str) -> str:
    location = [str(part) for part in detail["loc"]]
    name = ".".join([prefix, *location])
    if detail["type"] == "extra_forbidden":
        known = ", ".join(_group(model, location[:-1]).model_fields)
        return f"{name}: there is no such parameter; known are {known}"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] in {"value_error", "missing"}:
        return f"{name}: {message}"
    return f"{name}: {message[:1].lower()}{message[1:]}, not {detail['input']!r}"


def _group(model: type[BaseModel], location: list[str]) -> type[BaseModel]:
    for part in location:
        annotation = model.model_fields[part].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return model
