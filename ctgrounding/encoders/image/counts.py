"""Numbers of an encoder that must be counts, refused in one sentence where they are not."""

from ctgrounding.errors import ConfigError


def check_counts(who: str, *, least: int = 1, **counts: int) -> None:
    """Refuse numbers of an encoder that are too small to be counts.

    Args:
        who: The encoder, for the message.
        least: Smallest that is legal.
        counts: Name to number.

    Raises:
        ConfigError: With the first that is too small.
    """
    for name, count in counts.items():
        if count < least:
            raise ConfigError(f"{name} of {who} must be at least {least}, but is {count}.")


def check_groups(who: str, norm: str, filters: int, groups: int = 8) -> None:
    """Refuse channels that a group norm cannot split.

    Raises:
        ConfigError: With what to choose instead.
    """
    check_counts(who, filters=filters)
    if norm == "group" and filters % groups:
        raise ConfigError(
            f"Group norm splits channels into {groups} groups, but {who} has filters {filters}. Take a multiple of "
            f"{groups}, or norm: instance."
        )
