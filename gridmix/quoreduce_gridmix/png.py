"""Figures as PNG: the SVG rendered by resvg, in a font that comes as a package, so that they look the same on every
machine.
"""

from __future__ import annotations

from collections.abc import Callable

from quoreduce.errors import UsageError

FONT = "Source Sans Pro"
FACES = ("SourceSansPro", "SourceSansProBold")
SCALE = 2.0


def png_renderer() -> Callable[[str], bytes]:
    """Return what makes a PNG, SCALE pixels for one, of an SVG; raise UsageError if the extra ``png`` is not
    installed.
    """
    try:
        import font_source_sans_pro
        import resvg_py
    except ImportError as error:
        raise UsageError(f"figures as PNG need {error.name or 'a package'}: pip install 'quoreduce[png]'") from error
    faces = [font_source_sans_pro.font_files_ttf[name] for name in FACES]

    def render(svg: str) -> bytes:
        return bytes(
            resvg_py.svg_to_bytes(
                svg_string=svg,
                zoom=SCALE,
                skip_system_fonts=True,
                font_files=faces,
                font_family=FONT,
                sans_serif_family=FONT,
            )
        )

    return render
