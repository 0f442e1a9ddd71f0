"""Embedded models: one folder each, as `save_pretrained` writes it, with its model card."""
