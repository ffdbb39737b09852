"""Reading and writing of rows and audio in Parquet files."""
