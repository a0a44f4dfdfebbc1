"""Makes tests/fixtures/gguf-tokenizers/: tokenizers in GGUF metadata, and the ids Hugging Face's tokenizers give.

    python tests/reference/gguf_tokenizers.py              write the fixtures
    python tests/reference/gguf_tokenizers.py --llama-cpp  and list where llama.cpp, given the same GGUF, differs

pre_tokenizers.json  what the `tokenizer.json` of the models behind each `tokenizer.ggml.pre` has
bpe.gguf             a small byte-level BPE, for any of them
cases.json           its ids of the texts, with each of them
spm.gguf             a small SentencePiece BPE, as llama.cpp's converter stores it
spm_cases.json       its ids, of transformers' LlamaTokenizer: `ids`, where only the text's beginning gets a space
                     (legacy=False), and `legacy`, where the text after every special token does (legacy=True)

The GGUF files have no tensors.

Made with tokenizers 0.23.3, transformers 5.23.0, sentencepiece 0.2.3, gguf 0.19.0 and xllamacpp 2026.10.11549.
"""

import json
import sys
import tempfile
import urllib.request
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

FIXTURES = Path(__file__).parent.parent / "fixtures"
FOLDER = FIXTURES / "gguf-tokenizers"

# ---------------------------------------------------------------------------------------------------- pre-tokenizers

CL100K = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN2 = CL100K.replace(r"\p{N}{1,3}", r"\p{N}")
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         rf"|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
NFC = {"type": "NFC"}


def byte_level(use_regex=True):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


def split(regex, removed=False):
    """Some files keep what matches ("Isolated"), some remove what does not: the same, since these match everything."""
    behavior = {"behavior": "Removed", "invert": True} if removed else {"behavior": "Isolated", "invert": False}
    return sequence({"type": "Split", "pattern": {"Regex": regex}} | behavior, byte_level(False))


def entry(pre_tokenizer, normalizer=None, ignore_merges=False):
    return {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "ignore_merges": ignore_merges}


DIGITS = sequence({"type": "Digits", "individual_digits": True}, byte_level())
PRE_TOKENIZERS = {
    "gpt-2": entry(byte_level()),
    "phi-2": entry(byte_level()),
    "olmo": entry(byte_level(), NFC),
    "mpt": entry(byte_level(), NFC),
    "smollm": entry(DIGITS),
    "starcoder": entry(DIGITS),
    "refact": entry(DIGITS),
    "command-r": entry(DIGITS, NFC),
    "qwen2": entry(split(QWEN2), NFC),
    "stablelm2": entry(split(QWEN2, removed=True), NFC),
    "llama-bpe": entry(split(CL100K), ignore_merges=True),
    "dbrx": entry(split(CL100K, removed=True)),
    "gpt-4o": entry(split(O200K, removed=True)),
}

# ------------------------------------------------------------------------------------------------------------- texts

TEXTS = [
    "",
    "Hello world",
    " Hello  world ",
    "In 2024, 1234567 of 12 and 123 or 1234 cost $3.14159; ½, ⅻ and ٣٤٥ too",
    "I'm sure they'll say it's what we've got, don't you'd",
    "I'M SURE THEY'LL SAY IT'S WHAT WE'VE GOT, DON'T YOU'D",
    "HTTPServer parseXMLDoc iPhoneX McDonald's camelCase's ABCdef",
    "def f(x, y=1):\n    if x >= 10:\n        return x**2  # square\n\n\treturn {'a': [1, 2]}\n",
    "for (int i=0;i<100;++i){a[i]+=b->c;} // done/\n/* end */",
    "na\u00efve caf\u00e9 \u00c5ngstr\u00f6m \u1ec7",
    "nai\u0308ve cafe\u0301 A\u030angstro\u0308m e\u0323\u0302",
    "😀 👍🏽 family 👨‍👩‍👧 ❤️ flag 🇫🇷!",
    "你好,世界。今天是2024年12月31日。",
    "東京タワーへ行きました。서울에서 만나요. привет, мир! שלום עולם مرحبا हिन्दी ไทย",
    "tabs\t\tand\tmore \t mixed\n\n\nnew lines\r\nwindows\r\n\r\n  indented",
    "trailing spaces   ",
    "   leading spaces",
    "a  b   c    d     e      f       g        h         i            j",
    "\n",
    " ",
    "        x        y",
    "<|endoftext|>Hello<|endoftext|> world<|user|>hi <|user|> there",
    "<s>Hello</s> world<unk> <s> [INST] x",
    "aaaaaaaaaaaaa bbbbb =====-----====== ......... !!!!!?",
    "zebra quixotic zebras Quixotic\nzebra",
    "https://example.org/a_b?c=d&e=%20#x user@mail.com C:\\dir\\file.txt",
    "non\u00a0breaking\u2003em\u200bzero\u3000wide\u2028line",
    "\u0000\u0007 control \u007f and \ufffd \U0010fffd",
    "▁lower ▁ one eighth block ▁▁",
]

