import re
import xml.etree.ElementTree as ET

from bayesify.experiments.report.groups import groups
from bayesify.experiments.report.style import styles


def drawn_by(figure, made):
    (group,) = groups(made)
    return figure(group, styles([row.label for row in group.rows]))


def texts_of(svg):
    """Words of a figure, in the order they were drawn; fails where the SVG is no XML."""
    found = [each.text or "" for each in ET.fromstring(svg).iter() if "text" in each.tag]
    return [each.strip() for each in found if each.strip()]


def colours_of(svg):
    return set(re.findall(r"#[0-9a-f]{6}", svg))
