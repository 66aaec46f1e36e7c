"""The export formats that can be read, in the order in which they are tried."""

from construction_panoptic.annotations.formats.coco_panoptic import CocoPanopticReader
from construction_panoptic.annotations.formats.cvat_coco import CvatCocoReader
from construction_panoptic.annotations.formats.reader import AnnotationReader

READERS: tuple[AnnotationReader, ...] = (CocoPanopticReader(), CvatCocoReader())