CORPUS = (FIXTURES / "corpus.txt").read_text().splitlines() + 3 * [
    "Hello world, hello there. I'm sure it's what they'll say; we've got it, don't you'd think so? IT'S THEY'LL DON'T",
    "In 2024 and 2025, 1234567 cost 123 or 12 or 1234 of 3.14159, on 12/31 at 10:00; 100 200 1000 10000",
    "def f(x, y=1):\n    if x >= 10:\n        return x**2\n\n\treturn None\n",
    "for (int i=0;i<100;++i){a[i]+=b->c;}\r\n\r\n",
    "naïve café Ångström é ö, nai\u0308ve cafe\u0301 ö", "你好,世界。今天是2024年12月31日。東京タワーへ行きました。",
    "привет, мир! 서울에서 만나요", "a  b   c    d     e      f       g", "aaaaaaaaaaaaa ===== ----- .... !!!!",
    "HTTPServer parseXMLDoc iPhoneX McDonald's camelCase", "https://example.org/a_b?c=d&e=f", "tabs\t\tand\n\n\nlines",
]

# -------------------------------------------------------------------------------------------------- byte-level BPE

SPECIAL = {"<|endoftext|>": gguf.TokenType.CONTROL, "<|user|>": gguf.TokenType.USER_DEFINED,
           "        ": gguf.TokenType.USER_DEFINED}
UNREACHABLE = ["zebra", "Ġquixotic"]
"""Words no merges lead to; `ignore_merges` finds them."""


def train_bpe():
    """Merges within GPT-2's words first, then any: so that they cross every boundary a pre-tokenizer might draw."""
    vocab, merges = {}, {}
    for use_regex, size in [(True, 480), (False, 560)]:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False,
                                      max_token_length=6)
        # Small pieces, lest a whole line becomes a token.
        tokenizer.train_from_iterator(CORPUS if use_regex else [c for c in CORPUS if len(c) < 120], trainer)
        model = json.loads(tokenizer.to_str())["model"]
        for token in sorted(model["vocab"], key=model["vocab"].get):
            vocab.setdefault(token, len(vocab))
        merges.update(dict.fromkeys(map(tuple, model["merges"])))
    for token in [*UNREACHABLE, *SPECIAL]:
        vocab[token] = len(vocab)
    return vocab, list(merges)


def bpe_tokenizer(vocab, merges, pre):
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=pre["ignore_merges"]))
    whole = json.loads(tokenizer.to_str()) | {key: pre[key] for key in ("normalizer", "pre_tokenizer")}
    tokenizer = Tokenizer.from_str(json.dumps(whole))
    # As in published files: special tokens are looked for in the text itself, others in the normalized text.
    tokenizer.add_tokens([AddedToken(text, special=kind == gguf.TokenType.CONTROL,
                                     normalized=kind != gguf.TokenType.CONTROL) for text, kind in SPECIAL.items()])
    return tokenizer


def write_bpe(path, vocab, merges, pre, tensors=False):
    types = [SPECIAL.get(token, gguf.TokenType.NORMAL) for token in vocab]
    writer = start(path, len(vocab))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(list(vocab))
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(m) for m in merges])
    writer.add_bos_token_id(vocab["<|endoftext|>"])
    writer.add_eos_token_id(vocab["<|endoftext|>"])
    finish(writer, len(vocab), tensors)


