"""Objectives that each break one law, and one that breaks none. Kept to show what the contract suite notices."""

import torch

from ctgrounding import distributed
from ctgrounding.functional.localization import depth_logits, depth_targets, reachable, soft_cross_entropy
from ctgrounding.objectives.base import Objective
from ctgrounding.objectives.snippet_localization import SnippetLocalization
from ctgrounding.types import Term


def wide(values):
    return values.to(torch.promote_types(values.dtype, torch.float32))


class Pull(Objective):
    """Pulls each scan to its report and keeps every law: the pattern that the broken ones depart from."""

    requires = frozenset({"global", "report_text"})

    def __init__(self, dims, *, margin: float = 1.0):
        super().__init__()
        self.margin = margin
        self.offset = torch.nn.Parameter(torch.zeros(dims.image_heads["main"], dtype=torch.float64))

    def pairs(self, encoded, batch):
        reported = batch["report_text"] >= 0
        scans = encoded.image("global", "main")[reported]
        return scans + self.offset.to(scans.dtype), encoded.texts(batch["report_text"][reported], "main")

    def forward(self, encoded, batch):
        scans, reports = self.pairs(encoded, batch)
        loss = wide(self.margin * (scans - reports).square().sum(1))
        return {"pull": Term(loss.sum(), loss.detach().new_tensor(len(loss)))}


class Repel(Pull):
    """Pushes scans from all ranks' reports; keeps every law."""

    def all_reports(self, reports):
        return distributed.gather(reports)

    def forward(self, encoded, batch):
        scans, reports = self.pairs(encoded, batch)
        loss = wide((self.margin * scans @ self.all_reports(reports).T).exp()).sum(1)
        return {"repel": Term(loss.sum(), loss.detach().new_tensor(len(loss)))}


class MeanInsteadOfSum(Pull):
    def forward(self, encoded, batch):
        term = super().forward(encoded, batch)["pull"]
        return {"pull": Term(term.total / term.weight.clamp(min=1), term.weight.clamp(max=1))}


class MeanWithWeightOfSum(Pull):
    def forward(self, encoded, batch):
        term = super().forward(encoded, batch)["pull"]
        return {"pull": Term(term.total / term.weight.clamp(min=1), term.weight)}


class DetachedGather(Repel):
    """Right in value, and right in every way on one process; on several the texts get no gradient."""

    def all_reports(self, reports):
        return distributed.gather(reports.detach()) if distributed.world_size() > 1 else reports


class OwnPartOfGatherOnly(Repel):
    """Gathers without gradient and puts its own rows back: other ranks' share of the gradient is lost."""

    def all_reports(self, reports):
        everyone = list(distributed.gather(reports.detach()).split(distributed.counts(len(reports))))
        everyone[distributed.rank()] = reports
        return torch.cat(everyone)


class LocalNegativesOnly(Repel):
    def all_reports(self, reports):
        return reports


class MeanOverAllRanks(Pull):
    """Divided as the task will divide it once more: equal on any number of ranks, and too small."""

    def forward(self, encoded, batch):
        term = super().forward(encoded, batch)["pull"]
        return {"pull": Term(term.total / distributed.sum_over_ranks(term.weight).clamp(min=1), term.weight)}


class AveragesPerRank(Pull):
    """Divides by this rank's number, and by the number of ranks as if the counts were equal."""

    def forward(self, encoded, batch):
        term = super().forward(encoded, batch)["pull"]
        everyone = distributed.sum_over_ranks(term.weight)
        return {"pull": Term(term.total / term.weight.clamp(min=1) * everyone / distributed.world_size(), term.weight)}


class UndeclaredKey(Pull):
    requires = frozenset({"global"})


class UndeclaredField(Pull):
    def forward(self, encoded, batch):
        return super().forward(encoded, batch) if encoded.depth_mm.numel() >= 0 else {}


class UnusedKey(Pull):
    requires = Pull.requires | {"labels"}


class IgnoresValidBins(SnippetLocalization):
    def forward(self, encoded, batch):
        scan, interval_mm = batch["snippet_scan"], batch["snippet_depth_mm"]
        depth_mm, valid = encoded.depth_mm[scan], torch.ones_like(encoded.depth_valid[scan])
        targets = depth_targets(depth_mm, valid, interval_mm, axial_mm=self.axial_mm)
        logits = depth_logits(
            encoded.image("depth", self.image_head)[scan],
            encoded.texts(batch["snippet_text"], self.text_head),
            self.tau,
        )
        weight = reachable(depth_mm, valid, interval_mm, self.axial_mm)
        return {"depth": Term((soft_cross_entropy(logits, targets, valid) * weight).sum(), weight.sum().float())}


