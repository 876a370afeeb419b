"""The Gluon form of `mla_decode`: nothing executes it here, and no card takes it yet."""

import pytest

pytest.importorskip("triton", reason="needs triton, a development extra")

from dstools_kernels.ops.triton import mla_decode_gluon, mla_decode_triton


def test_it_has_the_arguments_of_the_other_form_and_no_constants() -> None:
    gluon = mla_decode_triton.CONFIGS["mla_decode/bf16.gluon"]
    other = mla_decode_triton.CONFIGS["mla_decode/bf16.64x64"]
    assert gluon.kernel is mla_decode_gluon.decode_kernel
    assert gluon.signature == other.signature
    assert list(gluon.signature) == list(gluon.kernel.arg_names)
    assert gluon.constants == {}


def test_no_card_has_passed_it() -> None:
    """A card is added together with its figures in docs/kernels.md, and this test goes then."""
    assert mla_decode_triton.GLUON_CARDS == ()
