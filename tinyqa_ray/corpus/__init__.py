"""Reading a corpus: documents and questions of any format → normalised Parquet, and what is asked of what."""