class LeavesEarly(Pull):
    """Where nothing is to be done it returns a zero that no head knows of."""

    def forward(self, encoded, batch):
        if not bool((batch["report_text"] >= 0).any()):
            zero = torch.zeros((), requires_grad=True)
            return {"pull": Term(zero, torch.zeros(()))}
        return super().forward(encoded, batch)


class ReturnsNoGraph(Pull):
    def forward(self, encoded, batch):
        if not bool((batch["report_text"] >= 0).any()):
            return {"pull": Term(torch.zeros(()), torch.zeros(()))}
        return super().forward(encoded, batch)


class SkipsACollective(Repel):
    def all_reports(self, reports):
        return distributed.gather(reports) if len(reports) else reports


class NotANumberWhenEmpty(Pull):
    def forward(self, encoded, batch):
        scans, reports = self.pairs(encoded, batch)
        loss = (scans - reports).square().sum(1) * self.margin
        return {"pull": Term(loss.mean() * len(loss), loss.detach().new_tensor(len(loss)))}


class DependsOnOrder(Pull):
    def forward(self, encoded, batch):
        scans, reports = self.pairs(encoded, batch)
        loss = (scans - reports).square().sum(1) * self.margin * torch.arange(1, len(scans) + 1)
        return {"pull": Term(loss.sum(), loss.detach().new_tensor(len(loss)))}


class UnusedArgument(Pull):
    def __init__(self, dims, *, margin: float = 1.0, smoothing: float = 0.1):
        super().__init__(dims, margin=margin)
        self.smoothing = smoothing


class AnyArgument(Pull):
    def __init__(self, dims, **settings):
        super().__init__(dims)


class GlobalRandomness(Pull):
    def forward(self, encoded, batch):
        term = super().forward(encoded, batch)["pull"]
        return {"pull": Term(term.total * torch.rand(()), term.weight)}


class NarrowSum(Pull):
    def forward(self, encoded, batch):
        scans, reports = self.pairs(encoded, batch)
        loss = self.margin * (scans - reports).square().sum(1)
        return {"pull": Term(loss.sum(), loss.detach().new_tensor(len(loss)))}


class ForgetsItsState(Pull):
    def set_label_counts(self, counts):
        self.counts = counts

    def forward(self, encoded, batch):
        term = super().forward(encoded, batch)["pull"]
        return {"pull": Term(term.total * (1 + self.counts.sum() if hasattr(self, "counts") else 1), term.weight)}


class CannotBePickled(Pull):
    def __init__(self, dims, *, margin: float = 1.0):
        super().__init__(dims, margin=margin)
        self.scaled = lambda value: value * margin


class ReturnsATensor(Pull):
    def forward(self, encoded, batch):
        return super().forward(encoded, batch)["pull"].total


class MixesDevices(Pull):
    def pairs(self, encoded, batch):
        scans, reports = super().pairs(encoded, batch)
        return scans * torch.ones(len(scans), 1, dtype=scans.dtype), reports


class CountsOnTheCpu(Pull):
    def forward(self, encoded, batch):
        term = super().forward(encoded, batch)["pull"]
        return {"pull": Term(term.total, torch.tensor(float(term.weight), dtype=term.weight.dtype))}


class FillsTheBatch(Pull):
    def forward(self, encoded, batch):
        batch["report_text"][batch["report_text"] < 0] = -2
        return super().forward(encoded, batch)


class EmptiesTheBatch(Pull):
    def forward(self, encoded, batch):
        terms = super().forward(encoded, batch)
        batch.pop("report_text")
        return terms


class SeedsForAll(Pull):
    def forward(self, encoded, batch):
        torch.manual_seed(0)
        return super().forward(encoded, batch)


class HeadByName(Pull):
    def pairs(self, encoded, batch):
        return encoded.image("global", "organ"), encoded.texts(batch["report_text"], "organ")


class DeclaresAList(Pull):
    requires = sorted(Pull.requires)


class NoObjective(torch.nn.Module):
    def __init__(self, dims):
        super().__init__()
