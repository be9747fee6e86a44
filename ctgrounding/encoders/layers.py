"""Which parts of a tower come first: what rates that fall by layer and compiling by block count."""

from collections.abc import Mapping, Sequence

from torch import nn

from ctgrounding.errors import ConfigError

Layer = tuple[str, ...]
"""Names of modules or parameters of a tower that lie at one depth."""


def blocks(tower: nn.Module) -> dict[str, nn.Module]:
    """The numbered parts of a tower by name, such as ``blocks.0``: outermost ones that have parts of their own.

    Examples:
        >>> tower = nn.ModuleDict({"stem": nn.Linear(2, 2), "blocks": nn.Sequential(nn.Sequential(nn.Linear(2, 2)))})
        >>> list(blocks(tower))
        ['blocks.0']
    """
    found: dict[str, nn.Module] = {}
    for name, module in tower.named_modules():
        numbered = name.rpartition(".")[2].isdigit() and any(True for _ in module.children())
        if numbered and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return found


def numbered_layers(tower: nn.Module) -> list[Layer]:
    """Layers by a rule that fits most towers: each of :func:`blocks` is one, and so is what stands between them.

    Parts count in the order in which their module registers them.

    Examples:
        >>> tower = nn.ModuleDict({"stem": nn.Linear(2, 2), "blocks": nn.Sequential(nn.Sequential(nn.Linear(2, 2)))})
        >>> numbered_layers(tower)
        [('stem.weight', 'stem.bias'), ('blocks.0',)]
    """
    numbered = blocks(tower)
    layers: list[list[str]] = []
    is_between = False
    for name, _ in tower.named_parameters():
        block = next((block for block in numbered if name.startswith(f"{block}.")), None)
        if block is None:
            if not is_between:
                layers.append([])
            layers[-1].append(name)
        elif not layers or layers[-1] != [block]:
            layers.append([block])
        is_between = block is None
    return [tuple(layer) for layer in layers]


def layers_above(tower: nn.Module, layers: Sequence[Layer]) -> dict[str, int]:
    """How many layers lie between each parameter of a tower and its output.

    Args:
        tower: The tower.
        layers: From its input to its output.

    Raises:
        ConfigError: If a parameter is in no layer.
    """
    above = {}
    for name, _ in tower.named_parameters():
        place = next((place for place, layer in enumerate(layers) if _is_in(name, layer)), None)
        if place is None:
            raise ConfigError(
                f"{type(tower).__name__}.ordered_layers() leaves out '{name}'. Name it, or a part that holds it."
            )
        above[name] = len(layers) - 1 - place
    return above


def with_prefix(prefix: str, above: Mapping[str, int]) -> dict[str, int]:
    """The same by names in a module that holds the tower."""
    return {f"{prefix}.{name}": count for name, count in above.items()}


def _is_in(name: str, layer: Layer) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in layer)
