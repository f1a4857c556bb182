"""How QGIS shows the results: styles that it takes up by itself, for they are named like the files.

``change.tif`` and the polygons share a name and so a style: QGIS reads the part for rasters from it for the one, the
part for polygons for the others.
"""

from pathlib import Path

from hetecd.files import writing

STYLES = ("change.qml", "probability.qml")
CHANGED = "#d7191c"
CONFIDENCE = ((0.0, 0.6, "#fdae61"), (0.6, 0.8, "#f46d43"), (0.8, 1.0, CHANGED))  # mean probability of a polygon
RAMP = ((0.0, "#ffffff", 0), (0.25, "#ffffcc", 90), (0.5, "#fd8d3c", 190), (1.0, "#800026", 255))  # of a pixel
# For the colour table of change.tif, red, green, blue; the other values are black.
COLOURS = {0: (247, 247, 247), 1: (215, 25, 28)}


def write_styles(folder: Path) -> None:
    """Write the ``STYLES`` into a folder.

    Raises:
        OutputError: one cannot be written.
    """
    for name, text in zip(STYLES, (_change() + _polygons(), _probability()), strict=True):
        with writing(folder / name):
            page = f'<!DOCTYPE qgis>\n<qgis version="3.22" styleCategories="Symbology">\n{text}</qgis>\n'
            (folder / name).write_text(page, encoding="utf-8")


def _change() -> str:
    """Changed pixels are red, the others let the map below show."""
    return f"""<pipe><rasterrenderer type="paletted" band="1" opacity="1" alphaBand="-1"><colorPalette>
<paletteEntry value="0" color="#f7f7f7" alpha="0" label="unchanged"/>
<paletteEntry value="1" color="{CHANGED}" alpha="255" label="changed"/>
</colorPalette></rasterrenderer></pipe>
"""


def _probability() -> str:
    items = "\n".join(
        f'<item value="{value}" color="{colour}" alpha="{alpha}" label="{value:g}"/>' for value, colour, alpha in RAMP
    )
    return f"""<pipe><rasterrenderer type="singlebandpseudocolor" band="1" opacity="1" alphaBand="-1"
classificationMin="0" classificationMax="1"><rastershader>
<colorrampshader colorRampType="INTERPOLATED" classificationMode="1" clip="0" minimumValue="0" maximumValue="1">
{items}
</colorrampshader></rastershader></rasterrenderer></pipe>
"""


def _polygons() -> str:
    """Coloured by mean probability."""
    ranges = "\n".join(
        f'<range lower="{low}" upper="{high}" symbol="{number}" label="{low:g} to {high:g}" render="true"/>'
        for number, (low, high, _) in enumerate(CONFIDENCE)
    )
    symbols = "\n".join(
        f'<symbol name="{number}" type="fill" alpha="1" clip_to_extent="1">{_fill(colour)}</symbol>'
        for number, (_, _, colour) in enumerate(CONFIDENCE)
    )
    return f"""<renderer-v2 type="graduatedSymbol" attr="mean_prob" graduatedMethod="GraduatedColor">
<ranges>
{ranges}
</ranges>
<symbols>
{symbols}
</symbols>
</renderer-v2>
<layerGeometryType>2</layerGeometryType>
"""


def _fill(colour: str) -> str:
    rgb = ",".join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))
    settings = {
        "color": f"{rgb},90", "style": "solid", "outline_color": f"{rgb},255", "outline_style": "solid",
        "outline_width": "0.4", "outline_width_unit": "MM",
    }  # fmt: skip
    options = "".join(f'<Option name="{key}" value="{value}" type="QString"/>' for key, value in settings.items())
    return f'<layer class="SimpleFill" enabled="1" pass="0" locked="0"><Option type="Map">{options}</Option></layer>'
