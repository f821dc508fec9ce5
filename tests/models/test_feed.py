"""Where the nodes of a tree are and whom they see, against the definition."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from specpilot.models.feed import MASKED, tree_layout


@given(st.data())
def test_a_node_sees_its_ancestors_and_itself(data: st.DataObject) -> None:
    """Trees that begin with a chain of any length, of which any last part is fed."""
    chain = data.draw(st.integers(0, 6))
    size = data.draw(st.integers(max(1, chain), 14))
    parents = [*range(-1, chain - 1), *(data.draw(st.integers(-1, at - 1)) for at in range(chain, size))]
    width, trunk = data.draw(st.integers(1, size)), data.draw(st.integers(0, 5))
    seen = np.zeros((size, size), dtype=np.bool_)
    depths: list[int] = []
    for node, parent in enumerate(parents):
        if parent >= 0:
            seen[node] = seen[parent]
        seen[node, node] = True
        depths.append(0 if parent < 0 else depths[parent] + 1)
    more = data.draw(st.integers(0, 2))
    mask, positions = tree_layout(parents, trunk, width, trunk + size + more)
    assert mask.shape == (width, trunk + size + more)
    assert (mask[:, :trunk] == 0.0).all()
    assert (mask[:, trunk : trunk + size] == np.where(seen[-width:], 0.0, MASKED)).all()
    assert (mask[:, trunk + size :] == MASKED).all()
    assert positions.tolist() == [trunk + depth for depth in depths[-width:]]
