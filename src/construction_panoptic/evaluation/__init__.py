"""How good the model is: predictions as COCO files, panoptic quality, average precision, and their tables."""