# ---------------------------------------------------------------------------------------------------- SentencePiece


def train_spm(folder):
    """With Llama 2's settings."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_prefix=str(folder / "tokenizer"), vocab_size=560, model_type="bpe",
        byte_fallback=True, split_digits=True, allow_whitespace_only_pieces=True, remove_extra_whitespaces=False,
        normalization_rule_name="identity", character_coverage=0.98, user_defined_symbols=["<|user|>"],
        max_sentencepiece_length=16, minloglevel=2, num_threads=1,
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def spm_type(spm, i):
    """As llama.cpp's converter has it; a user-defined piece is one that is not normal nor anything else."""
    for test, kind in [(spm.IsUnknown, gguf.TokenType.UNKNOWN), (spm.IsControl, gguf.TokenType.CONTROL),
                       (spm.IsUnused, gguf.TokenType.UNUSED), (spm.IsByte, gguf.TokenType.BYTE)]:
        if test(i):
            return kind
    return gguf.TokenType.USER_DEFINED if spm.IdToPiece(i) == "<|user|>" else gguf.TokenType.NORMAL


def write_spm(path, spm, tensors=False):
    size = spm.GetPieceSize()
    writer = start(path, size)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([spm.IdToPiece(i) for i in range(size)])
    writer.add_token_scores([spm.GetScore(i) for i in range(size)])
    writer.add_token_types([spm_type(spm, i) for i in range(size)])
    writer.add_bos_token_id(spm.bos_id())
    writer.add_eos_token_id(spm.eos_id())
    writer.add_unk_token_id(spm.unk_id())
    writer.add_add_space_prefix(True)
    finish(writer, size, tensors)


def rebuilt(path, legacy, by_score=False):
    """The tokenizer from the GGUF file alone: the recipe that the pipeline follows, checked against transformers'."""
    fields = gguf.GGUFReader(path).fields
    tokens, scores, types = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "scores", "token_type"))
    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [(vocab[token], token[:i], token[i:]) for token in vocab for i in range(1, len(token))
              if token[:i] in vocab and token[i:] in vocab]
    # transformers 5 orders by id, then shorter left sides first; transformers 4 by score, then longer ones.
    merges.sort(key=lambda m: (-scores[m[0]], -len(m[1])) if by_score else (m[0], len(m[1])))
    unk = tokens[types.index(gguf.TokenType.UNKNOWN)]
    tokenizer = Tokenizer(models.BPE(vocab, [m[1:] for m in merges], unk_token=unk, fuse_unk=True, byte_fallback=True))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(content=" ", left=1)])
    for token, kind in zip(tokens, types):
        if kind in (gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED):
            special = kind != gguf.TokenType.USER_DEFINED
            tokenizer.add_tokens([AddedToken(token, special=special, normalized=False)])
    return tokenizer


def spm_expected(folder, legacy):
    tokenizer = transformers.LlamaTokenizer.from_pretrained(folder, legacy=False)
    if legacy:
        # transformers 5 has no longer this; transformers 4 and published tokenizer.json do.
        backend = tokenizer.backend_tokenizer
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        whole = json.loads(backend.to_str()) | {"pre_tokenizer": None}
        return Tokenizer.from_str(json.dumps(whole))
    return tokenizer.backend_tokenizer


# -------------------------------------------------------------------------------------------------------------- GGUF


def start(path, vocab):
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in [
        (writer.add_context_length, 256), (writer.add_embedding_length, 32), (writer.add_block_count, 1),
        (writer.add_feed_forward_length, 32), (writer.add_head_count, 1), (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_vocab_size, vocab), (writer.add_add_bos_token, False),
    ]:
        add(value)
    return writer


