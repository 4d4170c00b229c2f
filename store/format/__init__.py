"""The format on disk: names, geometry, bytes and checksums.

schema       every variable that a store may hold
layout       chunks and shards
metadata     zarr.json documents
label_codec  label columns as bytes
shards       one data file
int8         row-scaled int8
checksum     crc32c
"""
