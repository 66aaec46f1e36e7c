"""The model as a function that ``cvat-cli task auto-annotate`` runs; see docs/prediction.md."""

import cvat_sdk.auto_annotation as cvataa
import numpy as np
from cvat_sdk.masks import encode_mask
from cvat_sdk.models import LabeledShapeRequest
from PIL import Image
from scipy.ndimage import binary_fill_holes

from construction_panoptic.annotations.formats.cvat_export import pixel_outlines
from construction_panoptic.annotations.images import upright_rgb
from construction_panoptic.evaluation.inference import on_device
from construction_panoptic.models.files import load_model
from construction_panoptic.models.protocol import PanopticModel
from construction_panoptic.prediction.running import predict_pixels


def create(model: str, device: str = "auto") -> "PanopticFunction":
    """Make the function; ``cvat-cli`` calls this with what ``-p`` gives.

    ``model`` is the best.pt of a training or an exported model's folder, ``device`` ``auto``, ``cpu``, ``cuda`` or
    ``cuda:N``. `UserError`: the model cannot be used.
    """
    return PanopticFunction(on_device(load_model(model), device))


class PanopticFunction:
    """A detection function in the sense of cvat-sdk: gives an image's segments, things and stuff.

    Its labels are the classes of the model, of the type mask; CVAT matches them by their names.
    """

    def __init__(self, model: PanopticModel) -> None:
        self._model = model
        labels = [cvataa.label_spec(each["name"], each["id"], type="mask") for each in model.spec.categories]
        self.spec = cvataa.DetectionFunctionSpec(labels=labels)

    def detect(self, context: cvataa.DetectionFunctionContext, image: Image.Image) -> list[LabeledShapeRequest]:
        """Give a mask for each segment whose score is above ``context.conf_threshold``, by default the model's own.

        With ``context.conv_mask_to_poly``, give its parts as polygons without holes, which belong to one group.
        """
        threshold = context.conf_threshold
        if threshold is not None:
            threshold = min(threshold, float(np.nextafter(1, 0)))  # the model takes less than 1
        pixels = np.asarray(upright_rgb(image))
        (found,) = predict_pixels(self._model, [pixels], threshold)
        shapes = []
        for segment in found.segments_info:
            label, mask = segment["category_id"], found.id_map == segment["id"]
            if not context.conv_mask_to_poly:
                shapes.append(cvataa.mask(label, encode_mask(mask)))
                continue
            rings = pixel_outlines(binary_fill_holes(mask)) or []
            shapes += [cvataa.polygon(label, ring, group=segment["id"] * (len(rings) > 1)) for ring in rings]
        return shapes
