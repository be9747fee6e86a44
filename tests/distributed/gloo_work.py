"""What the ranks of the gloo tests do; importable, so that other processes find it."""

import copy

import torch

from ctgrounding import distributed
from ctgrounding.functional.sigmoid_contrast import sigmoid_contrast
from ctgrounding.objectives import DiseasePrompts, GlobalContrastive, OrganGrounding, SnippetLocalization
from ctgrounding.testing.outcome import run_rank
from ctgrounding.testing.scans import tiny_scans
from ctgrounding.testing.tiny import TinyHeads, tiny_dims, tiny_questions_file


def objectives(questions):
    dims = tiny_dims()
    return {
        "sigmoid": GlobalContrastive(dims),
        "softmax": GlobalContrastive(dims, loss="softmax"),
        "prompts": DiseasePrompts(dims, questions=questions),
        "depth": SnippetLocalization(dims),
        "organs": OrganGrounding(dims),
    }


def gathers(counts):
    """Rows, their gradient, strings and sums of ragged ranks."""
    rank = distributed.rank()
    rows = (torch.arange(counts[rank] * 2, dtype=torch.float64).view(-1, 2) + 100 * rank).requires_grad_()
    gathered = distributed.gather(rows)
    ((rank + 1) * gathered.square().sum()).backward()
    narrow = distributed.gather(rows.detach().bfloat16())
    return (
        gathered.detach(),
        rows.grad,
        narrow,
        distributed.gather_strings([f"{rank}-ä-{number}" for number in range(counts[rank])]),
        distributed.sum_over_ranks(torch.tensor([rank, 1])).tolist(),
        distributed.gather(torch.tensor([True] * counts[rank], dtype=torch.bool)).tolist(),
    )


def contrast(counts, dtype, scale):
    """Gradients of the sigmoid contrast where rows pair up by place."""
    rank = distributed.rank()
    image, text = everyone(sum(counts), dtype)
    part = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    leaves = [leaf[part].clone().requires_grad_() for leaf in (image, text)]
    leaves += [torch.tensor(value, dtype=dtype, requires_grad=True) for value in (scale, -10.0)]
    term = sigmoid_contrast(*leaves)
    term.total.backward()
    return term.total.detach(), [leaf.grad for leaf in leaves]


def everyone(rows, dtype):
    generator = torch.Generator().manual_seed(rows)
    unit = torch.nn.functional.normalize(torch.randn(2, rows, 16, generator=generator, dtype=torch.float64), dim=-1)
    return unit[0].to(dtype), unit[1].to(dtype)


def step(name, questions, scans_of_ranks):
    """One step of an objective on this rank's scans."""
    objective = copy.deepcopy(objectives(questions)[name])
    return run_rank(objective, TinyHeads(), scans_of_ranks[distributed.rank()], 0, 0, None)


def steps_with_absences(questions, steps):
    """Many steps in which parts are absent at random and the last rank has nothing; see :func:`summary`."""
    made = objectives(questions)
    found = []
    for number in range(steps):
        scans = absences(number, distributed.world_size())[distributed.rank()]
        found += [summary(run_rank(objective, TinyHeads(), scans, step=number)) for objective in made.values()]
    return found


def summary(outcome):
    """Totals, weights and the gradients of all heads in one row, as NumPy, which travels without file handles."""
    heads = [
        outcome.gradients.get(f"head {name}", torch.zeros_like(head)) for name, head in TinyHeads().named_parameters()
    ]
    parts = [*outcome.totals.values(), *outcome.weights.values(), *(head.flatten() for head in heads)]
    return torch.cat([part.detach().double().flatten() for part in parts]).numpy()


def absences(step, world):
    """Scans of each rank, each bare with a probability of its rank's own; none on the last."""
    generator = torch.Generator().manual_seed(step)
    scans = tiny_scans(6, seed=step)
    parts = [scans[rank :: world - 1] if rank < world - 1 else [] for rank in range(world)]
    bare = torch.rand(world, generator=generator) < 0.5
    return [[scan.bare() for scan in part] if bare[rank] else part for rank, part in enumerate(parts)]


def questions_file():
    return str(tiny_questions_file())
