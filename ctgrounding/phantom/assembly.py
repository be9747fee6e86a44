"""Puts a normal patient together."""

from ctgrounding.phantom import lungs, skeleton, thorax, viscera
from ctgrounding.phantom.anatomy import Anatomy
from ctgrounding.phantom.body import Traits, Trunk, table
from ctgrounding.phantom.canvas import Part


def build(traits: Traits) -> Anatomy:
    """Draw a whole normal patient.

    Args:
        traits: Build of the patient; swellings, collapsed vertebrae and the like are already set.
    """
    anatomy = Anatomy(traits)
    trunk = Trunk(traits)
    anatomy.layers["trunk"] += [Part(table(traits), -650.0), Part(trunk, trunk.tissue_hu)]
    viscera.add_abdomen(anatomy)
    viscera.add_pelvis(anatomy)
    lungs.add_lungs(anatomy)
    thorax.add_mediastinum(anatomy)
    skeleton.add_muscles(anatomy)
    skeleton.add_bones(anatomy)
    return anatomy
