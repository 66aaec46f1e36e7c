"""Panoptic models of `transformers`: EoMT, Mask2Former, MaskFormer, OneFormer. It knows no pipelines or tracking."""
