"""The scheme of an FP8 KV cache: where an output lacks that of its source."""

from collections.abc import Iterator

from dstools_converters.errors import Finding, printable
from dstools_converters.plan.plan import Plan


def check_cache(plan: Plan) -> Iterator[Finding]:
    """Yield a warning where a quantized output lacks the `kv_cache_scheme` of its source or base.

    Only compressed-tensors declares one. vLLM and SGLang load the scales of a native checkpoint
    all the same, if asked for an FP8 cache. Source: vLLM 0.32 and SGLang 0.5.23, their Fp8Config.
    """
    if plan.scheme is None or plan.config["quantization_config"].get("kv_cache_scheme"):
        return
    for inventory in (plan.inventory, plan.base):
        if inventory is None or inventory.scheme is None:
            continue
        cache = inventory.checkpoint.config["quantization_config"].get("kv_cache_scheme")
        if not cache:
            continue
        if inventory is plan.base:
            where, reason = "--base config.json", "its scales are in --base, not in the source"
            hint = "--kv-cache fp8 with --calibrate measures them"
        else:
            where, reason = "config.json", f"the {plan.scheme.format} format has no place for it"
            hint = (
                "--format compressed-tensors keeps it; engines use an FP8 cache with a native "
                "checkpoint only if asked, as by vLLM's --kv-cache-dtype fp8"
            )
        yield Finding.warning(
            "kv-cache-scheme",
            where,
            f"kv_cache_scheme{_described(cache)} is left out: {reason}",
            hint,
        )


def _described(cache: object) -> str:
    """Return bits and type of a scheme in brackets, "" where it does not say."""
    if not isinstance(cache, dict) or not {"num_bits", "type"} <= cache.keys():
        return ""
    return printable(f" ({cache['type']}, {cache['num_bits']} bits)")
