"""Makes Tests/GyreTokenizersTests/Fixtures: small vocabularies of every model kind, pipelines around them, texts,
and the tokens that the public `tokenizers` library gives.

    python Scripts/goldens/tokenizer_fixtures.py TEXT Tests/GyreTokenizersTests/Fixtures [FOLDER-FOR-WHOLE-TOKENIZERS]

TEXT is any English text (a plays' corpus was used). With a third argument every pipeline is also written
as a complete tokenizer.json there, for comparisons on large texts.
"""
import base64, json, os, random, struct, sys
from tokenizers import Tokenizer, models, pre_tokenizers, trainers, normalizers

corpus, out = open(sys.argv[1], encoding="utf8", errors="replace").read()[200_000:500_000], sys.argv[2]
os.makedirs(out, exist_ok=True)
rng = random.Random(20)
extra = ("héllo wörld naïve façade Ünïcödé Привет мир, как дела? Γειά σου Κόσμε 你好,世界 今日は世界 안녕하세요 세계 "
         "नमस्ते दुनिया مرحبا بالعالم שלום עולם 👍🏽 👨‍👩‍👧 12345 3.1415 x = y[0] + foo(bar); // ok\n") * 40
lines = (corpus + extra).splitlines(keepends=True)


def train(model, trainer, pre, normalizer=None):
    t = Tokenizer(model)
    if normalizer:
        t.normalizer = normalizer
    t.pre_tokenizer = pre
    t.train_from_iterator(lines, trainer)
    return json.loads(t.to_str())["model"]


bl = pre_tokenizers.ByteLevel(add_prefix_space=False)
quiet = dict(show_progress=False)
special = ["<s>", "</s>", "<unk>", "<pad>"]
byte_alphabet = [f"<0x{b:02X}>" for b in range(256)]
M = {}
M["bytelevel"] = train(models.BPE(), trainers.BpeTrainer(vocab_size=700, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **quiet), bl)
M["chars"] = train(models.BPE(unk_token="<unk>"), trainers.BpeTrainer(vocab_size=420, special_tokens=special, limit_alphabet=70, **quiet), pre_tokenizers.Metaspace())
M["suffix"] = train(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>", continuing_subword_prefix="##"),
                    trainers.BpeTrainer(vocab_size=450, special_tokens=special, limit_alphabet=60, end_of_word_suffix="</w>", continuing_subword_prefix="##", **quiet), pre_tokenizers.Whitespace())
M["fallback"] = train(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True), trainers.BpeTrainer(vocab_size=650, special_tokens=special + byte_alphabet, limit_alphabet=60, **quiet), pre_tokenizers.Metaspace())
M["unigram"] = train(models.Unigram(), trainers.UnigramTrainer(vocab_size=500, special_tokens=special, unk_token="<unk>", **quiet), pre_tokenizers.Metaspace())
M["unigram"]["vocab"] = [[t, round(s, 4)] for t, s in M["unigram"]["vocab"]]
M["wordpiece"] = train(models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer(vocab_size=500, limit_alphabet=100, special_tokens=["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"], **quiet), pre_tokenizers.BertPreTokenizer(), normalizers.BertNormalizer())
M["wordlevel"] = train(models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer(vocab_size=300, special_tokens=special, **quiet), pre_tokenizers.Whitespace())
M["legacy"] = {**M["bytelevel"], "merges": [" ".join(m) for m in M["bytelevel"]["merges"]]}
M["whole"] = {**M["bytelevel"], "ignore_merges": True}
M["nofuse"] = {**M["chars"], "fuse_unk": False}
M["fuse"] = {**M["chars"], "fuse_unk": True}
M["unigramfallback"] = {**M["unigram"], "byte_fallback": True, "vocab": M["unigram"]["vocab"] + [[b, -20.0] for b in byte_alphabet]}
DERIVED = {"whole", "nofuse", "fuse", "unigramfallback"}


