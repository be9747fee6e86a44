"""The contrasts written down plainly: one matrix of all pairs, autograd, one process."""

import torch


def pairs(image_ids, text_ids, duplicates):
    """Masks of positive and of compared pairs, from lists of (target, groups, subset) rows."""
    positive = torch.zeros(len(image_ids), len(text_ids), dtype=torch.bool)
    compared = torch.ones_like(positive)
    for i, (target, groups, subset) in enumerate(image_ids):
        for j, (other_target, other_groups, other_subset) in enumerate(text_ids):
            own = target == other_target and target >= 0
            shared = bool({group for group in groups if group >= 0} & set(other_groups))
            positive[i, j] = own or (shared and duplicates == "positive")
            compared[i, j] = subset == other_subset and not (shared and not own and duplicates == "ignore")
    return positive & compared, compared


def sigmoid(image, text, scale, bias, positive, compared, weight):
    logits = scale * image @ text.T + bias
    loss = torch.nn.functional.softplus(torch.where(positive, -logits, logits), threshold=60)
    return ((loss * compared).sum(1) * weight).sum(), weight.sum()


def softmax(image, text, scale, positive, compared, weight):
    logits = (scale * image @ text.T).masked_fill(~compared, -torch.inf)
    total, count = image.sum() * 0, weight.sum() * 0
    for row in range(len(image)):
        if positive[row].any() and (compared[row] & ~positive[row]).any():
            total = total + weight[row] * (logits[row].logsumexp(0) - logits[row][positive[row]].mean())
            count = count + weight[row]
    return total, count
