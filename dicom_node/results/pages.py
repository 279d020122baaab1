"""Reading or Refusal -> pages of one size as pictures: a summary, then each finding in its key slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from dicom_node.domain import RESEARCH_USE
from dicom_node.identity import MODEL_NAME, SOFTWARE_VERSION
from dicom_node.results import drawing, narrative, quantities
from dicom_node.results.drawing import (
    BACKGROUND,
    FRAME,
    ON_WARNING,
    QUIET,
    TEXT,
    WARNING,
    Font,
    font,
    printable,
    wrapped,
)
from dicom_node.results.reading import Reading, Refusal
from dicom_node.results.table import Table, image_number, table_of

# Fits a screen of 1280 x 1024 with a viewer's own frame, and stays legible in half of a larger one.
PAGE_PX = (1024, 768)
# An uncompressed page has 2.4 MB. A reader who has looked at 20 candidates looks up the others in the table.
MOST_PICTURED = 20

_MARGIN = 24
_WIDTH = PAGE_PX[0] - 2 * _MARGIN
_BAND_PX = 36
_HEAD_PX = 60
_BOTTOM = PAGE_PX[1] - _BAND_PX - 8
_ROW_PX = 34
_LINE_PX = 23
_THUMBS = 5
_THUMB_PX = 184
_FEW = 3
_LARGE_THUMB_PX = 250
_CHIP_COLUMN = 56

_FINDING_HEAD_PX = 96
_GAP_PX = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """label: at most 16 characters. slices: indices of the slices that are pictured on it."""

    image: Image.Image
    label: str
    slices: tuple[int, ...] = ()


def pages_of(reading: Reading) -> list[Page]:
    """The summary, on as many pages as its table needs, then a page for each of the first MOST_PICTURED findings."""
    summary = _summary(reading)
    pictured = range(1, min(len(reading.findings), MOST_PICTURED) + 1)
    return _numbered([*summary, *(_finding_page(reading, number) for number in pictured)])


def refusal_pages(refusal: Refusal) -> list[Page]:
    """One page in plain words that says that nothing was looked at, and why."""
    sheet = _Sheet(title="Lung nodules: NOT ANALYSED")
    loud, *quiet = narrative.refusal_text(refusal)
    sheet.words(loud, size=26, paint=WARNING)
    sheet.space(10)
    for sentence in quiet:
        sheet.words(sentence, size=20, paint=TEXT)
        sheet.space(4)
    return _numbered(sheet.pages)


def _summary(reading: Reading) -> list[Page]:
    count = len(reading.findings)
    sheet = _Sheet(title=f"Lung nodules: {count or 'none'} found")
    sheet.words(narrative.headline(reading), size=20, paint=TEXT)
    if not reading.grounds.complete:
        sheet.words(f"INCOMPLETE SERIES. {reading.grounds.evidence}.", size=20, paint=WARNING)
    if reading.comparison is not None:
        sheet.words(narrative.sentence(reading.comparison.text), size=17, paint=TEXT)
        for sentence in narrative.earlier_texts(reading.comparison):
            sheet.words(sentence, size=17, paint=TEXT)
    if count > MOST_PICTURED:
        text = f"Pictured: the {MOST_PICTURED} with the highest scores, of {count}. The table has all."
        sheet.words(text, size=17, paint=WARNING)
    sheet.space(6)
    if reading.findings:
        sheet.pictures(_thumbs(reading), slices=tuple(m.slice_index for m in reading.measurements[:_THUMBS]))
        sheet.table(table_of(reading))
    for sentence in narrative.how_made(reading):
        sheet.words(sentence, size=16 if reading.findings else 19, paint=QUIET)
    return sheet.pages


def _thumbs(reading: Reading) -> list[Image.Image]:
    """The first findings in their key slices, each with its number."""
    thumbs = []
    size = _LARGE_THUMB_PX if len(reading.findings) <= _FEW else _THUMB_PX
    for number, (finding, measured) in enumerate(
        zip(reading.findings[:_THUMBS], reading.measurements, strict=False), start=1
    ):
        view = drawing.around(reading.volume, finding, measured, (size, size))
        thumb = drawing.render_view(reading.volume, view)
        drawing.draw_outline(thumb, view, finding, number)
        draw = ImageDraw.Draw(thumb)
        drawing.draw_chip(draw, (22, 18), number, height_px=26)
        width_mm = (view.box[2] - view.box[0]) * reading.volume.spacing_mm[2]
        drawing.draw_scale_bar(draw, view.size_px, width_mm)
        draw.rectangle((0, 0, size - 1, size - 1), outline=FRAME)
        thumbs.append(thumb)
    return thumbs


@dataclass(slots=True)
class _Sheet:
    """Pages that fill from top to bottom; what does not fit goes to the next one, with the title again."""

    title: str
    pages: list[Page] = field(default_factory=list)
    _y: float = 0.0

    def __post_init__(self) -> None:
        self._next()

    def _next(self) -> None:
        image = Image.new("RGB", PAGE_PX, BACKGROUND)
        draw = ImageDraw.Draw(image)
        title = self.title if not self.pages else f"{self.title} (continued)"
        draw.text((_MARGIN, _HEAD_PX / 2 + 4), printable(title), fill=TEXT, font=font(30), anchor="lm")
        draw.line((_MARGIN, _HEAD_PX, PAGE_PX[0] - _MARGIN, _HEAD_PX), fill=FRAME, width=2)
        self.pages.append(Page(image=image, label=f"Summary {len(self.pages) + 1}"))
        self._y = _HEAD_PX + 12.0

    @property
    def _draw(self) -> ImageDraw.ImageDraw:
        return ImageDraw.Draw(self.pages[-1].image)

    def _room_for(self, height: float) -> None:
        if self._y + height > _BOTTOM:
            self._next()

    def space(self, height: float) -> None:
        self._y += height

    def words(self, text: str, *, size: int, paint: str) -> None:
        height = size * _LINE_PX / 16
        for line in wrapped(text, size, _WIDTH):
            self._room_for(height)
            self._draw.text((_MARGIN, self._y + height / 2), line, fill=paint, font=font(size), anchor="lm")
            self._y += height

    def pictures(self, images: Sequence[Image.Image], *, slices: tuple[int, ...]) -> None:
        """Side by side in one row."""
        self._room_for(images[0].height)
        page = self.pages[-1]
        for position, image in enumerate(images):
            page.image.paste(image, (_MARGIN + position * (image.width + _GAP_PX), round(self._y)))
        self.pages[-1] = Page(image=page.image, label=page.label, slices=slices)
        self._y += images[0].height + 10

    def table(self, table: Table) -> None:
        """Its head again on each page that it goes on to."""
        edges = _edges(table)
        titles = [column.title for column in table.columns]
        # One size a column, that of its longest cell: numbers below each other are compared.
        fonts = [
            _fitting(cells, right - left)
            for cells, (left, right) in zip(zip(*table.rows, strict=True), edges, strict=True)
        ]
        heads = [_fitting([title], right - left) for title, (left, right) in zip(titles, edges, strict=True)]
        for number, cells in enumerate(table.rows, start=1):
            before = len(self.pages)
            self._room_for(_ROW_PX if number > 1 else 2 * _ROW_PX)
            if number == 1 or len(self.pages) > before:
                self._cells(titles, table, edges, heads, paint=QUIET)
            drawing.draw_chip(self._draw, (_MARGIN + 22, self._y + _ROW_PX / 2), number, height_px=26)
            self._cells(cells, table, edges, fonts, paint=TEXT)
        self.space(10)

    def _cells(
        self,
        cells: Sequence[str],
        table: Table,
        edges: Sequence[tuple[float, float]],
        fonts: Sequence[Font],
        *,
        paint: str,
    ) -> None:
        draw, middle = self._draw, self._y + _ROW_PX / 2
        for cell, column, (left, right), of in zip(cells, table.columns, edges, fonts, strict=True):
            place, anchor = ((right, middle), "rm") if column.right else ((left, middle), "lm")
            draw.text(place, printable(cell), fill=paint, font=of, anchor=anchor)
        self._y += _ROW_PX
        draw.line((_MARGIN, self._y, PAGE_PX[0] - _MARGIN, self._y), fill=FRAME)


def _edges(table: Table) -> list[tuple[float, float]]:
    """Left and right of each column."""
    gap = 22.0
    total = sum(column.width for column in table.columns)
    unit = (_WIDTH - _CHIP_COLUMN - gap * (len(table.columns) - 1)) / total
    left, edges = float(_MARGIN + _CHIP_COLUMN), []
    for column in table.columns:
        edges.append((left, left + column.width * unit))
        left += column.width * unit + gap
    return edges


def _fitting(cells: Sequence[str], width_px: float) -> Font:
    """The largest font in which all cells fit their column, from 18 down to 13."""
    for size in range(18, 13, -1):
        if all(font(size).getlength(cell) <= width_px for cell in cells):
            return font(size)
    return font(13)


def _finding_page(reading: Reading, number: int) -> Page:
    """The whole key slice, and its part round the finding twice: as it is, and with outline and axes."""
    image = Image.new("RGB", PAGE_PX, BACKGROUND)
    _draw_finding_head(ImageDraw.Draw(image), reading, number)
    height = PAGE_PX[1] - _FINDING_HEAD_PX - _BAND_PX - _GAP_PX
    left = _MARGIN // 2
    image.paste(_slice_panel(reading, number, height), (left, _FINDING_HEAD_PX))
    inset_px = PAGE_PX[0] - 2 * left - height - _GAP_PX, (height - _GAP_PX) // 2
    for row, marked in enumerate((True, False)):
        place = left + height + _GAP_PX, _FINDING_HEAD_PX + row * (inset_px[1] + _GAP_PX)
        image.paste(_inset(reading, number, inset_px, marked=marked), place)
    return Page(image=image, label=f"Nodule {number}", slices=(reading.measurements[number - 1].slice_index,))


def _draw_finding_head(draw: ImageDraw.ImageDraw, reading: Reading, number: int) -> None:
    finding, measured = reading.findings[number - 1], reading.measurements[number - 1]
    drawing.draw_chip(draw, (42, 30), number, height_px=40)
    size = quantities.axes(measured.long_axis_mm, measured.short_axis_mm)
    draw.text((80, 30), size, fill=TEXT, font=font(30), anchor="lm")
    facts = (
        f"mean {quantities.whole_length(measured.mean_diameter_mm)}",
        quantities.volume_with_error(measured.volume_mm3, measured.volume_error_mm3),
        measured.nodule_type or "type undetermined",
        quantities.attenuation_with_sd(measured.mean_hu, measured.sd_hu),
    )
    right = 80 + font(30).getlength(size) + 28
    draw.text((right, 32), "    ".join(facts), fill=TEXT, font=font(20), anchor="lm")
    place = (
        f"{finding.side} lung" if finding.side else "side not told apart",
        narrative.place(reading, number),
        f"score {quantities.score(finding.score)}",
    )
    draw.text((80, 62), printable("    ".join(place)), fill=QUIET, font=font(18), anchor="lm")
    change = narrative.change_of(reading, number)
    if change is not None:
        line = wrapped(narrative.change_text(change), 16, PAGE_PX[0] - 80 - _MARGIN)[0]
        draw.text((80, 84), line, fill=QUIET, font=font(16), anchor="lm")


def _slice_panel(reading: Reading, number: int, within_px: int) -> Image.Image:
    """The whole key slice, as it is stored, with all findings in it."""
    volume, index = reading.volume, reading.measurements[number - 1].slice_index
    shown = drawing.render_slice(volume, index, reading.findings, within_px=within_px)
    draw = ImageDraw.Draw(shown)
    drawing.draw_ends(draw, shown.size, drawing.ends_of(volume))
    drawing.draw_scale_bar(draw, shown.size, volume.hu.shape[2] * volume.spacing_mm[2])
    drawing.write(draw, (9, 8), f"image {image_number(reading, index)}", 16, "la")
    drawing.write(draw, (9, shown.height - 8), drawing.LUNG_WINDOW_TEXT, 15, "ld")
    panel = Image.new("RGB", (within_px, within_px), BACKGROUND)
    panel.paste(shown, ((within_px - shown.width) // 2, (within_px - shown.height) // 2))
    return panel


def _inset(reading: Reading, number: int, size_px: tuple[int, int], *, marked: bool) -> Image.Image:
    finding, measured = reading.findings[number - 1], reading.measurements[number - 1]
    view = drawing.around(reading.volume, finding, measured, size_px)
    image = drawing.render_view(reading.volume, view)
    draw = ImageDraw.Draw(image)
    if marked:
        drawing.draw_outline(image, view, finding, number)
        drawing.draw_axis(draw, view, measured.long_axis, number)
        drawing.draw_axis(draw, view, measured.short_axis, number)
        drawing.draw_chip(draw, (24, 20), number, height_px=28)
    drawing.draw_scale_bar(draw, size_px, (view.box[2] - view.box[0]) * reading.volume.spacing_mm[2])
    draw.rectangle((0, 0, size_px[0] - 1, size_px[1] - 1), outline=FRAME)
    return image


def _numbered(pages: list[Page]) -> list[Page]:
    """With the band at the foot of each: what it must not be used for, and which page it is of how many."""
    for number, page in enumerate(pages, start=1):
        draw = ImageDraw.Draw(page.image)
        top = PAGE_PX[1] - _BAND_PX
        draw.rectangle((0, top, *PAGE_PX), fill=WARNING)
        middle = top + _BAND_PX / 2
        draw.text((_MARGIN, middle), RESEARCH_USE, fill=ON_WARNING, font=font(22), anchor="lm")
        text = f"{MODEL_NAME} {SOFTWARE_VERSION}    page {number} of {len(pages)}"
        draw.text((PAGE_PX[0] - _MARGIN, middle), text, fill=ON_WARNING, font=font(17), anchor="rm")
    return pages
