"""Batch prediction: rows of a file in, verified Parquet files in the batch store out."""
