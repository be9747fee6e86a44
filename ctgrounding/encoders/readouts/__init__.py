"""Readouts reduce a dense map to what objectives see: one vector a scan, one a depth bin, one a visible organ."""

from ctgrounding.encoders.readouts.base import Readout, ReadoutContext, Rows
from ctgrounding.encoders.readouts.depth import DepthReadout
from ctgrounding.encoders.readouts.organ import OrganReadout
from ctgrounding.encoders.readouts.organ_table import OrganTableReadout
from ctgrounding.encoders.readouts.whole import GlobalReadout

__all__ = ["DepthReadout", "GlobalReadout", "OrganReadout", "OrganTableReadout", "Readout", "ReadoutContext", "Rows"]
