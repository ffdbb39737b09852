"""Rows and audio in Parquet files."""
