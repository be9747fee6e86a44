"""Parts of a model that a fit leaves as they are, and a table of how much of each part it trains."""

import difflib
import re
from collections.abc import Mapping, Sequence

from torch import nn

from ctgrounding.errors import ConfigError


def freeze(model: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """Take gradient and dropout from all that the patterns name.

    Args:
        model: Changed in place.
        patterns: Regular expressions, each for the whole name of a parameter, or of a module with all that it holds.

    Returns:
        The modules that were named, in evaluation mode; kept in it they have no dropout and do not change.

    Raises:
        ConfigError: If a pattern is no regular expression or names nothing.

    Examples:
        >>> model = nn.ModuleDict({"image": nn.Linear(2, 2), "text": nn.Linear(2, 2)})
        >>> len(freeze(model, ["image", "text.bias"]))
        1
        >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        ['text.weight']
    """
    modules = {name: module for name, module in model.named_modules() if name}
    parameters = dict(model.named_parameters())
    frozen: dict[str, nn.Module] = {}
    for pattern in patterns:
        expression = compiled(pattern, "model.freeze")
        named = {name: module for name, module in modules.items() if expression.fullmatch(name)}
        single = [parameter for name, parameter in parameters.items() if expression.fullmatch(name)]
        if not named and not single:
            raise ConfigError(_names_nothing(pattern, [*modules, *parameters]))
        for part in (*named.values(), *single):
            part.requires_grad_(False)
        frozen |= named
    return [module.eval() for module in frozen.values()]


def parameter_table(parts: Mapping[str, nn.Module]) -> str:
    """How many parameters each part has and trains, as lines of text.

    Args:
        parts: By name; a parameter that several share counts in the first. Parts without any are left out.

    Examples:
        >>> layer = nn.Linear(999, 1)
        >>> print(parameter_table({"image": layer, "text": nn.Linear(9, 10).requires_grad_(False)}))
        part   trainable  total   share
        image      1,000  1,000   100 %
        text           0    100     0 %
        all        1,000  1,100  90.9 %
    """
    seen: set[nn.Parameter] = set()
    counts = {}
    for name, part in parts.items():
        own = [parameter for parameter in part.parameters() if parameter not in seen]
        seen.update(own)
        if own:
            counts[name] = (sum(p.numel() for p in own if p.requires_grad), sum(p.numel() for p in own))
    counts["all"] = (sum(trained for trained, _ in counts.values()), sum(total for _, total in counts.values()))
    rows = [("part", "trainable", "total", "share")]
    rows += [(name, f"{own:,}", f"{total:,}", _percent(own, total)) for name, (own, total) in counts.items()]
    wide = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join([row[0].ljust(wide[0]), *(cell.rjust(width) for cell, width in zip(row[1:], wide[1:], strict=True))])
        for row in rows
    )


def compiled(pattern: str, key: str) -> re.Pattern[str]:
    """A regular expression on names of parameters.

    Args:
        pattern: As a configuration has it.
        key: Where it has it, for the message.

    Raises:
        ConfigError: If it is none.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{key} has '{pattern}', which is no regular expression: {error}.") from error


def _names_nothing(pattern: str, names: Sequence[str]) -> str:
    plain = pattern.replace("\\", "")
    prefixed = f"encoder.{plain}"
    near = [name for name in names if name == prefixed] or difflib.get_close_matches(plain, names, n=3, cutoff=0.5)
    hint = f" Near names are {', '.join(near)}." if near else f" Names begin with {', '.join(_tops(names))}."
    return f"model.freeze has '{pattern}', which names no whole module or parameter.{hint}"


def _tops(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(".".join(name.split(".")[:2]) for name in names if "." in name))[:6]


def _percent(part: int, whole: int) -> str:
    share = 100 * part / whole if whole else 0.0
    return f"{share:.3g} %"
