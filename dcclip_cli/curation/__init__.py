"""`collect`: from raw sources to clean Chinese-English shards, with an account of every drop."""
