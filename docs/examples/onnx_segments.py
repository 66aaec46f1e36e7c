"""Panoptic segmentation with the exported ONNX model of a DETR; needs numpy, Pillow and onnxruntime, nothing else.

python onnx_segments.py FOLDER IMAGE OUT.png

FOLDER has model.onnx and config.json. The segments are printed as JSON, one a line; OUT.png has their ids.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def prepare(image, config):
    """Give the model's inputs: the image resized and normalised, and a mask of its padding (none)."""
    sizes = config["preprocessing"]
    shorter, longer = min(image.size), max(image.size)
    side = sizes["evaluation_side"]
    if longer / shorter * side > sizes["max_side"]:
        side = max(1, round(sizes["max_side"] * shorter / longer))
    image = image.resize([int(side * length / shorter) for length in image.size], Image.Resampling.BILINEAR)
    pixels = (np.asarray(image, np.float32) / 255 - sizes["mean"]) / sizes["std"]
    images = pixels.transpose(2, 0, 1)[None].astype(np.float32)
    return {"images": images, "padding_mask": np.zeros(images[:, 0].shape, bool)}


def segment(logits, masks, config, processed, target):
    """Merge the queries of one image: give the map of segment ids, 0 = void, and the segments."""
    categories = {category["id"]: category for category in config["categories"]}
    scores = np.exp(logits - logits.max(-1, keepdims=True))
    scores /= scores.sum(-1, keepdims=True)
    if config["merging"] == "masks":
        return merge_whole_masks(scores[:, :-1], masks, config, categories, processed, target)
    labels, best = scores.argmax(-1), scores.max(-1)
    of_stuff = config["threshold"] if config["threshold_stuff"] is None else config["threshold_stuff"]
    least = {each["id"]: config["threshold"] if each["isthing"] else of_stuff for each in config["categories"]}
    kept = [q for q in range(len(best)) if labels[q] in least and best[q] > least[labels[q]]]
    alive = np.ones(len(kept), bool)
    large = [Image.fromarray(masks[q]).resize(processed, Image.Resampling.BILINEAR) for q in kept]
    large = np.array([np.asarray(mask) for mask in large])
    while alive.any():
        # Each pixel goes to the query with the highest logit; the queries of one stuff class are one segment.
        winners = np.where(alive[:, None, None], large, -np.inf).argmax(0).astype(np.int32)
        winners = np.asarray(Image.fromarray(winners).resize(target, Image.Resampling.NEAREST))
        id_map, segments = np.zeros_like(winners), {}
        for k, query in enumerate(kept):
            category = categories[int(labels[query])]
            key = k if category["isthing"] else f"stuff {category['id']}"
            area = int((winners == k).sum())
            if alive[k]:
                new = {"id": len(segments) + 1, "class": category["name"], "score": 0.0, "area": 0, "queries": []}
                found = segments.setdefault(key, new)
                found["score"] = max(found["score"], float(best[query]))
                found["area"] += area
                found["queries"].append(k)
                id_map[winners == k] = found["id"]
        tiny = [k for found in segments.values() if found["area"] <= config["tiny_area"] for k in found["queries"]]
        if not tiny:
            return id_map, list(segments.values())
        alive[tiny] = False
    return np.zeros(target[::-1], np.int32), []


def merge_whole_masks(scores, masks, config, categories, processed, target):
    """Paint whole masks from the highest quality down; give what `segment` gives."""
    candidates = []
    for query, label in enumerate(scores.argmax(-1).tolist()):
        if label in categories and scores[query, label] > 0.2:
            logits = np.asarray(Image.fromarray(masks[query]).resize(processed, Image.Resampling.BILINEAR))
            inside = logits >= 0
            quality = float(scores[query, label] * (1 / (1 + np.exp(-logits[inside]))).mean()) if inside.any() else 0.0
            thing = categories[label]["isthing"]
            if quality >= config["quality_things" if thing else "quality_stuff"]:
                candidates.append((quality, label, inside))
    id_map, segments = np.zeros(processed[::-1], np.int32), {}
    for number, (quality, label, inside) in enumerate(sorted(candidates, key=lambda candidate: -candidate[0])):
        thing = categories[label]["isthing"]
        free = inside & (id_map == 0)
        if free.sum() >= (0.4 if thing else 0.2) * inside.sum():
            new = {"id": len(segments) + 1, "class": categories[label]["name"], "score": quality}
            id_map[free] = segments.setdefault(f"thing {number}" if thing else f"stuff {label}", new)["id"]
    id_map = np.asarray(Image.fromarray(id_map).resize(target, Image.Resampling.NEAREST))
    found = [{**each, "area": int((id_map == each["id"]).sum())} for each in segments.values()]
    kept = [each for each in found if each["area"] > config["tiny_area"]]
    numbers = np.zeros(len(found) + 1, np.int32)
    numbers[[each["id"] for each in kept]] = range(1, len(kept) + 1)
    return numbers[id_map], [{**each, "id": number} for number, each in enumerate(kept, 1)]


def main(folder, image, out):
    """Segment an image file."""
    config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    if config["kind"] != "detr":
        sys.exit(f"This is for DETR alone; {folder}/config.json says what to make of other models.")
    picture = ImageOps.exif_transpose(Image.open(image)).convert("RGB")
    session = onnxruntime.InferenceSession(str(Path(folder, "model.onnx")))
    inputs = prepare(picture, config)
    logits, _, masks = session.run(["pred_logits", "pred_boxes", "pred_masks"], inputs)
    height, width = inputs["images"].shape[2:]
    id_map, segments = segment(logits[0], masks[0], config, (width, height), picture.size)
    for found in segments:
        print(json.dumps({key: value for key, value in found.items() if key != "queries"}))
    Image.fromarray(id_map.astype(np.uint16)).save(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
