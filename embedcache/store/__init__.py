"""One encoder's rows on disk: immutable Zarr segments, published by write-once records."""
