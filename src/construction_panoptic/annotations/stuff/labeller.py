"""The door for stuff labellers: from an image, and the things annotated in it, to a map of stuff ids."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, Protocol

from construction_panoptic.annotations.images import read_rgb
from construction_panoptic.annotations.merging.masks import union_mask
from construction_panoptic.annotations.stuff.fringe import Fringe, Mask
from construction_panoptic.annotations.stuff.label_maps import LabelMap, StuffOfImage, encode_labels
from construction_panoptic.parallel.workers import blocks_of, in_order

_READERS = 2


@dataclass(frozen=True)
class ImageToLabel:
    """An image, and the things that are annotated in it."""

    key: str
    location: str  # of its file, see `annotations.images`
    size: tuple[int, int]  # height and width, upright, in pixels
    codes: tuple[str, ...] = ()  # counts of the things' masks as compressed COCO run-length codes
    found: Any = None  # what the labeller's `find` gave
    digest: str = ""  # of all that its labels depend on

    def things(self) -> Mask:
        """Draw the things: bool [H, W], True where any of them is."""
        return union_mask((code.encode() for code in self.codes), *self.size)


class StuffMaps(NamedTuple):
    """The stuff of an image: uint8 [H, W] stuff ids, 0 = none."""

    labels: LabelMap  # without what annotated things explain, see `fringe`
    with_explained: LabelMap  # had all segments been used


class StuffLabeller(Protocol):
    """One way of labelling stuff: a class in a module of its own, and a line in `registry`.

    Reading ahead, batches, processes, the fringe, files and going on after an interruption are outside of it. It is
    pickled where there are more processes than one, so load a network when it is used. Classes go by name through
    `Taxonomy.stuff_id_of_name`.
    """

    identity: str  # of everything that the labels depend on, apart from the image, its things and what `find` gave
    device: str | None = None  # of its network, see `parallel.device`; None: it has none, so a process a CPU core
    batch_size: int = 1  # images that it labels at once

    def find(self, key: str) -> Any:  # noqa: ARG002
        """Look up what is known of an image beforehand, in the process that drives the others."""
        return None

    def read(self, image: ImageToLabel) -> Any:
        """Read what `label` needs of an image; called ahead, from threads. By default its pixels, uint8 [H, W, 3]."""
        return read_rgb(image.location)

    def label(self, images: Sequence[Any], things: Sequence[Mask]) -> Sequence[StuffMaps | None]:
        """Label a batch: what `read` gave of each image, and its things, bool [H, W]; None: nothing is known of it."""
        ...


def label_images(labeller: StuffLabeller, fringe: Fringe, images: Iterable[ImageToLabel]) -> Iterator[StuffOfImage]:
    """Label images one batch at a time, in order, while the next ones are being read.

    Raises `ImageError` where an image cannot be read, and what the labeller raises.
    """
    for batch in blocks_of(_read_ahead(labeller, images), labeller.batch_size):
        chosen, inputs, things = zip(*batch, strict=True)
        for image, maps, mask in zip(chosen, labeller.label(inputs, things), things, strict=True):
            if maps is None:
                yield StuffOfImage(image.key, None)
                continue
            after = fringe.pixels(maps.labels, mask)
            before = after if maps.with_explained is maps.labels else fringe.pixels(maps.with_explained, mask)
            yield StuffOfImage(image.key, encode_labels(maps.labels), before, after, image.digest)


def _read_ahead(labeller: StuffLabeller, images: Iterable[ImageToLabel]) -> Iterator[tuple[ImageToLabel, Any, Mask]]:
    def read(image: ImageToLabel) -> list[tuple[ImageToLabel, Any, Mask]]:
        return [(image, labeller.read(image), image.things())]

    if labeller.device is None:  # all cores are busy already
        yield from chain.from_iterable(map(read, images))
    else:
        with ThreadPoolExecutor(_READERS) as readers:
            yield from in_order(readers, read, images, labeller.batch_size + 1)


def label_block(labeller: StuffLabeller, fringe: Fringe, images: Iterable[ImageToLabel]) -> list[StuffOfImage]:
    """Label whole batches, in another process."""
    return list(label_images(labeller, fringe, images))
