"""Reads digits that are drawn on a page."""
