"""Training files of other programs, read as `records`: JSON lines and arrays, CSV, Parquet, WebDataset tar, plain text."""
