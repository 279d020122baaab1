"""Reading or Refusal -> a PDF file for printing: text that can be searched, one font inside, the same bytes each time.

Nothing on a page names the patient. The header that carries the file does, and it can be corrected there when a name
was wrong; a name on the page could not, and would have to be drawn in any script of the world. A page that is printed
has a box for the label that the site sticks on its papers, and the UID of the CT series, which never changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path

import reportlab
from PIL import ImageDraw
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas

from dicom_node.domain import RESEARCH_USE
from dicom_node.identity import MANUFACTURER, MODEL_NAME, SOFTWARE_VERSION
from dicom_node.results import drawing, narrative
from dicom_node.results.drawing import ON_WARNING, WARNING, ink_on, printable
from dicom_node.results.headers import Origin
from dicom_node.results.pages import MOST_PICTURED
from dicom_node.results.palette import colour
from dicom_node.results.reading import Reading, Refusal
from dicom_node.results.table import Table, image_number, table_of

# Embedded, so that a page looks the same everywhere; reportlab brings these two (Bitstream Vera).
REGULAR, BOLD = "Vera", "VeraBd"

PAPER = "#FFFFFF"
INK = "#111418"
QUIET_INK = "#4A5360"
RULE = "#B8C0CA"

_PAGE_PT = (595.28, 841.89)  # A4; printers fit it on Letter
_MARGIN = 42.0
_WIDTH = _PAGE_PT[0] - 2 * _MARGIN
_TOP = _PAGE_PT[1] - 42.0
_BOTTOM = 62.0
_ROW = 18.0
_CHIP_COLUMN = 28.0
_FIGURES_A_ROW = 3
_FIGURE_PX = 360

Drawing = Callable[[Canvas], None]


def summary_pdf(reading: Reading) -> bytes:
    """What was found, as the captures say it, for paper."""
    count = len(reading.findings)
    sheet = _Sheet(origin=reading.origin)
    sheet.head(f"Lung nodules: {count or 'none'} found")
    sheet.words(narrative.headline(reading), size=11, bold=True)
    if not reading.grounds.complete:
        sheet.words(f"INCOMPLETE SERIES. {reading.grounds.evidence}.", size=11, bold=True)
    if reading.comparison is not None:
        for sentence in (narrative.sentence(reading.comparison.text), *narrative.earlier_texts(reading.comparison)):
            sheet.words(sentence)
    if reading.findings:
        sheet.space(6)
        sheet.table(table_of(reading))
        if count > MOST_PICTURED:
            sheet.words(f"Pictured: the {MOST_PICTURED} with the highest scores, of {count}.", bold=True)
        _put_figures(sheet, reading)
        _put_changes(sheet, reading)
    sheet.space(6)
    sheet.words("How this was made", size=10, bold=True)
    for sentence in (*narrative.how_made(reading), narrative.CAUTION):
        sheet.words(sentence, size=8)
    return sheet.file(f"Lung nodules: {count or 'none'} found")


def refusal_pdf(refusal: Refusal) -> bytes:
    """That the series was not analysed, and why."""
    sheet = _Sheet(origin=refusal.origin)
    sheet.head("Lung nodules: NOT ANALYSED")
    for position, sentence in enumerate(narrative.refusal_text(refusal)):
        sheet.words(sentence, size=11, bold=position == 0)
        sheet.space(4)
    return sheet.file("Lung nodules: NOT ANALYSED")


def _put_changes(sheet: _Sheet, reading: Reading) -> None:
    """In words: the table has no room for earlier sizes and doubling times."""
    for number, track in enumerate(reading.tracking, start=1):
        change = narrative.change_of(reading, number)
        if change is not None:
            sheet.words(f"{track.identifier}. {narrative.change_text(change)}", size=8)


def _put_figures(sheet: _Sheet, reading: Reading) -> None:
    volume = reading.volume
    figures = []
    for number, (finding, measured) in enumerate(
        zip(reading.findings[:MOST_PICTURED], reading.measurements, strict=False), start=1
    ):
        view = drawing.around(volume, finding, measured, (_FIGURE_PX, _FIGURE_PX))
        image = drawing.render_view(volume, view)
        drawing.draw_outline(image, view, finding, number, width_px=2.0)
        draw = ImageDraw.Draw(image)
        drawing.draw_axis(draw, view, measured.long_axis, number)
        drawing.draw_axis(draw, view, measured.short_axis, number)
        drawing.draw_scale_bar(draw, view.size_px, (view.box[2] - view.box[0]) * volume.spacing_mm[2])
        drawing.draw_chip(draw, (30, 26), number, height_px=38)
        figures.append((ImageReader(image), f"{number}: image {image_number(reading, measured.slice_index)}"))
    sheet.figures(figures)


@dataclass(slots=True)
class _Sheet:
    """Pages that fill from top to bottom. What is drawn is kept until the number of pages is known."""

    origin: Origin
    pages: list[list[Drawing]] = field(default_factory=list)
    _y: float = 0.0

    def __post_init__(self) -> None:
        for name in (REGULAR, BOLD):
            if name not in pdfmetrics.getRegisteredFontNames():
                path = Path(reportlab.__file__).parent / "fonts" / f"{name}.ttf"
                pdfmetrics.registerFont(TTFont(name, str(path)))
        self._next()

    def _next(self) -> None:
        self.pages.append([])
        self._y = _TOP

    def _room_for(self, height: float) -> None:
        if self._y - height < _BOTTOM:
            self._next()

    def _add(self, drawing_of_it: Drawing) -> None:
        self.pages[-1].append(drawing_of_it)

    def space(self, height: float) -> None:
        self._y -= height

    def head(self, title: str) -> None:
        """The title, what the page is about, and room for the site's own label of the patient."""
        top, box = self._y, (_MARGIN + _WIDTH - 190, self._y - 76, 190.0, 76.0)
        made_at = f"Made {self.origin.made_at:%Y-%m-%d %H:%M %Z}".rstrip()

        def draw(canvas: Canvas) -> None:
            canvas.setStrokeColor(RULE)
            canvas.rect(*box)
            _text(canvas, (box[0] + 6, top - 12), "Patient label", 7, QUIET_INK)
            _text(canvas, (_MARGIN, top - 18), title, 17, INK, BOLD)
            _text(canvas, (_MARGIN, top - 36), made_at, 9, QUIET_INK)
            _text(canvas, (_MARGIN, top - 52), "CT series", 7, QUIET_INK)
            _text(canvas, (_MARGIN, top - 62), printable(self.origin.series_uid), 7.5, INK)

        self._add(draw)
        self._y -= 96

    def words(self, text: str, *, size: float = 9, bold: bool = False) -> None:
        font = BOLD if bold else REGULAR
        for line in _wrapped(text, font, size):
            self._room_for(size * 1.4)
            self._y -= size * 1.4
            self._add(partial(_text, place=(_MARGIN, self._y), text=line, size=size, ink=INK, font=font))
        self.space(2)

    def table(self, table: Table) -> None:
        """Its head again on each page that it goes on to."""
        edges = _edges(table)
        for number, cells in enumerate(table.rows, start=1):
            before = len(self.pages)
            self._room_for(_ROW if number > 1 else 2 * _ROW)
            if number == 1 or len(self.pages) > before:
                self._cells([column.title for column in table.columns], table, edges, ink=QUIET_INK)
            self._add(partial(_chip, place=(_MARGIN, self._y - _ROW + 3), number=number))
            self._cells(cells, table, edges, ink=INK)
        self.space(10)

    def _cells(self, cells: Sequence[str], table: Table, edges: Sequence[tuple[float, float]], *, ink: str) -> None:
        baseline = self._y - _ROW + 6

        def draw(canvas: Canvas) -> None:
            for cell, column, (left, right) in zip(cells, table.columns, edges, strict=True):
                size = min(8.0, 8.0 * (right - left) / max(1.0, pdfmetrics.stringWidth(cell, REGULAR, 8.0)))
                width = pdfmetrics.stringWidth(cell, REGULAR, size)
                _text(canvas, (right - width if column.right else left, baseline), printable(cell), size, ink)
            canvas.setStrokeColor(RULE)
            canvas.setLineWidth(0.4)
            canvas.line(_MARGIN, baseline - 5, _MARGIN + _WIDTH, baseline - 5)

        self._add(draw)
        self._y -= _ROW

    def figures(self, figures: Sequence[tuple[ImageReader, str]]) -> None:
        gap = 9.0
        side = (_WIDTH - gap * (_FIGURES_A_ROW - 1)) / _FIGURES_A_ROW
        for start in range(0, len(figures), _FIGURES_A_ROW):
            self._room_for(side + 18)
            for position, (image, caption) in enumerate(figures[start : start + _FIGURES_A_ROW]):
                place = (_MARGIN + position * (side + gap), self._y - side)
                self._add(partial(_figure, image=image, caption=caption, place=place, side=side))
            self._y -= side + 18

    def file(self, title: str) -> bytes:
        out = BytesIO()
        # invariant: neither the clock nor a random identifier goes into the file.
        canvas = Canvas(out, pagesize=_PAGE_PT, invariant=1, pageCompression=1, initialFontName=REGULAR)
        canvas.setTitle(f"{title}. {RESEARCH_USE}")
        canvas.setAuthor(MANUFACTURER)
        canvas.setCreator(f"{MODEL_NAME} {SOFTWARE_VERSION}")
        for number, page in enumerate(self.pages, start=1):
            for draw in page:
                draw(canvas)
            _foot(canvas, number, len(self.pages))
            canvas.showPage()
        canvas.save()
        return out.getvalue()


