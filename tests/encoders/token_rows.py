"""Texts as the padded rows that text encoders take."""

import torch


def rows_of(encoder, texts):
    rows = [encoder.tokenizer(text) for text in texts]
    mask = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.bool)
    tokens = torch.full(mask.shape, encoder.tokenizer.pad_id)
    for place, row in enumerate(rows):
        tokens[place, : len(row)], mask[place, : len(row)] = row, True
    return tokens, mask