def charsmap():
    """A small precompiled character map: a Darts double array that is built by brute force."""
    pairs = {"ﬁ".encode(): "fi", "½".encode(): "1/2", "①".encode(): "1", "\u3000".encode(): " ", b"\t": " ", "Å".encode(): "Å", "e\u0301".encode(): "é"}
    blob, where = b"", {}
    for k, v in pairs.items():
        where[k] = len(blob)
        blob += v.encode() + b"\0"
    units, used = {0: 0}, {0}
    def place(prefix, node):
        labels = sorted({k[len(prefix)] for k in pairs if k.startswith(prefix) and len(k) > len(prefix)})
        leaf = prefix in pairs
        offset = 1
        while True:
            slots = [node ^ offset ^ l for l in labels] + ([node ^ offset] if leaf else [])
            if offset < (1 << 21) and not any(s in used for s in slots):
                break
            offset += 1
        used.update(slots)
        units[node] = units.get(node, 0) | offset << 10 | (1 << 8 if leaf else 0)
        if leaf:
            units[node ^ offset] = where[prefix] | 1 << 31
        for l in labels:
            units[node ^ offset ^ l] = l
        for l in labels:
            place(prefix + bytes([l]), node ^ offset ^ l)
    place(b"", 0)
    size = (max(units) // 256 + 1) * 256
    trie = b"".join(struct.pack("<I", units.get(i, 0)) for i in range(size))
    return base64.b64encode(struct.pack("<I", len(trie)) + trie + blob).decode()


def added(*tokens):
    return [dict(id=i, content=c, single_word="w" in f, lstrip="l" in f, rstrip="r" in f, normalized="n" in f, special="s" in f)
            for i, (c, f) in enumerate(tokens)]


BL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BLS = {**BL, "add_prefix_space": True}
BLN = {**BL, "use_regex": False}
META = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
seq = lambda *x: {"type": "Sequence", "pretokenizers": list(x)}
nseq = lambda *x: {"type": "Sequence", "normalizers": list(x)}
dseq = lambda *x: {"type": "Sequence", "decoders": list(x)}
split = lambda p, b="Isolated", inv=False, kind="Regex": {"type": "Split", "pattern": {kind: p}, "behavior": b, "invert": inv}
CL = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = "|".join([r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
                  r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
                  r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
DEEPSEEK = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
HAN = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{L}&&[^\p{Han}]]++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s+"
TEMPLATE = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}, "</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}}
BERTPOST = {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]}
WP = {"type": "WordPiece", "prefix": "##", "cleanup": True}
BERT = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
LLAMA = dseq({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0})
END = [("<|endoftext|>", "s")]
S = [(x, "s") for x in special]
N = lambda n, **k: {"type": n, **k}
P = {  # name: model, normaliser, pre-tokeniser, post-processor, decoder, added tokens
    "gpt2": ("bytelevel", None, BL, BL, BL, END),
    "gpt2_space": ("legacy", None, BLS, {"type": "RobertaProcessing", "sep": ["</s>", 5], "cls": ["<s>", 6], "trim_offsets": True, "add_prefix_space": True}, BL, END + [("<mask>", "ls"), ("user", "wn"), ("  ", "n"), ("é", "n"), ("x y", "n")]),
    "neox": ("bytelevel", N("NFC"), BL, BL, BL, END + [("    ", "n"), ("  ", "n"), ("   ", "n")]),
    "llama3": ("whole", None, seq(split(CL % "{1,3}"), BLN), {"type": "Sequence", "processors": [BL, TEMPLATE]}, BL, END),
    "qwen2": ("bytelevel", N("NFC"), seq(split(CL % ""), BLN), BL, BL, END + [("<|im_start|>", "s")]),
    "o200k": ("bytelevel", None, seq(split(O200K, "Removed", True), BLN), BL, BL, END),
    "deepseek": ("bytelevel", None, seq(split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK), BLN), BL, BL, END),
    "han": ("bytelevel", None, seq(split(HAN), BLN), None, BL, []),
    "digits_bytes": ("bytelevel", None, seq(N("Digits", individual_digits=True), BL), None, BL, END),
    "bytes_whole": ("bytelevel", None, BLN, None, BL, []),
    "byte_normalizer": ("bytelevel", N("ByteLevel"), seq(split(r"[^ ]+| ", "Isolated")), None, BL, []),
    "metaspace": ("chars", None, META, TEMPLATE, {**META}, S),
    "metaspace_first": ("chars", N("NFKC"), {**META, "prepend_scheme": "first"}, None, {**META, "prepend_scheme": "first"}, S + [("<mask>", "lrs"), ("thou", "wn")]),
    "metaspace_never": ("nofuse", N("NFD"), {**META, "prepend_scheme": "never", "split": False}, None, {**META, "prepend_scheme": "never"}, S),
    "llama2": ("fallback", nseq(N("Prepend", prepend="▁"), N("Replace", pattern={"String": " "}, content="▁")), None, TEMPLATE, LLAMA, S),
    "suffix": ("suffix", nseq(N("NFKD"), N("Lowercase"), N("StripAccents")), N("Whitespace"), None, N("BPEDecoder", suffix="</w>"), S),
    "unigram": ("unigram", nseq(N("Nmt"), N("NFKC"), N("Replace", pattern={"Regex": " {2,}"}, content=" ")), META, TEMPLATE, META, S),
    "unigram_charsmap": ("unigram", nseq(N("Precompiled", precompiled_charsmap=charsmap()), N("Strip", strip_left=True, strip_right=True)), META, None, META, S),
    "unigram_fallback": ("unigramfallback", N("Strip", strip_left=False, strip_right=True), seq(N("WhitespaceSplit"), META), None, dseq(N("ByteFallback"), META), S),
    "bert": ("wordpiece", BERT, N("BertPreTokenizer"), BERTPOST, WP, [("[UNK]", "s"), ("[CLS]", "s"), ("[SEP]", "s"), ("[PAD]", "s"), ("[MASK]", "s")]),
    "bert_cased": ("wordpiece", {**BERT, "lowercase": False, "strip_accents": True}, N("BertPreTokenizer"), BERTPOST, {**WP, "cleanup": False}, [("[MASK]", "lsn")]),
    "wordlevel": ("wordlevel", N("Lowercase"), seq(N("Whitespace"), N("Punctuation", behavior="Contiguous")), TEMPLATE, None, S),
    "ctc": ("fuse", None, N("CharDelimiterSplit", delimiter="|"), None, N("CTC", pad_token="<pad>", word_delimiter_token="|", cleanup=True), S),
    "fixed": ("fuse", None, seq(N("FixedLength", length=3), N("Digits", individual_digits=False)), None, dseq(N("Fuse")), S),
}
for kind, (p, k) in {"regex": (r"\d+|[aeiou]{2,}?|(?<=t)h|\bof\b", "Regex"), "text": ("th", "String")}.items():
    for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        for inverted in (False, True):
            P[f"split_{kind}_{behavior}_{inverted}"] = ("fuse", None, split(p, behavior, inverted, k), None, None, S)
