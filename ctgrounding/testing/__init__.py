"""For people who extend ctgrounding: contract suites and tiny inputs. Public, and used by our own tests."""

from ctgrounding.testing.contract import check_objective
from ctgrounding.testing.outcome import ContractError
from ctgrounding.testing.ranks import RankPool, ScheduleError, simulate_ranks
from ctgrounding.testing.scans import tiny_scans
from ctgrounding.testing.tiny import tiny_dims, tiny_encoded_and_batch, with_fixed_texts

__all__ = [
    "check_objective",
    "ContractError",
    "RankPool",
    "ScheduleError",
    "simulate_ranks",
    "tiny_dims",
    "tiny_encoded_and_batch",
    "tiny_scans",
    "with_fixed_texts",
]
