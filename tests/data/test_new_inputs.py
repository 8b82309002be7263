import json

import numpy as np
import pytest
import torch
from PIL import Image

from bayesify import data
from bayesify.core.errors import DataError
from bayesify.data.new_inputs import Intake


def through_json(splits):
    return Intake.from_json(json.loads(json.dumps(Intake.of(splits).to_json())))


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "t.csv"
    rows = [f"{n},{n % 3},{'xy'[n % 2]},{n / 7}" for n in range(60)]
    path.write_text("\n".join(["size,code,letter,weight", *rows]))
    return path


def test_rows_of_a_table_come_out_as_in_training(table):
    splits = data.splits(table, target="weight")
    names, x = through_json(splits).read(table)
    assert names[:2] == ["0", "1"]
    seen, _ = splits.train.batch(torch.arange(len(splits.train)))
    rows = {tuple(row) for row in x.tolist()}
    assert {tuple(row) for row in seen.tolist()} <= rows


def test_a_text_that_looks_like_a_number_is_still_text(table, tmp_path):
    table.write_text(table.read_text().replace(",x,", ",1,"))  # the letters are now 1 and y
    splits = data.splits(table, target="weight")
    (tmp_path / "new.csv").write_text("letter,code,size\n1,0,4\n")
    _, x = through_json(splits).read(tmp_path / "new.csv")
    assert x.shape == (1, 4)


def test_pixels_come_out_as_in_training(tmp_path):
    splits = data.splits("digits")
    np.savez(tmp_path / "x.npz", x=splits.test.x[:5].numpy())
    _, x = through_json(splits).read(tmp_path / "x.npz")
    torch.testing.assert_close(x, splits.test.batch(torch.arange(5))[0], rtol=0, atol=0)


def test_an_image_is_brought_to_the_training_size(tmp_path):
    splits = data.splits("digits")
    Image.fromarray(np.full((20, 30, 3), 255, np.uint8)).save(tmp_path / "white.png")
    intake = through_json(splits)
    names, x = intake.read(tmp_path / "white.png")
    assert (names, x.shape) == (["white.png"], (1, 1, 8, 8))
    torch.testing.assert_close(intake.normalise.inverse(x), torch.ones(1, 1, 8, 8))


def test_mistakes_are_named(table, tmp_path):
    intake = Intake.of(data.splits("digits"))
    (tmp_path / "empty").mkdir()
    np.savez(tmp_path / "y.npz", y=np.arange(3))
    np.savez(tmp_path / "wide.npz", x=np.zeros((3, 5)))
    np.savez(tmp_path / "nan.npz", x=np.full((3, 1, 8, 8), np.nan))
    for name, message in [
        ("nowhere.npz", "no such file"),
        ("empty", "found none"),
        ("y.npz", "expected the array x, got y"),
        ("wide.npz", r"expected examples of shape \(1, 8, 8\)"),
        ("nan.npz", "NaN or infinity"),
    ]:
        with pytest.raises(DataError, match=message):
            intake.read(tmp_path / name)
    (tmp_path / "gap.csv").write_text("size,code,letter\n1,,x\n")
    with pytest.raises(DataError, match="1 missing in column 'code'"):
        Intake.of(data.splits(table, target="weight")).read(tmp_path / "gap.csv")
