"""A corpus on its way to a model: documents and questions of any format → normalised Parquet."""
