"""Positional encodings: the formula, padding left out, and their limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from querybox.errors import ConfigError
from querybox.modules.position import LearnedPositionEncoding, SinePositionEncoding, sine_features


def test_sine_is_the_formula_written_out() -> None:
    encoding = SinePositionEncoding(8)(torch.zeros(1, 2, 3, dtype=torch.bool))[0]  # [8, 2, 3]
    for row in range(2):
        for column in range(3):
            y = 2 * math.pi * (row + 1) / (2 + 1e-6)
            x = 2 * math.pi * (column + 1) / (3 + 1e-6)
            wanted = [
                function(position / 10000 ** (2 * pair / 4))
                for position in (y, x)
                for pair in range(2)
                for function in (math.sin, math.cos)
            ]
            assert_close(encoding[:, row, column], torch.tensor(wanted), rtol=0, atol=1e-5)


def test_sine_does_not_depend_on_padding() -> None:
    encode = SinePositionEncoding(16)
    padding_mask = torch.ones(1, 7, 9, dtype=torch.bool)
    padding_mask[:, :4, :5] = False
    alone = encode(torch.zeros(1, 4, 5, dtype=torch.bool))
    assert_close(encode(padding_mask)[:, :, :4, :5], alone)


def test_rows_of_padding_alone_have_positions_like_others() -> None:
    padding_mask = torch.ones(1, 4, 6, dtype=torch.bool)
    padding_mask[:, :3, :4] = False
    encoding = SinePositionEncoding(8, offset=-0.5)(padding_mask)[0]  # [8, 4, 6]
    before_the_first = sine_features(torch.tensor(-math.pi), 4, 10000.0)
    assert_close(encoding[:4, :, 4:], before_the_first[:, None, None].expand(-1, 4, 2), rtol=0, atol=1e-5)
    assert_close(encoding[4:, 3], before_the_first[:, None].expand(-1, 6), rtol=0, atol=1e-5)


def test_learned_is_columns_then_rows() -> None:
    encode = LearnedPositionEncoding(8, limit=4)
    encoding = encode(torch.zeros(2, 3, 4, dtype=torch.bool))
    assert encoding.shape == (2, 8, 3, 4)
    assert_close(encoding[1, :, 2, 3], torch.cat([encode.columns[3], encode.rows[2]]))


def test_learned_names_its_limit() -> None:
    with pytest.raises(ConfigError, match="5x3 cells, expected at most 4 per side; use smaller images"):
        LearnedPositionEncoding(8, limit=4)(torch.zeros(1, 5, 3, dtype=torch.bool))
