"""Lets Lightning run on the stand-in for a GPU."""

import torch
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from lightning.pytorch.strategies import SingleDeviceStrategy, StrategyRegistry
from torch.optim.lr_scheduler import LambdaLR

from ctgrounding.tasks.optimizers import OptimizerRecipe
from ctgrounding.testing.elsewhere import ELSEWHERE

NAME = "elsewhere"


class StandIn(Accelerator):
    def setup_device(self, device):
        assert device == ELSEWHERE

    def teardown(self):
        pass

    def get_device_stats(self, device):
        return {}

    @staticmethod
    def parse_devices(devices):
        return [ELSEWHERE]

    @staticmethod
    def get_parallel_devices(devices):
        return devices

    @staticmethod
    def auto_device_count():
        return 1

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def name():
        return NAME


class Descent(OptimizerRecipe):
    """A fused AdamW knows only devices that exist."""

    def build(self, named_parameters, total_steps):
        optimizer = torch.optim.SGD([item for _, item in named_parameters if item.requires_grad], lr=0.01)
        return optimizer, LambdaLR(optimizer, lambda step: 1.0)


def register():
    AcceleratorRegistry.register(NAME, StandIn, override=True)
    StrategyRegistry.register(NAME, SingleDeviceStrategy, device=ELSEWHERE, override=True)
