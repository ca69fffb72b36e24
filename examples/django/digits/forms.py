"""A drawing of 8 rows of 8 boxes."""

from __future__ import annotations

from django import forms

THREE = """
..####..
.##..##.
.....##.
...###..
.....##.
.....##.
.##..##.
..####..
"""
BOXES = [(row, column) for row in range(8) for column in range(8)]


def name(row: int, column: int) -> str:
    return f"{row}-{column}"


class Drawing(forms.Form):
    ink = forms.MultipleChoiceField(
        choices=[(name(*box), f"row {box[0] + 1}, column {box[1] + 1}") for box in BOXES],
        initial=[name(*box) for box, mark in zip(BOXES, THREE.replace("\n", ""), strict=True) if mark == "#"],
        widget=forms.CheckboxSelectMultiple,
        error_messages={"required": "Nothing is drawn."},
    )

    def image(self) -> list[list[int]]:
        """The grey levels that the model has learnt from: 0 for paper, 16 for ink."""
        ink = self.cleaned_data["ink"]
        return [[16 * (name(row, column) in ink) for column in range(8)] for row in range(8)]
