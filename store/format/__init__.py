"""The format on disk: names, geometry, bytes and checksums.

schema       every variable that a store may hold, and reserved names
layout       chunks, shards and the size forecast
metadata     zarr.json documents
label_codec  label columns as bytes
shards       one data file in memory
int8         row-scaled int8
checksum     crc32c
"""