for i, p in enumerate([r"(a|b)*c|x(?=y)|[^\W\d_]+", r"^\w+|\w+$|.", r"(?i:THE)|[[:upper:]]+|[[:punct:]]", r"(?:ab|a)b?+|\s{2,4}|\x{e9}|é", r"\p{Lu}\p{Ll}*|\P{L}+|(?!)", "", r"(?<!s)t|\h{2}|\S+?(?=[,.])", r"(\w*)\s*", r"(?>a+)b|(a{2,3}){2}|\R|[\t-\r]"]):
    P[f"pattern_{i}"] = ("fuse", None, split(p), None, None, S)

spaces = [" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "\u2003", "\x85", "\u200b", "\u2028"]
texts = ["", " ", "a", "Hello, world!", "  leading and trailing  ", "don't you're I'LL we'Ve 'tis the '\u017f x's",
         "The quick (brown) fox -- jumps over: 12345 lazy dogs; 3.14159 1000000!", "line one\nline two\r\n\r\n  indented\n\n\n\tx = [1, 2]\n",
         "<|endoftext|>text<|endoftext|> more  <mask>  after <s>x</s> <unk> [MASK] [CLS]user username user.",
         "e\u0301 \u0065\u0323\u0301 Å Å ﬁ ½ ① Ⅷ ² İ ß ΑΣ ǅ 각 \u1100\u1161\u11a8 \u05e9\u05c1\u05ba\u05b3 \u0344 \u2126 豈 ㍻",
         "Привет, мир! Γειά σου, Κόσμε. 你好,世界!今日は。 안녕하세요 नमस्ते दुनिया مرحبا שלום ไทย", "👍🏽👨‍👩‍👧‍👦🇩🇪❤️ \u200d\ufe0f\ufeffx",
         "\x00\x01\x07\x1f\x7f\x80\x9f\ufffd\ue000\U000e0001 control", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa b",
         "abababcabcab xyxz éab abb  ab  aab aaaab aaaaaa", "3|5||x|word|next", "of off ofthe th thth t h 'th' oaoeaaee 007"]
for _ in range(14):
    words = [rng.choice(corpus[rng.randrange(len(corpus) - 400):].split()[1:9]) for _ in range(rng.randint(1, 9))]
    odd = ["".join(chr(rng.choice([rng.randint(0x21, 0x17f), rng.randint(0x300, 0x36f), rng.randint(0x370, 0x5ff), rng.randint(0x900, 0xdff), rng.randint(0x1e00, 0x2bff), rng.randint(0x3000, 0x4fff), rng.randint(0xac00, 0xad00), rng.randint(0x1f300, 0x1f6ff)])) for _ in range(rng.randint(1, 5))) for _ in range(5)]
    pieces = words + odd + [str(rng.randrange(10 ** rng.randint(1, 9)))]
    rng.shuffle(pieces)
    texts.append("".join(p + rng.choice(spaces[:1] * 6 + spaces) * rng.choice([1, 1, 1, 3]) for p in pieces))

pipelines = []
for name, (model, normalizer, pre, post, decoder, tokens) in P.items():
    whole = dict(version="1.0", truncation=None, padding=None, added_tokens=added(*tokens), normalizer=normalizer,
                 pre_tokenizer=pre, post_processor=post, decoder=decoder, model=M[model])
    t = Tokenizer.from_str(json.dumps(whole))
    if len(sys.argv) > 3:
        with open(f"{sys.argv[3]}/{name}.json", "w") as f:
            json.dump(whole, f)
    cases = []
    for text in texts:
        ids = t.encode(text, add_special_tokens=False).ids
        full = t.encode(text).ids
        at = next((i for i in range(len(full) + 1) if full[i:i + len(ids)] == ids), 0)
        cases.append(dict(ids=ids, before=full[:at], after=full[at + len(ids):], text=t.decode(ids, skip_special_tokens=False) if ids else "",
                          plain=t.decode(full, skip_special_tokens=True) if full else ""))
    short = [{k: v for k, v in c.items() if (v != c["text"] if k == "plain" else v not in ([], ""))} for c in cases]
    pipelines.append(dict(name=name, model=model, json=json.dumps({**whole, "model": "@"}, ensure_ascii=False), cases=short))

# The trainer of the library on a text with every kind of piece.
training = corpus[:60_000] + extra[:1500]
t = Tokenizer(models.BPE())
t.pre_tokenizer = bl
t.train_from_iterator(training.splitlines(keepends=True), trainers.BpeTrainer(vocab_size=900, min_frequency=2, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **quiet))
trained = json.loads(t.to_str())["model"]["merges"]

dump = lambda name, value: open(f"{out}/{name}.json", "w", encoding="utf8").write(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")
base = {k: v for k, v in M.items() if k not in DERIVED}
dump("models", {k: json.dumps(v, ensure_ascii=False, separators=(",", ":")) for k, v in {**base, "unigramfallback": M["unigramfallback"]}.items()})
dump("pipelines", dict(texts=texts, pipelines=pipelines))
dump("training", dict(text=training, merges=trained))
print({f: os.path.getsize(f"{out}/{f}") for f in os.listdir(out)})