def finish(writer, vocab, tensors):
    if tensors:
        square = (32, 32)
        shapes = {"token_embd": (vocab, 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
        shapes |= {f"blk.0.{n}": square for n in ("attn_q", "attn_k", "attn_v", "attn_output")}
        shapes |= {f"blk.0.{n}": square for n in ("ffn_gate", "ffn_up", "ffn_down")}
        for name, shape in shapes.items():
            writer.add_tensor(f"{name}.weight", np.ones(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_cpp(path):
    """Ids of the texts, of llama.cpp's server on the loopback interface."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.cpuparams.n_threads = str(path), 64, 1
    server = xllamacpp.Server(settings)
    found = []
    for text in TEXTS:
        body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
        request = urllib.request.Request(f"{server.listening_address}/tokenize", body,
                                         {"Content-Type": "application/json"})
        found.append(json.loads(urllib.request.urlopen(request).read())["tokens"])
    return found


def compare(name, tokens, expected, found):
    for text, e, f in zip(TEXTS, expected, found, strict=True):
        if e != f:
            at = next((i for i, (a, b) in enumerate(zip(e, f)) if a != b), min(len(e), len(f)))
            show = [" ".join(tokens[i] for i in ids[max(at - 1, 0):at + 5]) for ids in (e, f)]
            print(f"{name}: {text!r}: Hugging Face …{show[0]}…, llama.cpp …{show[1]}…")


# -------------------------------------------------------------------------------------------------------------- main


def lines(value):
    """JSON with a line for each item of the innermost lists of cases."""
    if isinstance(value, dict):
        inner = ",\n".join(f"{json.dumps(k)}: {lines(v)}" for k, v in value.items())
        return f"{{\n{inner}\n}}"
    return "[\n" + ",\n".join(json.dumps(v, ensure_ascii=True, separators=(",", ":")) for v in value) + "\n]"


def main():
    check = "--llama-cpp" in sys.argv
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "pre_tokenizers.json").write_text(json.dumps(PRE_TOKENIZERS, indent=1) + "\n")
    with tempfile.TemporaryDirectory() as temporary:
        temporary = Path(temporary)

        vocab, merges = train_bpe()
        write_bpe(FOLDER / "bpe.gguf", vocab, merges, "gpt-2")
        tokenizers = {name: bpe_tokenizer(vocab, merges, pre) for name, pre in PRE_TOKENIZERS.items()}
        ids = {name: [t.encode(text, add_special_tokens=False).ids for text in TEXTS] for name, t in tokenizers.items()}
        kinds = {json.dumps(pre).replace('"Removed", "invert": true', '"Isolated", "invert": false')
                 for pre in PRE_TOKENIZERS.values()}
        assert len({json.dumps(i) for i in ids.values()}) == len(kinds), "two pre-tokenizers give the same ids"
        (FOLDER / "cases.json").write_text(lines({"texts": TEXTS, "ids": ids}) + "\n")
        for name in PRE_TOKENIZERS if check else []:
            write_bpe(temporary / f"{name}.gguf", vocab, merges, name, tensors=True)
            compare(name, list(vocab), ids[name], llama_cpp(temporary / f"{name}.gguf"))

        folder = temporary / "spm"
        folder.mkdir()
        spm = train_spm(folder)
        write_spm(FOLDER / "spm.gguf", spm)
        expected = {}
        for key, legacy in [("ids", False), ("legacy", True)]:
            tokenizer = spm_expected(folder, legacy)
            expected[key] = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
            for by_score in (False, True):
                again = rebuilt(FOLDER / "spm.gguf", legacy, by_score)
                found = [again.encode(text, add_special_tokens=False).ids for text in TEXTS]
                for text, e, f in zip(TEXTS, expected[key], found):
                    if e != f:
                        print(f"rebuilt, legacy={legacy}, by_score={by_score}: {text!r}: {e} {f}")
        (FOLDER / "spm_cases.json").write_text(lines({"texts": TEXTS} | expected) + "\n")
        tokens = [spm.IdToPiece(i) for i in range(spm.GetPieceSize())]
        own = [spm.encode(text) for text in TEXTS]
        for text, e, f in zip(TEXTS, expected["legacy"], own):
            if e != f and "<" not in text:
                print(f"sentencepiece: {text!r}: {e} {f}")
        if check:
            write_spm(temporary / "spm.gguf", spm, tensors=True)
            found = llama_cpp(temporary / "spm.gguf")
            for key in expected:
                compare(f"SentencePiece, {key}", tokens, expected[key], found)


if __name__ == "__main__":
    main()