def _text(canvas: Canvas, place: tuple[float, float], text: str, size: float, ink: str, font: str = REGULAR) -> None:
    canvas.setFillColor(ink)
    canvas.setFont(font, size)
    canvas.drawString(*place, text)


def _chip(canvas: Canvas, place: tuple[float, float], number: int) -> None:
    canvas.setFillColor(colour(number))
    canvas.roundRect(*place, 20, 12, 3, stroke=0, fill=1)
    canvas.setFillColor(ink_on(colour(number)))
    canvas.setFont(BOLD, 8)
    canvas.drawCentredString(place[0] + 10, place[1] + 3.2, str(number))


def _figure(canvas: Canvas, image: ImageReader, caption: str, place: tuple[float, float], side: float) -> None:
    canvas.drawImage(image, *place, side, side)
    _text(canvas, (place[0], place[1] - 10), printable(caption), 8, INK)


def _foot(canvas: Canvas, number: int, count: int) -> None:
    canvas.setFillColor(WARNING)
    canvas.rect(_MARGIN, 28, _WIDTH, 20, stroke=0, fill=1)
    _text(canvas, (_MARGIN + 8, 34.5), RESEARCH_USE, 10.5, ON_WARNING, BOLD)
    text = f"{MODEL_NAME} {SOFTWARE_VERSION}, page {number} of {count}"
    width = pdfmetrics.stringWidth(text, REGULAR, 8)
    _text(canvas, (_MARGIN + _WIDTH - 8 - width, 35), text, 8, ON_WARNING)


def _edges(table: Table) -> list[tuple[float, float]]:
    """Left and right of each column."""
    gap = 9.0
    unit = (_WIDTH - _CHIP_COLUMN - gap * (len(table.columns) - 1)) / sum(column.width for column in table.columns)
    left, edges = _MARGIN + _CHIP_COLUMN, []
    for column in table.columns:
        edges.append((left, left + column.width * unit))
        left += column.width * unit + gap
    return edges


def _wrapped(text: str, font: str, size: float) -> list[str]:
    """Lines of the page's width, broken between words."""
    lines: list[str] = []
    for word in printable(text).split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and pdfmetrics.stringWidth(longer, font, size) <= _WIDTH:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
