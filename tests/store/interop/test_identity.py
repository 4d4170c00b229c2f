"""Byte identity with zarr-python, and reading by xarray, zarr-python and TensorStore."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tensorstore
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from stratalens.store.format import label_codec as labels
from stratalens.store.format import metadata
from stratalens.store.format.checksum import crc32c
from stratalens.store.format.layout import ArrayLayout, Geometry
from stratalens.store.format.schema import COMPRESSIONS, DTYPES, Variable
from stratalens.store.format.shards import FileImage
from stratalens.store.state.manifest import load
from stratalens.store.storage.local import LocalStorage
from support.stores import make_store


@st.composite
def layouts(draw: st.DrawFn) -> tuple[ArrayLayout, int, int]:
    """Draw a layout, stages and entities: short last blocks, token chunks, variables without layers or shards."""
    entities = draw(st.integers(1, 9))
    block = draw(st.integers(1, entities))
    layers = draw(st.integers(1, 3))
    tokens = draw(st.integers(1, 5))
    layered = draw(st.booleans())
    features = draw(st.lists(st.integers(1, 3), max_size=2))
    dims = ["stage", *(["layer"] if layered else []), "entity", "token", *(f"f{i}" for i in range(len(features)))]
    variable = Variable(
        "x",
        tuple(dims),
        tuple(features),
        draw(st.sampled_from(DTYPES)),
        sharded=draw(st.booleans()) if layered else None,
        compression=draw(st.sampled_from(COMPRESSIONS)),
    )
    base = Geometry(block, entities, layers, tokens, False).layout(variable)
    run = draw(st.integers(1, tokens)) if base.sharded else tokens
    run = -(-tokens // -(-tokens // run))
    return ArrayLayout(variable, block, base.layers, base.tokens, run), draw(st.integers(1, 2)), entities


def zarr_array(layout: ArrayLayout, shape: tuple[int, ...], store: Any, name: str = "x") -> zarr.Array[Any]:
    variable = layout.variable
    packing = [ZstdCodec(level=1)] if layout.compressed else []
    inner = {"filters": None, "compressors": [*packing, Crc32cCodec()]}
    return zarr.create_array(
        store,
        name=name,
        shape=shape,
        dtype=variable.storage_dtype,
        chunks=layout.inner_shape,
        shards=layout.file_shape if layout.sharded else None,
        fill_value=variable.fill,
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=list(variable.dims),
        config={"write_empty_chunks": True},
        attributes=dict(variable.attrs),
        **inner,
    )


def inner_chunks(layout: ArrayLayout, file: bytes) -> list[bytes]:
    index = np.frombuffer(file[-layout.index_nbytes : -4], dtype="<u8").reshape(-1, 2)
    return [file[offset : offset + length] for offset, length in index.tolist()]


def random_values(variable: Variable, shape: tuple[int, ...], seed: int) -> np.ndarray:
    dtype = variable.storage_dtype
    bits = np.random.default_rng(seed).integers(0, 256, (int(np.prod(shape)) * dtype.itemsize), dtype=np.uint8)
    if dtype.kind == "b":
        bits &= 1
    return bits.view(dtype).reshape(shape)


@settings(max_examples=60, deadline=None)
@given(layouts(), st.integers(0, 2**31), st.booleans())
def test_files_and_metadata_are_those_of_zarr(case: tuple[ArrayLayout, int, int], seed: int, all_fill: bool) -> None:
    layout, stages, entities = case
    variable = layout.variable
    shape = layout.array_shape(stages, entities)
    values = random_values(variable, shape, seed)
    if all_fill:
        values[...] = variable.fill
    memory = zarr.storage.MemoryStore()
    array = zarr_array(layout, shape, memory)
    assert {"shards": array.shards, "chunks": array.chunks} == {
        "shards": layout.file_shape if layout.sharded else None,
        "chunks": layout.inner_shape,
    }
    array[...] = values
    theirs = {k: v.to_bytes() for k, v in memory._store_dict.items()}
    document = json.loads(theirs["x/zarr.json"])
    ours = metadata.variable_metadata(layout, stages, entities)
    ours["attributes"] = {}
    assert ours == document
    blocks = -(-entities // layout.block_size)
    buffer = np.full(layout.file_nbytes, 0xA5, dtype=np.uint8)
    full = values.reshape(stages, layout.layers, entities, layout.tokens, *variable.shape)
    for stage in range(stages):
        for block in range(blocks):
            image = FileImage(layout, buffer)
            start, stop = block * layout.block_size, min((block + 1) * layout.block_size, entities)
            image.clear(stop - start)
            image.put(slice(None), slice(0, stop - start), full[stage, :, start:stop])
            ours_file = b"".join(p.tobytes() for p in image.encode())
            their_file = theirs[layout.key(stage, block)]
            if layout.token_chunks == 1 or layout.layers == 1:
                assert ours_file == their_file
            else:  # zarr-python writes two-dimensional shards in Morton order, stratalens writes layer by layer
                assert inner_chunks(layout, ours_file) == inner_chunks(layout, their_file)
                assert ours_file[-4:] == crc32c(ours_file[-layout.index_nbytes : -4]).to_bytes(4, "little")
                memory._store_dict[layout.key(stage, block)] = (
                    zarr.core.buffer.default_buffer_prototype().buffer.from_bytes(ours_file)
                )
    np.testing.assert_array_equal(zarr.open_array(memory, path="x", mode="r")[...], values)
    assert len([k for k in theirs if "c." in k]) == stages * blocks


@settings(max_examples=60, deadline=None)
@given(layouts(), st.integers(0, 2**31), st.data())
def test_tokens_that_no_row_has_need_not_be_made(
    case: tuple[ArrayLayout, int, int], seed: int, data: st.DataObject
) -> None:
    """Writing only the last tokens gives the same bytes as writing missing values before them."""
    layout = case[0]
    first = data.draw(st.integers(0, layout.tokens - 1))
    rows = np.array(data.draw(st.lists(st.integers(0, layout.block_size - 1), min_size=1, unique=True)))
    some = data.draw(st.booleans())
    layers: Any = np.arange(layout.layers)[::2] if some else slice(None)
    shape = (len(range(0, layout.layers, 2)) if some else layout.layers, len(rows), layout.tokens)
    values = random_values(layout.variable, (*shape, *layout.variable.shape), seed)
    values[:, :, :first] = layout.variable.fill
    images = []
    for part, begin in ((values, 0), (values[:, :, first:], first)):
        image = FileImage(layout, np.full(layout.file_nbytes, 0xA5, dtype=np.uint8))
        image.put(layers, rows, part, begin)
        images.append(image.memory)
    np.testing.assert_array_equal(*images)


@settings(max_examples=30, deadline=None)
@given(layouts(), st.integers(0, 2**31))
def test_files_split_along_tokens_are_those_of_zarr_but_for_the_order(
    case: tuple[ArrayLayout, int, int], seed: int
) -> None:
    """The specification does not fix the order of inner chunks; in the same order zarr-python writes the same bytes."""
    layout, stages, entities = case
    shape = layout.array_shape(stages, entities)
    values = random_values(layout.variable, shape, seed)
    memory = zarr.storage.MemoryStore()
    array = zarr_array(layout, shape, memory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zarr.codecs.sharding, "morton_order_iter", zarr.codecs.sharding.c_order_iter)
        array[...] = values
    full = values.reshape(stages, layout.layers, entities, layout.tokens, *layout.variable.shape)
    image = FileImage(layout, np.empty(layout.file_nbytes, dtype=np.uint8))
    rows = min(layout.block_size, entities)
    image.clear(rows)
    image.put(slice(None), slice(0, rows), full[0, :, :rows])
    theirs = memory._store_dict[layout.key(0, 0)].to_bytes()
    assert b"".join(p.tobytes() for p in image.encode()) == theirs


def test_all_three_libraries_are_asked_through_the_shard_codec_too() -> None:
    layout = Geometry(2, 3, 2, 1, False).layout(Variable("x", ("stage", "layer", "entity", "token", "f"), (4,)))
    chain = ShardingCodec(chunk_shape=layout.inner_shape, codecs=[BytesCodec(), Crc32cCodec()])
    ours = metadata.variable_metadata(layout, 1, 3)["codecs"]
    assert ours == [json.loads(json.dumps(chain.to_dict(), default=str))]


LABELS = {
    "text": np.array(["", "é", "日本", "a\nb"] * 6, dtype=object),
    "fixed": np.array(["x", "yy"] * 12),
    "modern": np.array(["x", "yy"] * 12, dtype=np.dtypes.StringDType()),
    "count": np.arange(24),
    "small": np.arange(24, dtype=np.int8),
    "weight": np.linspace(0, 1, 24, dtype=np.float32),
    "flag": np.arange(24) % 2 == 0,
    "holes": np.array(["x", None, float("nan"), "z"] * 6, dtype=object),
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tokens", [("last", "-2"), tuple(range(-5, 0))])
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_plain_readers_agree_without_a_warning(tmp_path: Any, dtype: str, tokens: Any, compression: str) -> None:
    from stratalens.store import open_store

    path = make_store(
        tmp_path / "run.zarr",
        3,
        [0, 4],
        24,
        tokens,
        6,
        dtype,
        LABELS,
        block_size=10,
        skip={"s1": [2, 13]},
        compression=compression,
    )
    ours = open_store(path, dtype="bits")
    plain = xr.open_zarr(path)
    assert set(plain.variables) | {"exposure"} == set(ours.variables)
    for name in plain.variables:
        theirs = plain[name].values
        np.testing.assert_array_equal(theirs.astype(ours[name].dtype), ours[name].values, err_msg=str(name))
        assert plain[name].dims == ours[name].dims
    group = zarr.open_group(path, mode="r")
    for name, array in group.arrays():
        np.testing.assert_array_equal(np.asarray(array[...]).astype(ours[name].dtype), ours[name].values)
        alone = zarr.open_array(path / name, mode="r")
        assert alone.shape == array.shape
        if array.dtype.kind == "T":
            continue
        opened = tensorstore.open(
            {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / name)}}, open=True
        ).result()
        np.testing.assert_array_equal(opened.read().result(), ours[name].values, err_msg=name)
    assert list(plain.holes.values[:4]) == ["x", "", "", "z"]
    missing = ours.resid_post.sel(stage="s1").isel(entity=2).values
    assert (missing == 0x7FC0).all() if dtype == "bfloat16" else np.isnan(missing).all()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), min_size=1, max_size=12), st.integers(1, 5)
)
def test_string_chunks_are_those_of_zarr(texts: list[str], chunk: int) -> None:
    column = labels.normalise("x", np.array(texts, dtype=object))
    files = labels.encode_chunks(column, chunk)
    memory = zarr.storage.MemoryStore()
    array = zarr.create_array(
        memory,
        shape=(len(texts),),
        chunks=(chunk,),
        dtype=np.dtypes.StringDType(),
        compressors=[zarr.codecs.ZstdCodec(level=1), Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
        config={"write_empty_chunks": True},
    )
    array[:] = np.array(texts, dtype=np.dtypes.StringDType())
    theirs = {k: v.to_bytes() for k, v in memory._store_dict.items() if k != "zarr.json"}
    assert theirs == {f"c.{i}": data for i, data in enumerate(files)}
    back = np.concatenate([labels.decode_chunk(f, "string", "x") for f in files])[: len(texts)]
    assert back.tolist() == texts


def test_root_document_is_what_zarr_consolidates(tmp_path: Any) -> None:
    path = make_store(tmp_path / "run.zarr", entities=10)
    before = json.loads((path / "zarr.json").read_text())
    members = {}
    for name in load(LocalStorage(path)).arrays():
        members[name] = json.loads((path / name / "zarr.json").read_text())
    assert before["consolidated_metadata"]["metadata"] == members
