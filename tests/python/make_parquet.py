"""Writes tests/fixtures/parquet: the same rows as pandas, pyarrow and datasets save them.

    pip install pandas pyarrow datasets
    python tests/python/make_parquet.py
"""

from pathlib import Path

import datasets
import pandas
import pyarrow
import pyarrow.parquet

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "parquet"
TEXTS = ["a day at the beach", "party", "two\nlines, \"quoted\"", "", "family"]
EMOJI = ["🏖️🌊", "🎉", "📄📄", "🌞", "👨\u200d👩\u200d👧"]


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    strings = pyarrow.table({"text": TEXTS, "emoji": EMOJI})

    # Other columns around the two, one of them nested; a null; a category, stored as a dictionary.
    frame = pandas.DataFrame(
        {
            "id": range(5),
            "emoji": pandas.Categorical(EMOJI),
            "tags": [["a", "b"], [], ["c"], None, ["d"]],
            "text": [text or None for text in TEXTS],
            "when": pandas.to_datetime(["2025-01-01"] * 5),
        }
    )
    frame.to_parquet(OUT / "pandas.parquet")

    datasets.Dataset.from_dict({"text": TEXTS, "emoji": EMOJI}).to_parquet(OUT / "datasets.parquet")

    large = strings.cast(pyarrow.schema([("text", pyarrow.large_string()), ("emoji", pyarrow.large_string())]))
    pyarrow.parquet.write_table(
        large, OUT / "pyarrow-zstd-v2.parquet", compression="zstd", data_page_version="2.0", row_group_size=2
    )
    pyarrow.parquet.write_table(
        strings, OUT / "pyarrow-gzip.parquet", compression="gzip", use_dictionary=False,
        column_encoding={"text": "DELTA_BYTE_ARRAY", "emoji": "DELTA_LENGTH_BYTE_ARRAY"},
    )  # fmt: skip
    # What is refused.
    pyarrow.parquet.write_table(strings, OUT / "brotli.parquet", compression="brotli")
    columns = {"text": pyarrow.array(range(5)), "emoji": EMOJI}
    pyarrow.parquet.write_table(pyarrow.table(columns), OUT / "numbers.parquet")
    pyarrow.parquet.write_table(strings.rename_columns(["input", "output"]), OUT / "columns.parquet")
    pyarrow.parquet.write_table(strings.slice(0, 0), OUT / "empty.parquet")


main()
