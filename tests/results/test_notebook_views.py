"""What a notebook's cell shows: one line of text, and a view of what matters."""

from __future__ import annotations

import torch

import featviz
from featviz.models.model import Model


def test_texts_are_one_short_line(mini: Model) -> None:
    pictures = featviz.sample_pictures(1)
    store = featviz.embed(mini, pictures, "relu7")
    shown = (mini, mini.layers, pictures, store, featviz.build_index(store))
    for text in map(repr, shown):
        assert "\n" not in text
        assert len(text) < 400
    assert repr(mini) == "<Model alexnet-mini: 200 classes, pictures of 64 x 64>"


def test_pictures_are_a_contact_sheet_and_layers_a_table(mini: Model) -> None:
    assert '<img alt="&lt;Pictures' in featviz.sample_pictures(2)._repr_html_()
    assert "<td>conv1</td>" in mini.layers._repr_html_()
    broken = featviz.as_pictures(torch.rand(2, 5, 8, 8))
    assert "base64" in broken._repr_html_()  # five channels: the first three


def test_an_atlas_is_its_live_page(mini: Model) -> None:
    atlas = featviz.build_atlas(None, featviz.embed(mini, featviz.sample_pictures(1), "relu7"))
    assert "<iframe" in atlas._repr_html_()
    assert "srcdoc=" in atlas._repr_html_()
