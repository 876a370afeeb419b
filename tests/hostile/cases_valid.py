"""Odd checkpoints that are sound: every command takes them."""

import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
from model import BIAS, DENSE, EMBEDDING, HEAD, NORM, ONE, SCALE, TWO, Model, valid, with_header


@valid()
def a_plain_checkpoint(model: Model) -> None:
    pass


@valid(base="fp8")
def a_plain_checkpoint_in_fp8(model: Model) -> None:
    pass


@valid(base="llama")
def a_plain_llama(model: Model) -> None:
    pass


@valid()
def a_single_file_without_an_index(model: Model) -> None:
    model.one_shard()


@valid()
def an_index_of_the_single_file(model: Model) -> None:
    model.one_shard()
    model.index["metadata"] = {"total_size": sum(len(t.data) for t in model.tensors.values())}


@valid()
def headers_without_metadata(model: Model) -> None:
    model.header(ONE, lambda header: header.pop("__metadata__"))
    model.header(TWO, lambda header: header.pop("__metadata__"))


@valid()
def a_header_padded_with_a_thousand_blanks(model: Model) -> None:
    def pad(raw: bytes) -> bytes:
        end = 8 + int.from_bytes(raw[:8], "little")
        return with_header(raw[8:end] + b" " * 1000, raw[end:])

    model.edit(ONE, pad)


@valid()
def a_header_that_names_tensors_in_another_order(model: Model) -> None:
    def reverse(header: dict[str, object]) -> None:
        for name in reversed(list(header)):
            header[name] = header.pop(name)

    model.header(ONE, reverse)


@valid()
def names_in_the_header_that_are_escaped(model: Model) -> None:
    def escape(raw: bytes) -> bytes:
        end = 8 + int.from_bytes(raw[:8], "little")
        return with_header(raw[8:end].replace(b"model.norm", b"\\u006dodel.norm"), raw[end:])

    model.edit(ONE, escape)


@valid()
def a_shard_of_one_tensor(model: Model) -> None:
    model[NORM].shard = "z.safetensors"


@valid()
def a_tensor_of_no_elements(model: Model) -> None:
    model.put("extra.empty", "BF16", [0, 128], b"")


@valid()
def a_tensor_without_dimensions(model: Model) -> None:
    model.put("extra.scalar", "F32", [], np.float32(1.5).tobytes())


@valid()
def tensors_of_integers_and_of_truth_values(model: Model) -> None:
    model.put("extra.steps", "I64", [2], bytes(16))
    model.put("extra.mask", "BOOL", [3], b"\0\1\0")


@valid()
def a_name_in_chinese(model: Model) -> None:
    model.put("额外.weight", "BF16", [2], b"\x80?\x80?")


@valid()
def inverse_frequencies_as_older_transformers_saved_them(model: Model) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    model.put(name, "F32", [8], np.ones(8, np.float32).tobytes())


@valid(base="llama")
def a_tied_head(model: Model) -> None:
    model.config["tie_word_embeddings"] = True
    del model.tensors[HEAD]


@valid(base="llama")
def a_tied_head_that_is_stored_again(model: Model) -> None:
    model.config["tie_word_embeddings"] = True
    model[HEAD].data[:] = model[EMBEDDING].data


@valid(base="llama")
def a_model_in_f32(model: Model) -> None:
    for name, tensor in list(model.tensors.items()):
        wide = (tensor.bits.astype(np.uint32) << 16).tobytes()
        model.put(name, "F32", tensor.shape, wide, tensor.shard)


@valid()
def a_router_bias_in_bf16(model: Model) -> None:
    model.put(BIAS, "BF16", [4], bytes(2 * [0x80, 0x3F, 0, 0x3F]), TWO)


@valid()
def minus_zero_and_subnormal_numbers(model: Model) -> None:
    model[DENSE].bits[:4] = 0x8000, 0x0001, 0x8001, 0x007F


@valid(base="fp8")
def scales_in_bf16(model: Model) -> None:
    scale = model[SCALE]
    bits = (scale.floats.view(np.uint32) >> 16).astype(np.uint16)
    model.put(SCALE, "BF16", scale.shape, bits.tobytes(), scale.shard)


@valid(base="fp8")
def scales_in_a_shard_of_their_own(model: Model) -> None:
    for name, tensor in model.tensors.items():
        if name.endswith("_scale_inv"):
            tensor.shard = "scales.safetensors"


@valid()
def shards_that_are_links_within_the_folder(model: Model) -> None:
    def change(folder: Path) -> None:
        (folder / "files").mkdir()
        shutil.move(folder / ONE, folder / "files" / "one")
        (folder / ONE).symlink_to("files/one")

    model.after(change)


@valid()
def a_folder_of_the_hub_cache(model: Model) -> None:
    def change(folder: Path) -> None:
        blobs = folder.parent.parent / "blobs"  # as snapshots/REVISION has them
        blobs.mkdir(exist_ok=True)
        for number, path in enumerate(sorted(folder.iterdir())):
            shutil.move(path, blobs / str(number))
            path.symlink_to(os.path.relpath(blobs / str(number), folder))

    model.after(change)


@valid()
def an_index_with_more_keys(model: Model) -> None:
    total = sum(len(tensor.data) for tensor in model.tensors.values())
    count = sum(math.prod(tensor.shape) for tensor in model.tensors.values())
    model.index["metadata"] = {"total_size": total, "total_parameters": count}
    model.index["comment"] = ["\x1b[2J"]


@valid()
def unused_rows_of_the_embedding(model: Model) -> None:
    tokenizer = json.loads(model.files["tokenizer.json"])
    del tokenizer["model"]["vocab"][chr(0x1FF)]
    model.json("tokenizer.json", model=tokenizer["model"])


@valid()
def no_tokenizer(model: Model) -> None:
    model.files.clear()


@valid()
def a_tokenizer_of_pieces(model: Model) -> None:
    vocabulary = [[f"t{number}", -1.5] for number in range(256)]
    model.json("tokenizer.json", model={"type": "Unigram", "unk_id": 0, "vocab": vocabulary})
